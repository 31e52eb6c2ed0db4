//! A filter of system calls as the kernel takes it: a program of classic BPF (seccomp(2), `linux/filter.h`).
//!
//! It looks up the call's number in sorted ranges by halving, so that a hundred refused calls cost seven comparisons; newer
//! kernels remember which numbers always pass, and run it for the others only.

use seccompiler::sock_filter;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is made.
    Pass,
    /// It fails with this error number.
    Fail(u16),
}

/// Numbers of calls, both ends included, that have the same verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u32,
    pub(super) last: u32,
    pub(super) verdict: Verdict,
}

/// A check of one argument's low half. The first that matches decides; if none does, so do the ranges.
#[derive(Debug, Clone, Copy)]
pub(super) struct Check {
    pub(super) call: u32,
    pub(super) argument: u32,
    pub(super) test: Test,
    pub(super) verdict: Verdict,
}

/// Of the bits of `mask`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Test {
    /// They are exactly these.
    Are { mask: u32, bits: u32 },
    /// One of them is set.
    AnyOf { mask: u32 },
}

/// The program: calls of another architecture fail with `foreign`, others as `checks` and `ranges` say, and pass if those say
/// nothing. Ranges are to be sorted and must not overlap.
pub(super) fn program(
    architecture: u32,
    foreign: u16,
    checks: &[Check],
    ranges: &[Range],
) -> Vec<sock_filter> {
    let mut program = vec![
        load(ARCHITECTURE),
        jump(EQUAL, architecture, 1, 0),
        end(Verdict::Fail(foreign)),
        load(NUMBER),
    ];
    for check in checks {
        let (mask, comparison, bits, (yes, no)) = match check.test {
            Test::Are { mask, bits } => (mask, EQUAL, bits, (0, 1)),
            Test::AnyOf { mask } => (mask, EQUAL, 0, (1, 0)),
        };
        program.extend([
            jump(EQUAL, check.call, 0, 5),
            load(argument(check.argument)),
            instruction(AND, mask, 0, 0),
            jump(comparison, bits, yes, no),
            end(check.verdict),
            load(NUMBER),
        ]);
    }
    program.extend(halves(ranges));
    program
}

/// Ends with a verdict, whatever the number is.
fn halves(ranges: &[Range]) -> Vec<sock_filter> {
    match ranges {
        [] => vec![end(Verdict::Pass)],
        [range] => vec![
            jump(AT_LEAST, range.first, 0, 2),
            jump(ABOVE, range.last, 1, 0),
            end(range.verdict),
            end(Verdict::Pass),
        ],
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let first = high.first().map_or(u32::MAX, |range| range.first);
            let (low, high) = (halves(low), halves(high));
            // A jump beyond 255 has to be one without a condition.
            let distance = u32::try_from(low.len()).unwrap_or(u32::MAX);
            let mut both = vec![
                jump(AT_LEAST, first, 0, 1),
                instruction(ALWAYS, distance, 0, 0),
            ];
            both.extend(low);
            both.extend(high);
            both
        }
    }
}

fn load(offset: u32) -> sock_filter {
    instruction(LOAD, offset, 0, 0)
}

fn jump(code: u16, value: u32, yes: u8, no: u8) -> sock_filter {
    instruction(code, value, yes, no)
}

fn end(verdict: Verdict) -> sock_filter {
    let value = match verdict {
        Verdict::Pass => PASS,
        Verdict::Fail(error) => FAIL | u32::from(error),
    };
    instruction(RETURN, value, 0, 0)
}

const fn instruction(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Where the low half of an argument is on a little-endian machine, in `struct seccomp_data`.
const fn argument(number: u32) -> u32 {
    16 + 8 * number
}

// `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

// BPF_LD | BPF_W | BPF_ABS and so on.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const ALWAYS: u16 = 0x05;
const EQUAL: u16 = 0x15;
const ABOVE: u16 = 0x25;
const AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

// SECCOMP_RET_ALLOW and SECCOMP_RET_ERRNO.
const PASS: u32 = 0x7fff_0000;
const FAIL: u32 = 0x0005_0000;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What the kernel does with a program. Panics where it would refuse it.
    pub(in crate::sandbox) fn run(
        program: &[sock_filter],
        architecture: u32,
        number: u32,
        arguments: [u64; 6],
    ) -> Verdict {
        let mut data = Vec::new();
        data.extend(number.to_ne_bytes());
        data.extend(architecture.to_ne_bytes());
        data.extend(0_u64.to_ne_bytes());
        data.extend(arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
        let (mut at, mut value) = (0, 0);
        loop {
            let instruction = &program[at];
            let k = instruction.k;
            let mut skip = |yes| {
                at += usize::from(if yes { instruction.jt } else { instruction.jf });
            };
            match instruction.code {
                LOAD => {
                    let place = k as usize;
                    assert_eq!(place % 4, 0);
                    value = u32::from_ne_bytes(data[place..place + 4].try_into().unwrap());
                }
                AND => value &= k,
                ALWAYS => at += k as usize,
                EQUAL => skip(value == k),
                ABOVE => skip(value > k),
                AT_LEAST => skip(value >= k),
                RETURN => {
                    return match k {
                        PASS => Verdict::Pass,
                        _ => {
                            let error = k.checked_sub(FAIL).expect("no other verdict");
                            Verdict::Fail(error.try_into().unwrap())
                        }
                    };
                }
                other => panic!("code {other:#x}"),
            }
            at += 1;
        }
    }

    fn range(first: u32, last: u32, error: u16) -> Range {
        let verdict = Verdict::Fail(error);
        Range {
            first,
            last,
            verdict,
        }
    }

    #[test]
    fn every_number_has_the_verdict_of_its_range() {
        // One to 200 ranges, some of them neighbours, some of one number.
        for count in [0_u16, 1, 2, 3, 7, 90, 200] {
            let ranges: Vec<_> = (0..count)
                .map(|at| {
                    let first = 10 + u32::from(at) * 5;
                    range(first, first + u32::from(at) % 5, at + 1)
                })
                .collect();
            let program = program(7, 1, &[], &ranges);
            for number in (0..u32::from(count) * 5 + 20).chain([u32::MAX - 1, u32::MAX]) {
                let expected = ranges
                    .iter()
                    .find(|range| (range.first..=range.last).contains(&number))
                    .map_or(Verdict::Pass, |range| range.verdict);
                assert_eq!(
                    run(&program, 7, number, [0; 6]),
                    expected,
                    "{count}, {number}"
                );
                let foreign = run(&program, 8, number, [0; 6]);
                assert_eq!(foreign, Verdict::Fail(1), "{number}");
            }
        }
        let all = program(7, 1, &[], &[range(0, u32::MAX, 3)]);
        assert_eq!(run(&all, 7, u32::MAX, [0; 6]), Verdict::Fail(3));
    }

    #[test]
    fn arguments_are_checked_in_their_order_and_by_their_low_halves() {
        let check = |argument, test, error| Check {
            call: 5,
            argument,
            test,
            verdict: Verdict::Fail(error),
        };
        let checks = [
            check(0, Test::AnyOf { mask: 0x30 }, 1),
            check(2, Test::Are { mask: 0xf, bits: 3 }, 2),
            Check {
                verdict: Verdict::Pass,
                ..check(
                    1,
                    Test::Are {
                        mask: u32::MAX,
                        bits: 9,
                    },
                    0,
                )
            },
        ];
        let program = program(7, 1, &checks, &[range(5, 5, 4)]);
        for (arguments, expected) in [
            ([0x10, 9, 3, 0, 0, 0], Verdict::Fail(1)),
            ([0x20, 9, 3, 0, 0, 0], Verdict::Fail(1)),
            ([0x40, 9, 0x13, 0, 0, 0], Verdict::Fail(2)),
            ([0x40, 9, 0x17, 0, 0, 0], Verdict::Pass),
            ([0, 0x8_0000_0009, 0, 0, 0, 0], Verdict::Pass),
            ([0, 8, 0, 0, 0, 0], Verdict::Fail(4)),
        ] {
            assert_eq!(run(&program, 7, 5, arguments), expected, "{arguments:x?}");
            assert_eq!(run(&program, 7, 6, arguments), Verdict::Pass);
        }
    }
}
