//! What differs between the drafts and the implementations of SOCKS 6, as one value.

use std::error::Error;
use std::fmt;
use std::str::FromStr;

/// How SOCKS 6 is spoken. Every codec of this module takes one.
///
/// All drafts carry the same version byte, so a peer's revision can't be detected; the profile has to be known, and the
/// default is the newest text, [`Profile::DRAFT_12`].
///
/// ```
/// use sockhop::wire::socks6::Profile;
///
/// let profile: Profile = "go212".parse()?;
/// assert_eq!(profile, Profile::GO_212);
/// assert_eq!(profile.version, 212);
/// // A peer that was rebuilt with the version byte of the draft.
/// let rebuilt = Profile { version: 6, ..profile };
/// assert_eq!(rebuilt.to_string(), "custom");
/// # Ok::<(), sockhop::wire::socks6::UnknownProfile>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Profile {
    /// The first byte of every message. 100 + n announces draft n, 200 + n something built on draft n.
    pub version: u8,
    /// Where UDP messages have type and port of an address.
    pub address_order: AddressOrder,
    /// What the length byte of a name counts in messages that we write.
    pub name_length: NameLength,
    /// Which length bytes of a name we understand.
    pub name_reading: NameReading,
    /// The values of the Port Parity option's second byte.
    pub reserve_values: ReserveValues,
    /// The values of the Multipath option.
    pub multipath_values: MultipathValues,
    /// Which lengths options may have in messages that we read. We always write multiples of 4.
    pub alignment: Alignment,
    /// Which kinds are read as Authentication Method Selection. We always write kind 3.
    pub selection_kind: SelectionKind,
    /// How user and password may be sent.
    pub password: PasswordForm,
    /// Where a proxy tells the id of a new session. Clients take it from either place.
    pub session_id: SessionIdPlacement,
    /// Whether a proxy tells the client of a backlog that somebody has connected.
    pub backlog: BacklogNotice,
    /// The most bytes of options in a message that we read.
    pub max_options: u16,
}

/// Where a UDP message has type and port of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressOrder {
    /// Type, padding, port ("Datagrams" in every draft).
    TypeFirst,
    /// Port, padding, type, as in the messages over TCP.
    PortFirst,
}

/// What the length byte of a name counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NameLength {
    /// Name and padding (-12).
    WithPadding,
    /// The name alone (-07 to -11); names in UDP messages then have no padding at all.
    WithoutPadding,
}

/// Which length bytes of a name are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NameReading {
    /// Only those of -12.
    Strict,
    /// Those of -12 and of the drafts before. If 1 + length is no multiple of 4, padding follows the name.
    Lenient,
    /// Those of -12, and those that are one too large, as one client writes them: a multiple of 4.
    OneTooLarge,
}

/// The values of the Port Parity option's second byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReserveValues {
    /// 0 no, 1 yes (-10 to -12).
    ZeroOne,
    /// 1 no, 2 yes.
    OneTwo,
}

/// The values of the Multipath option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MultipathValues {
    /// 1 no, 2 yes (all drafts).
    NoYes,
    /// 1 yes, 2 no.
    YesNo,
}

/// Which lengths options may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alignment {
    /// Multiples of 4, as in every draft.
    Strict,
    /// Any.
    Lenient,
}

/// Which kinds are read as Authentication Method Selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SelectionKind {
    /// Its own, 3.
    Own,
    /// Also that of the advertisement, 2.
    OrAdvertisement,
}

/// How user and password may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PasswordForm {
    /// In the request (-12).
    InRequest,
    /// There, or in messages of their own after the proxy has selected the method (until -11).
    Either,
}

/// Where a proxy tells the id of a new session: the draft's text and its overview contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionIdPlacement {
    /// In the authentication reply.
    AuthReply,
    /// In the operation reply.
    OpReply,
    /// In both.
    Both,
}

/// Whether a proxy tells the client of a backlog that somebody has connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BacklogNotice {
    /// It doesn't, and backlogs need a session (all drafts).
    None,
    /// It sends one more operation reply for each on the first connection, and backlogs need no session.
    Push,
}

/// The name of a profile that doesn't exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownProfile;

impl Profile {
    /// The editor's copy named -12, the newest text.
    pub const DRAFT_12: Self = Self {
        version: super::VERSION,
        address_order: AddressOrder::TypeFirst,
        name_length: NameLength::WithPadding,
        name_reading: NameReading::Strict,
        reserve_values: ReserveValues::ZeroOne,
        multipath_values: MultipathValues::NoYes,
        alignment: Alignment::Strict,
        selection_kind: SelectionKind::Own,
        password: PasswordForm::InRequest,
        session_id: SessionIdPlacement::Both,
        backlog: BacklogNotice::None,
        max_options: CAP_12,
    };

    /// The newest draft that was published, -11.
    pub const DRAFT_11: Self = Self {
        name_length: NameLength::WithoutPadding,
        name_reading: NameReading::Lenient,
        password: PasswordForm::Either,
        max_options: CAP_11,
        ..Self::DRAFT_12
    };

    /// The Go implementation, version byte 212, with its deviations from -12. It reads names as -12 has them, so that is
    /// what we write to it.
    pub const GO_212: Self = Self {
        version: 212,
        address_order: AddressOrder::PortFirst,
        name_reading: NameReading::OneTooLarge,
        reserve_values: ReserveValues::OneTwo,
        alignment: Alignment::Lenient,
        session_id: SessionIdPlacement::OpReply,
        backlog: BacklogNotice::Push,
        ..Self::DRAFT_12
    };

    /// The C++ library libsocks6msg of January 2020, version byte 207. It throws an exception at a session id in an
    /// operation reply.
    pub const S6M_207: Self = Self {
        version: 207,
        multipath_values: MultipathValues::YesNo,
        selection_kind: SelectionKind::OrAdvertisement,
        session_id: SessionIdPlacement::AuthReply,
        ..Self::DRAFT_11
    };

    /// The profiles that have a name, the default first.
    pub const NAMED: [(&'static str, Self); 4] = [
        ("draft12", Self::DRAFT_12),
        ("draft11", Self::DRAFT_11),
        ("go212", Self::GO_212),
        ("s6m207", Self::S6M_207),
    ];
}

impl Default for Profile {
    fn default() -> Self {
        Self::DRAFT_12
    }
}

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(text: &str) -> Result<Self, UnknownProfile> {
        let named = Self::NAMED.iter().find(|(name, _)| *name == text);
        named.map(|(_, profile)| *profile).ok_or(UnknownProfile)
    }
}

/// The name, or `custom` for one that was put together.
impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::NAMED.iter().find(|(_, profile)| profile == self);
        f.pad(named.map_or("custom", |(name, _)| name))
    }
}

impl fmt::Display for UnknownProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the profile must be draft12, draft11, go212 or s6m207")
    }
}

impl Error for UnknownProfile {}

/// "20KB" of -12.
const CAP_12: u16 = 20_480;
/// "16KB" of -06 to -11.
const CAP_11: u16 = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_profiles_both_ways() {
        for (name, profile) in Profile::NAMED {
            assert_eq!(name.parse(), Ok(profile));
            assert_eq!(profile.to_string(), name);
        }
        for text in ["", "draft13", "DRAFT12", "custom"] {
            assert_eq!(text.parse::<Profile>(), Err(UnknownProfile));
        }
        assert_eq!(Profile::default().to_string(), "draft12");
    }
}
