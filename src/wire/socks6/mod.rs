//! SOCKS 6 messages, as far as an expired draft defines them.
//!
//! What to read: draft-olteanu-intarea-socks-6-11 (2020-11-02, never adopted) and the editor's copy named -12; the
//! section titles in the docs below are those of the draft. What the drafts leave open, and how the two implementations
//! that exist differ from them, is a value: the [`Profile`] that every `decode` and `encode` takes.
//!
//! ```text
//! client                                proxy
//!   │ Request [+ initial data] ───────►   │      request.rs, options in stack.rs, session.rs, tokens.rs, authentication.rs
//!   │ ◄─────────────── AuthReply (1..2)   │      auth_reply.rs
//!   │ ◄──────────────────────── OpReply   │      reply.rs; two for BIND
//!   │ ◄──── association, datagrams ────►  │      udp.rs
//! ```
//!
//! # Decoding
//!
//! The convention is that of [`crate::wire`], with more to tell: [`Decoded::Missing`] says how many bytes are missing at
//! least, so that a driver who reads just that many never takes one from behind the message. A message whose form is
//! broken is a [`DecodeError`], which knows how a proxy answers it ([`DecodeError::answer`]). An option that is broken,
//! out of place, repeated or at odds with another one does not spoil the message: it is left out, and told in
//! [`Problems`] with what is to be done about it ([`Problems::consequence`]).
//!
//! Nothing is allocated before a message is complete and its lengths are within the profile's caps.
//!
//! # Encoding
//!
//! Options are written in the order of their kinds, padding as zeros. A message never has more than
//! [`MAX_OPTIONS_SENT`] bytes of options, because no option type can hold more than its share of that.
//!
//! Session ids, association ids, tokens and passwords are not shown by `Debug`.

mod address;
mod auth_reply;
mod authentication;
mod error;
mod extra;
mod names;
mod option;
mod profile;
mod reader;
mod reply;
mod request;
mod session;
mod stack;
mod tokens;
mod udp;
mod version_mismatch;

pub use auth_reply::{
    AuthReply, AuthReplyOptions, AuthReplyType, Authentication, SessionVerdict, TokenVerdict,
};
pub use authentication::{AuthData, AuthDataTooLong, MethodAdvertisement, MethodSet};
pub use error::{
    Answer, Consequence, DecodeError, Decoded, Fault, Malformed, OptionError, Problem, Problems,
};
pub use extra::{ExtraOptions, ExtraTooLong};
pub use names::{ToAsciiError, address_from_text, to_ascii};
pub use option::{Kind, RawOption, RawOptions};
pub use profile::{
    AddressOrder, Alignment, BacklogNotice, MultipathValues, NameLength, NameReading, PasswordForm,
    Profile, ReserveValues, SelectionKind, SessionIdPlacement, UnknownProfile,
};
pub use reply::{OpReply, OpReplyOptions, ReplyCode};
pub use request::{Command, Request, RequestOptions};
pub use session::{SessionId, SessionUse};
pub use stack::{Choice, Leg, Legs, Parity, PortParity, Reserve, StackOptions};
pub use tokens::{Token, Window, WindowSize};
pub use udp::{AssociationId, Channel, Datagram, ErrorCode, Side, UdpError, UdpHeader, UdpMessage};
pub use version_mismatch::VersionMismatch;

/// The first byte of every message in every draft. The implementations use others: see [`Profile::version`].
pub const VERSION: u8 = 6;

/// The port by tradition; the draft asked for one and never got it.
pub const PORT: u16 = 1080;

/// The most bytes of initial data that a client may declare ("Authentication Method Advertisement").
pub const MAX_INITIAL_DATA: u16 = 1 << 14;

/// The most bytes of options that we ever write in one message: the cap of drafts -06 to -11, the smallest.
pub const MAX_OPTIONS_SENT: usize = 16_384;
