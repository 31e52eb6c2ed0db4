//! What people type as options: addresses, destinations, users, sources, profiles of SOCKS 6.

#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use libfuzzer_sys::fuzz_target;
use sockhop::listen_address::ListenAddress;
use sockhop::net::OwnListeners;
use sockhop::peer::Peer;
use sockhop::server::rules::{Effect, Pattern, Rule, Rules};
use sockhop::server::users::User;
use sockhop::source_spec::SourceSpec;
use sockhop::target::HostPort;
use sockhop::wire::socks6::{Profile, address_from_text, to_ascii};
use sockhop::wire::{Host, Name};
use sockhop_fuzz::text;

fuzz_target!(|input: &[u8]| {
    let text = text(input);
    shown_as_itself::<ListenAddress>(&text);
    shown_as_itself::<SourceSpec>(&text);
    shown_as_itself::<Profile>(&text);
    for address in [
        shown_as_itself::<HostPort>(&text),
        HostPort::parse_or_port(&text, 1080).ok(),
        text.parse::<Peer>().ok().map(|peer| peer.address),
    ]
    .into_iter()
    .flatten()
    {
        assert_ne!(address.port, 0);
        assert_eq!(address.to_string().parse().as_ref(), Ok(&address));
    }
    if let Ok(address) = address_from_text(&text)
        && let Host::Name(name) = &address.host
    {
        // What goes on the wire does, and a second time it is the same.
        assert!(name.as_str().is_ascii(), "{name}");
        assert_eq!(to_ascii(name).as_ref(), Ok(name));
    }
    if let Ok(pattern) = text.parse::<Pattern>() {
        check_pattern(&text, pattern);
    }
    if let Some((name, password)) = text.split_once(':')
        && let Ok(user) = text.parse::<User>()
    {
        assert!(!name.is_empty() && !password.is_empty());
        let hidden = format!("\"{}\", password: ***", name.as_bytes().escape_ascii());
        assert!(format!("{user:?}").contains(&hidden));
    }
});

fn shown_as_itself<T: FromStr<Err: Display> + Display + Debug + PartialEq>(
    text: &str,
) -> Option<T> {
    match text.parse::<T>() {
        Ok(value) => {
            let again = value.to_string().parse::<T>();
            assert!(again.is_ok_and(|again| again == value), "{value:?}");
            Some(value)
        }
        Err(error) => {
            // On one line: it goes to a terminal.
            assert!(!error.to_string().contains(char::is_control), "{error}");
            None
        }
    }
}

/// A destination that names a host decides over exactly that name.
fn check_pattern(text: &str, pattern: Pattern) {
    let name = text.strip_prefix('.').unwrap_or(text);
    let Ok(name) = name.parse::<Name>() else {
        return;
    };
    let rule = |effect| {
        let pattern = pattern.clone();
        Rules::new(vec![Rule { effect, pattern }], OwnListeners::new())
    };
    assert!(rule(Effect::Deny).check_name(&name, 80).is_err(), "{name}");
    assert!(rule(Effect::Allow).check_name(&name, 80).is_ok(), "{name}");
}
