//! The messages of SOCKS4 and 4a.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sockhop::wire::socks4::{MAX_USER_ID, Reply, Request};
use sockhop_fuzz::check_message;

fuzz_target!(|input: &[u8]| {
    let request = check_message(
        input,
        Request::MAX_LEN,
        Request::decode,
        Request::encode,
        Request::eq,
    );
    if let Some(request) = request {
        let user_id = request.user_id().as_bytes();
        assert!(user_id.len() <= MAX_USER_ID && !user_id.contains(&0));
        // What came can be asked for: the checks of both ways agree. IPv4-mapped goes out as IPv4.
        let (command, address, user_id) = request.clone().into_parts();
        if address
            .socket_addr()
            .is_none_or(|to| to.ip().to_canonical() == to.ip())
        {
            assert_eq!(Request::socks4a(command, address, user_id), Ok(request));
        }
    }
    check_message(input, Reply::LEN, Reply::decode, Reply::encode, Reply::eq);
});
