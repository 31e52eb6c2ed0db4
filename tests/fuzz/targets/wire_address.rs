//! Hosts as they come in a request, and addresses in text.

#![no_main]

use std::net::{IpAddr, Ipv6Addr};

use libfuzzer_sys::fuzz_target;
use sockhop::wire::{Address, BoundName, FirstBytes, Host, Name};

fuzz_target!(|input: &[u8]| {
    if let Ok(host) = Host::from_name_bytes(input) {
        assert!(input.len() <= Name::MAX_LEN);
        check_host(&host);
    } else if let Ok(text) = str::from_utf8(input) {
        assert!(text.parse::<Name>().is_err(), "{text:?}");
    }
    if let Ok(text) = str::from_utf8(input) {
        check_text(text);
    }

    let first = FirstBytes::new(input);
    assert!(
        input.starts_with(first.as_bytes()) && first.to_string().len() <= 2 + 4 * FirstBytes::LIMIT
    );
    let bound = BoundName::new(input);
    assert_eq!(bound.is_some(), input.len() <= Name::MAX_LEN);
    if let Some(bound) = bound {
        assert_eq!(bound.as_bytes(), input);
        assert!(
            bound
                .to_string()
                .bytes()
                .all(|byte| byte.is_ascii_graphic() || byte == b' ')
        );
    }
});

fn check_text(text: &str) {
    let address = text.parse::<Address>();
    let with_default = Address::with_default_port(text, 1080);
    if let Ok(address) = &address {
        check_host(&address.host);
        assert_eq!(address.to_string().parse().as_ref(), Ok(address));
        // A bare IPv6 address has no port, although its end looks like one.
        if text.parse::<Ipv6Addr>().is_err() {
            assert_eq!(with_default.as_ref(), Ok(address));
        }
    }
    if let Ok(address) = with_default {
        assert_eq!(address.to_string().parse(), Ok(address));
    }
}

/// What goes to a resolver, a log or another proxy can't be anything but what it looks like.
fn check_host(host: &Host) {
    assert_eq!(host.to_string().parse().as_ref(), Ok(host));
    if let Host::Name(name) = host {
        let text = name.as_str();
        assert!((1..=Name::MAX_LEN).contains(&text.len()));
        assert!(text.parse::<IpAddr>().is_err());
        assert!(
            !text.contains(|c: char| c.is_control()
                || c.is_whitespace()
                || ":[]/?#@%\\".contains(c))
        );
        // Whatever a resolver takes for a number without asking anybody. std's own is stricter than inet_aton, so by hand.
        let label = text
            .strip_suffix('.')
            .unwrap_or(text)
            .rsplit('.')
            .next()
            .unwrap_or(text);
        if !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_digit()) {
            assert!(name.looks_like_ipv4_number(), "{text}");
        }
    }
}
