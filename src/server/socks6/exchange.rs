//! Methods that take messages of their own, between the two authentication replies.

use crate::wire::socks5::Method;
use crate::wire::socks6::{PasswordForm, Profile};
use crate::wire::user_password::{self, Status};

/// A method under way. One more method is one more variant, and its place in [`Exchange::choose`].
pub(super) enum Exchange {
    /// RFC 1929.
    Password,
}

/// How far it has got.
pub(super) enum Exchanged {
    /// The client has to say more.
    Not,
    /// Judge these; [`Exchange::verdict`] tells it.
    Credentials(user_password::Request),
    /// What the client says is no message of the method.
    Malformed,
}

impl Exchange {
    /// What to run with a client that is ready for some methods.
    pub(super) fn choose(
        is_ready: impl Fn(Method) -> bool,
        profile: &Profile,
    ) -> Option<(Method, Self)> {
        let password = Method::USER_PASSWORD;
        let runs = profile.password == PasswordForm::Either && is_ready(password);
        runs.then_some((password, Self::Password))
    }

    /// Looks at what the client has said. Takes what belongs to the method, which has a limit.
    pub(super) fn turn(&self, said: &mut Vec<u8>) -> Exchanged {
        match self {
            Self::Password => match user_password::Request::decode(said) {
                Ok(None) => Exchanged::Not,
                Ok(Some((credentials, length))) => {
                    said.drain(..length);
                    Exchanged::Credentials(credentials)
                }
                Err(_) => Exchanged::Malformed,
            },
        }
    }

    /// Appends what the method says of the verdict, before the authentication reply says it.
    pub(super) fn verdict(&self, status: Status, out: &mut Vec<u8>) {
        match self {
            Self::Password => status.encode(out),
        }
    }
}
