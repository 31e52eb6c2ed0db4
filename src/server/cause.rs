//! Why a client's request comes to nothing, until it is told in the client's version.

use std::fmt;

use crate::wire::socks5::ReplyCode;
#[cfg(feature = "socks6")]
use crate::wire::socks6;

/// What a refusal says. SOCKS 6 has a code of its own for time-outs, which the older versions tell as something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cause {
    code: ReplyCode,
    timed_out: bool,
}

impl Cause {
    /// The time is over; versions that can't say so say this instead.
    pub(super) const fn timed_out(instead: ReplyCode) -> Self {
        Self {
            code: instead,
            timed_out: true,
        }
    }

    /// For SOCKS 5.
    pub(super) const fn code(self) -> ReplyCode {
        self.code
    }

    /// For SOCKS 6.
    #[cfg(feature = "socks6")]
    pub(super) fn socks6(self) -> socks6::ReplyCode {
        match self.timed_out {
            true => socks6::ReplyCode::TIMED_OUT,
            false => self.code.into(),
        }
    }
}

impl From<ReplyCode> for Cause {
    fn from(code: ReplyCode) -> Self {
        Self {
            code,
            timed_out: false,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.timed_out {
            true => f.pad("timed out"),
            false => self.code.fmt(f),
        }
    }
}

#[cfg(all(test, feature = "socks6"))]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_has_its_own_code_in_socks6_alone() {
        let cause = Cause::timed_out(ReplyCode::HOST_UNREACHABLE);
        assert_eq!(cause.code(), ReplyCode(4));
        assert_eq!(cause.socks6(), socks6::ReplyCode(9));
        for code in 1..=8 {
            let cause = Cause::from(ReplyCode(code));
            assert_eq!(cause.code().0, cause.socks6().0);
        }
    }
}
