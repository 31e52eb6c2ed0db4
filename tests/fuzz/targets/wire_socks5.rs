//! The messages of SOCKS5, and the header of its datagrams.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sockhop::wire::socks5::{DatagramHeader, Greeting, MethodSelection, Reply, Request};
use sockhop_fuzz::check_message;

fuzz_target!(|input: &[u8]| {
    let greeting = check_message(
        input,
        Greeting::MAX_LEN,
        Greeting::decode,
        Greeting::encode,
        Greeting::eq,
    );
    if let Some(greeting) = greeting {
        assert!(
            greeting
                .methods()
                .iter()
                .all(|&method| greeting.offers(method))
        );
    }
    let selection = MethodSelection::LEN;
    check_message(
        input,
        selection,
        MethodSelection::decode,
        MethodSelection::encode,
        MethodSelection::eq,
    );
    check_message(
        input,
        Request::MAX_LEN,
        Request::decode,
        Request::encode,
        Request::eq,
    );
    check_message(
        input,
        Reply::MAX_LEN,
        Reply::decode,
        Reply::encode,
        Reply::eq,
    );
    let header = DatagramHeader::MAX_LEN;
    check_message(
        input,
        header,
        DatagramHeader::decode,
        DatagramHeader::encode,
        DatagramHeader::eq,
    );
});
