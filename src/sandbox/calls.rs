//! System calls: which ones fail, by seccomp (seccomp(2)).
//!
//! What is refused is listed, not what is needed: a C library that is replaced under a dynamic program may need others for
//! the same thing, and a router that nobody looks at is no place to find that out. Calls that are newer than the list fail
//! as on an older kernel (`ENOSYS`), which every library is prepared for.

use linux_raw_sys::general as nr;
use linux_raw_sys::ioctl::TIOCSTI;
use rustix::io::Errno;
use rustix::net::AddressFamily;
use seccompiler::sock_filter;

use super::filter::{self, Check, Range, Test, Verdict};
use super::numbers::{ARCHITECTURE, LAST, LAST_UNKNOWN, REFUSED, REFUSED_HERE};

/// Whether it is done: not for an architecture that there is no list for.
pub(super) fn confine() -> Result<bool, seccompiler::Error> {
    let Some(architecture) = ARCHITECTURE else {
        return Ok(false);
    };
    seccompiler::apply_filter(&program(architecture))?;
    Ok(true)
}

fn program(architecture: u32) -> Vec<sock_filter> {
    filter::program(architecture, number(Errno::PERM), &checks(), &ranges())
}

/// Calls that fail whatever their arguments, sorted.
fn ranges() -> Vec<Range> {
    let refused = Verdict::Fail(number(Errno::PERM));
    let unknown = Verdict::Fail(number(Errno::NOSYS));
    let one = |number, verdict| Range {
        first: number,
        last: number,
        verdict,
    };
    let listed = REFUSED.iter().chain(REFUSED_HERE);
    let listed = listed.map(|number| one(*number, refused));
    let others = [
        // Those that `checks` did not let pass.
        one(nr::__NR_clone, refused),
        one(nr::__NR_socket, Verdict::Fail(number(Errno::AFNOSUPPORT))),
        // Its arguments are in memory, where a filter can't look. Libraries go back to clone(2).
        one(nr::__NR_clone3, unknown),
        Range {
            first: LAST + 1,
            last: LAST_UNKNOWN,
            verdict: unknown,
        },
    ];
    // So few need none of the sorts that std has, which are 3 KB.
    let mut ranges: Vec<Range> = Vec::new();
    for range in listed.chain(others) {
        let place = ranges.partition_point(|known| known.first < range.first);
        ranges.insert(place, range);
    }
    ranges
}

/// Calls that depend on their arguments.
fn checks() -> [Check; 9] {
    let refused = Verdict::Fail(number(Errno::PERM));
    let check = |call, argument, test, verdict| Check {
        call,
        argument,
        test,
        verdict,
    };
    let is = |bits| Test::Are {
        mask: u32::MAX,
        bits,
    };
    let family = |family: AddressFamily| {
        let number = u32::from(family.as_raw());
        check(nr::__NR_socket, 0, is(number), Verdict::Pass)
    };
    let kind = |bits| {
        let mask = SOCKET_KIND;
        check(nr::__NR_socket, 1, Test::Are { mask, bits }, refused)
    };
    let any_of = |mask, verdict| check(nr::__NR_clone, 0, Test::AnyOf { mask }, verdict);
    [
        any_of(NAMESPACES, refused),
        // Threads pass, processes don't.
        any_of(nr::CLONE_THREAD, Verdict::Pass),
        family(AddressFamily::UNIX),
        // Look-ups ask the kernel which addresses there are, on a socket that is a raw one.
        family(AddressFamily::NETLINK),
        kind(SOCK_RAW),
        kind(SOCK_PACKET),
        family(AddressFamily::INET),
        family(AddressFamily::INET6),
        // Types into the terminal that we were started from.
        check(nr::__NR_ioctl, 1, is(TIOCSTI), refused),
    ]
}

fn number(error: Errno) -> u16 {
    u16::try_from(error.raw_os_error()).unwrap_or(1)
}

/// Any of the flags that make a namespace, clone(2).
const NAMESPACES: u32 = nr::CLONE_NEWNS
    | nr::CLONE_NEWCGROUP
    | nr::CLONE_NEWUTS
    | nr::CLONE_NEWIPC
    | nr::CLONE_NEWUSER
    | nr::CLONE_NEWPID
    | nr::CLONE_NEWNET;

/// The part of a socket's type that is not flags, `linux/net.h`.
const SOCKET_KIND: u32 = 0xf;
const SOCK_RAW: u32 = 3;
const SOCK_PACKET: u32 = 10;

#[cfg(test)]
mod tests {
    use super::super::filter::tests::run;
    use super::*;

    const HERE: u32 = ARCHITECTURE.unwrap();

    fn verdict(call: u32, arguments: [u64; 6]) -> Verdict {
        run(&program(HERE), HERE, call, arguments)
    }

    fn refused() -> Verdict {
        Verdict::Fail(number(Errno::PERM))
    }

    #[test]
    fn ranges_are_apart() {
        for pair in ranges().windows(2) {
            assert!(pair[0].last < pair[1].first, "{pair:?}");
        }
    }

    #[test]
    fn what_a_proxy_does_passes() {
        for call in [
            nr::__NR_read,
            nr::__NR_write,
            nr::__NR_splice,
            nr::__NR_connect,
            nr::__NR_accept4,
            nr::__NR_epoll_ctl,
            nr::__NR_openat,
            nr::__NR_mmap,
            nr::__NR_futex,
            nr::__NR_exit_group,
            nr::__NR_rt_sigreturn,
            nr::__NR_tgkill,
            LAST - 1,
        ] {
            assert_eq!(verdict(call, [0; 6]), Verdict::Pass, "{call}");
        }
    }

    #[test]
    fn what_is_listed_is_refused() {
        for call in REFUSED.iter().chain(REFUSED_HERE) {
            assert_eq!(verdict(*call, [0; 6]), refused(), "{call}");
        }
        let foreign = run(&program(HERE), HERE ^ 1, nr::__NR_read, [0; 6]);
        assert_eq!(foreign, refused());
    }

    #[test]
    fn what_is_newer_is_unknown() {
        let unknown = Verdict::Fail(number(Errno::NOSYS));
        for call in [nr::__NR_clone3, LAST + 1, LAST_UNKNOWN] {
            assert_eq!(verdict(call, [0; 6]), unknown, "{call}");
        }
    }

    #[test]
    fn threads_pass_and_processes_do_not() {
        // As glibc makes threads, and as fork(3) and a container do theirs.
        let clone = |flags| verdict(nr::__NR_clone, [flags, 0, 0, 0, 0, 0]);
        assert_eq!(clone(0x003d_0f00), Verdict::Pass);
        for flags in [0x0120_0011, 0x4111, 0x7e02_0011, 0x103d_0f00, 0x403d_0f00] {
            assert_eq!(clone(flags), refused(), "{flags:x}");
        }
    }

    #[test]
    fn sockets_are_those_of_the_network_and_this_machine() {
        let socket = |family, kind| verdict(nr::__NR_socket, [family, kind, 0, 0, 0, 0]);
        let flags = 0x8_0800;
        for family in [2, 10] {
            for kind in [1, 2, 5, flags | 1, flags | 2] {
                assert_eq!(socket(family, kind), Verdict::Pass, "{family} {kind}");
            }
            for kind in [3, 10, flags | 3] {
                assert_eq!(socket(family, kind), refused(), "{family} {kind}");
            }
        }
        for (family, kind) in [(1, 1), (1, 5), (16, 3), (16, flags | 3)] {
            assert_eq!(socket(family, kind), Verdict::Pass, "{family} {kind}");
        }
        let unsupported = Verdict::Fail(number(Errno::AFNOSUPPORT));
        // Packets, kernel's ciphers, virtual machines, Bluetooth.
        for family in [17, 38, 40, 31, 0, 0xffff_ffff] {
            assert_eq!(socket(family, 1), unsupported, "{family}");
        }
    }

    #[test]
    fn terminals_are_not_typed_into() {
        let ioctl = |request| verdict(nr::__NR_ioctl, [0, request, 0, 0, 0, 0]);
        assert_eq!(ioctl(TIOCSTI.into()), refused());
        assert_eq!(ioctl(u64::from(TIOCSTI) | 1 << 32), refused());
        assert_eq!(ioctl(0x5421), Verdict::Pass);
    }
}
