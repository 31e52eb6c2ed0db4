//! Proxy URIs.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sockhop::ProxyUri;
use sockhop_fuzz::text;

fuzz_target!(|input: &[u8]| {
    let text = text(input);
    let parsed = text.parse::<ProxyUri>();
    if let Ok(uri) = &parsed {
        assert!(uri.address().port != 0 && uri.timeout().is_none_or(|timeout| !timeout.is_zero()));
        // Shown without the password, it is still the same proxy.
        let shown = uri.to_string();
        let again: ProxyUri = shown
            .parse()
            .unwrap_or_else(|error| panic!("{shown}: {error}"));
        assert_eq!(again.to_string(), shown);
        assert_eq!(
            (again.scheme(), again.address()),
            (uri.scheme(), uri.address())
        );
        assert_eq!(
            (again.timeout(), again.user_id()),
            (uri.timeout(), uri.user_id())
        );
        let user = |uri: &ProxyUri| {
            uri.credentials()
                .map(|credentials| credentials.user().to_vec())
        };
        assert_eq!(user(&again), user(uri));
    }
    if let Some(password) = password(&text) {
        let shown = match parsed {
            Ok(uri) => format!("{uri} {uri:?}"),
            Err(error) => format!("{error} {error:?}"),
        };
        assert!(!shown.contains(password), "{shown}");
    }
});

/// The password, if it can be told apart from everything else that is shown.
fn password(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("://")?;
    let (userinfo, _) = rest.rsplit_once('@')?;
    let (_, password) = userinfo.split_once(':')?;
    // Signs that no message has, and none that is shown in another way than it came.
    const SIGNS: [char; 4] = ['!', '$', '~', '^'];
    let marked = password.contains(SIGNS);
    let plain = password
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || SIGNS.contains(&c));
    (marked && plain && text.matches(password).count() == 1).then_some(password)
}
