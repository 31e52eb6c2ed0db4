//! The state file: what was written is read, and nothing that was cut or made up is taken for a whole one.
//!
//! Input: a byte for what the rest is: a file, the lines of a file whose sum is right, or the addresses of one.

#![no_main]

use std::fmt::Write as _;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

use libfuzzer_sys::fuzz_target;
use sockhop::daemon::state_file::{MOST_ADDRESSES, decode, encode};
use sockhop_fuzz::{cuts, settings, text};

fuzz_target!(|input: &[u8]| {
    let Some(([kind], rest)) = settings::<1>(input) else {
        return;
    };
    match kind % 3 {
        0 => check_file(rest),
        1 => {
            // With a sum that is right what stands above it is looked at.
            let mut file = format!("sockhop-state 1\n{}", text(rest));
            if !file.ends_with('\n') {
                file.push('\n');
            }
            let (lines, sum) = (file.lines().count() - 1, crc32(file.as_bytes()));
            writeln!(file, "end {lines} {sum:08x}").expect("room");
            check_file(file.as_bytes());
        }
        _ => {
            let list = addresses(rest);
            let file = encode(&list);
            let kept = &list[..list.len().min(MOST_ADDRESSES)];
            assert_eq!(decode(file.as_bytes()).as_deref(), Ok(kept));
            check_file(file.as_bytes());
        }
    }
});

fn check_file(file: &[u8]) {
    match decode(file) {
        Ok(list) => {
            assert!(list.len() <= MOST_ADDRESSES);
            assert_eq!(decode(encode(&list).as_bytes()), Ok(list));
            let line_ends = file.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
            let line_ends = line_ends.flat_map(|(at, _)| [at, at + 1]);
            for cut in cuts(file.len())
                .chain(line_ends)
                .filter(|cut| *cut < file.len())
            {
                assert!(decode(&file[..cut]).is_err(), "cut at {cut}");
            }
            for place in cuts(file.len()) {
                let mut changed = file.to_vec();
                changed[place] ^= 1 << (place % 8);
                assert!(decode(&changed).is_err(), "a bit of byte {place}");
            }
            let mut longer = file.to_vec();
            longer.push(b'\n');
            assert!(decode(&longer).is_err(), "something behind its end");
        }
        Err(why) => assert!(!why.contains(char::is_control), "{why}"),
    }
}

/// A port, a scope, an address.
fn addresses(bytes: &[u8]) -> Vec<SocketAddr> {
    let of = |record: &[u8; 20]| {
        let [p1, p2, scope, kind, ip @ ..] = *record;
        let port = u16::from_be_bytes([p1, p2]);
        match kind % 2 {
            0 => SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope.into()).into(),
            _ => SocketAddr::from(([ip[0], ip[1], ip[2], ip[3]], port)),
        }
    };
    let (records, _) = bytes.as_chunks::<20>();
    let list: Vec<SocketAddr> = records.iter().map(of).collect();
    // Short inputs make long files, too.
    let times = usize::from(bytes.len() % 20) * 4 + 1;
    list.repeat(times)
}

/// Written anew, so that it is not the program's own that says what is right.
fn crc32(bytes: &[u8]) -> u32 {
    let table = std::array::from_fn::<u32, 256, _>(|at| {
        (0..8).fold(at as u32, |crc, _| match crc & 1 {
            0 => crc >> 1,
            _ => crc >> 1 ^ 0xEDB8_8320,
        })
    });
    let step = |crc: u32, byte: &u8| crc >> 8 ^ table[usize::from(crc as u8 ^ byte)];
    !bytes.iter().fold(!0, step)
}
