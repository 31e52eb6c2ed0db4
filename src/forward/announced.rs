//! Where a client says that its datagrams will come from, which is not what the remote sees (RFC 1928 §6).

use std::net::{Ipv4Addr, SocketAddr};

use crate::handshake::watch::{Asked, Opening, Speaks};
use crate::wire::Host;
use crate::wire::socks5::{Command, Request, VERSION};

/// What a client has said, as a remote may hear it: a request for an association without the announcement, since datagrams come from
/// the forwarder. Behind that what has to wait: a request that may be one, and is not whole.
pub(super) fn without_announcement(mut said: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let opening = Opening::read(&said);
    let (Speaks::Socks5, Some(start)) = (opening.speaks(), opening.greeting()) else {
        return (said, Vec::new());
    };
    match opening.asked() {
        Asked::NotYet => match said.get(start..) {
            Some([VERSION] | [VERSION, ASSOCIATE, ..]) => {
                let held = said.split_off(start);
                (said, held)
            }
            _ => (said, Vec::new()),
        },
        Asked::For {
            command: Command::Associate,
            end,
        } => {
            let request = said.get(start..end).unwrap_or_default();
            if !announces_nothing(request) {
                let nothing = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
                let mut request = Vec::new();
                let command = Command::Associate;
                let address = nothing.into();
                Request { command, address }.encode(&mut request);
                said.splice(start..end, request);
            }
            (said, Vec::new())
        }
        Asked::For { .. } | Asked::Unreadable => (said, Vec::new()),
    }
}

/// Whether a request has an unspecified address and no port.
fn announces_nothing(request: &[u8]) -> bool {
    let Ok(Some((Request { address, .. }, _))) = Request::decode(request) else {
        return false;
    };
    let is_nobody = matches!(address.host, Host::Ip(ip) if ip.to_canonical().is_unspecified());
    is_nobody && address.port == 0
}

/// The code of UDP ASSOCIATE.
const ASSOCIATE: u8 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: &[u8] = b"\x05\x03\0\x01\0\0\0\0\0\0";

    #[test]
    fn an_announcement_is_taken_out_of_a_whole_request() {
        for request in [
            &b"\x05\x03\0\x01\0\0\0\0\x13\x88"[..],
            b"\x05\x03\0\x01\xc0\xa8\0\x01\0\0",
            b"\x05\x03\0\x03\x010\0\0",
            b"\x05\x03\0\x04\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\x07",
            NOTHING,
        ] {
            let said = [b"\x05\x02\0\x02", request, b"behind"].concat();
            let passed = [b"\x05\x02\0\x02", NOTHING, b"behind"].concat();
            assert_eq!(without_announcement(said), (passed.clone(), Vec::new()));
            assert_eq!(without_announcement(passed.clone()).0, passed, "again");
        }
        let six = b"\x05\x01\0\x05\x03\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        assert_eq!(without_announcement(six.clone()).0, six, "nothing is there");
    }

    #[test]
    fn what_may_become_one_waits_and_nothing_else() {
        let greeting = b"\x05\x01\0";
        let request = b"\x05\x03\0\x01\xc0\xa8\0\x01\x13\x88";
        for length in 1..request.len() {
            let (passed, held) = without_announcement([greeting, &request[..length]].concat());
            assert_eq!(
                (&passed[..], &held[..]),
                (&greeting[..], &request[..length])
            );
        }
        for said in [
            &b"\x05"[..],
            b"\x05\x02\0",
            b"\x05\x01\0",
            b"\x05\x01\0\x05\x01",
            b"\x05\x01\0\x05\x01\0\x01\x7f\0\0\x01\0\x50payload",
            b"\x05\x01\x02\x01\x03ada\x02pw",
            b"\x05\x01\0\x05\x03\0\x07",
            b"\x04\x01\0\x50",
            b"GET /",
        ] {
            let (passed, held) = without_announcement(said.to_vec());
            assert_eq!((&passed[..], held.len()), (said, 0));
        }
    }
}
