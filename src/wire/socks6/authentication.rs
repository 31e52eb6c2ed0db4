//! Options that authenticate: methods offered, and data of methods.
//!
//! What to read: "Authentication Method Options", "Authentication Data Options" and "Username/Password Authentication" in
//! the draft, RFC 1929 §2.

use std::error::Error;
use std::fmt;

use super::MAX_INITIAL_DATA;
use super::error::{Fault, Malformed};
use super::option::{Kind, RawOption};
use crate::wire::socks5::Method;

/// The methods a client is ready to negotiate (kind 2). Without one, a proxy can't negotiate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MethodAdvertisement {
    /// How many bytes of the payload follow the request, before anything of a method: at most [`MAX_INITIAL_DATA`], and
    /// 0 unless the command is CONNECT. What is more is written as that.
    pub initial_data: u16,
    /// The methods besides "none", which is always meant too.
    pub methods: MethodSet,
}

/// A set of methods. "None" (0) is implied, and can't be told from padding; 0xff is no method. Neither can be in it.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct MethodSet([u64; 4]);

/// Data of a method (kind 4) that we know nothing of: from a client, what authenticates it without a negotiation; from a
/// proxy, the answer, or something for the next time. `Debug` hides them.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthData {
    method: Method,
    data: Box<[u8]>,
}

/// Why data can't be [`AuthData`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthDataTooLong;

impl MethodAdvertisement {
    pub(super) fn read(option: &RawOption<'_>) -> Result<Self, Malformed> {
        let Some((&length, methods)) = option.data.split_first_chunk() else {
            return Err(Malformed::Length(option.length()));
        };
        let initial_data = u16::from_be_bytes(length);
        if initial_data > MAX_INITIAL_DATA {
            return Err(Malformed::InitialData(initial_data));
        }
        let methods = methods.iter().map(|&byte| Method(byte)).collect();
        Ok(Self {
            initial_data,
            methods,
        })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let length = self.initial_data.min(MAX_INITIAL_DATA).to_be_bytes();
        let mut methods: Vec<u8> = self.methods.iter().map(|method| method.0).collect();
        if methods.is_empty() {
            // One byte of padding makes the shortest form, 8, which the draft demands.
            methods.push(Method::NONE.0);
        }
        RawOption::write(Kind::METHOD_ADVERTISEMENT, &[&length, &methods], out);
    }
}

impl MethodSet {
    /// A set of these.
    #[must_use]
    pub fn new(methods: impl IntoIterator<Item = Method>) -> Self {
        methods.into_iter().collect()
    }

    /// Whether the method is in it.
    #[must_use]
    pub fn contains(&self, method: Method) -> bool {
        let word = self.0.get(usize::from(method.0 / 64));
        word.is_some_and(|word| word >> (method.0 % 64) & 1 == 1)
    }

    /// Adds a method; "none" and 0xff are not added.
    pub fn insert(&mut self, method: Method) {
        if method != Method::NONE
            && method != Method::NONE_ACCEPTABLE
            && let Some(word) = self.0.get_mut(usize::from(method.0 / 64))
        {
            *word |= 1 << (method.0 % 64);
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// All of them, sorted.
    pub fn iter(&self) -> impl Iterator<Item = Method> {
        let set = *self;
        (0..=u8::MAX)
            .map(Method)
            .filter(move |&method| set.contains(method))
    }
}

impl FromIterator<Method> for MethodSet {
    fn from_iter<I: IntoIterator<Item = Method>>(methods: I) -> Self {
        let mut set = Self::default();
        for method in methods {
            set.insert(method);
        }
        set
    }
}

impl fmt::Debug for MethodSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|m| m.0)).finish()
    }
}

impl AuthData {
    /// The longest data: long enough for a token, and [`AuthData::MAX_COUNT`] of them fit into a message.
    pub const MAX_LEN: usize = 2048;
    /// Of how many methods data are read and written in one message.
    pub const MAX_COUNT: usize = 4;

    /// Data of a method. User and password have their own types.
    ///
    /// # Errors
    ///
    /// There are more than [`AuthData::MAX_LEN`] bytes.
    pub fn new(method: Method, data: &[u8]) -> Result<Self, AuthDataTooLong> {
        if data.len() > Self::MAX_LEN {
            return Err(AuthDataTooLong);
        }
        let data = data.into();
        Ok(Self { method, data })
    }

    /// The method.
    #[must_use]
    pub const fn method(&self) -> Method {
        self.method
    }

    /// Its data; after decoding with their padding, which only the method can tell apart.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        write_auth_data(self.method, &self.data, out);
    }
}

impl fmt::Debug for AuthData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuthData({}, {} bytes)", self.method, self.data.len())
    }
}

impl fmt::Display for AuthDataTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = AuthData::MAX_LEN;
        write!(f, "data of a method have at most {limit} bytes")
    }
}

impl Error for AuthDataTooLong {}

/// Method and data of an Authentication Data option.
pub(super) fn split_auth_data<'a>(option: &RawOption<'a>) -> Result<(Method, &'a [u8]), Malformed> {
    match option.data.split_first() {
        Some((&method, data)) => Ok((Method(method), data)),
        None => Err(Malformed::Length(option.length())),
    }
}

pub(super) fn write_auth_data(method: Method, data: &[u8], out: &mut Vec<u8>) {
    RawOption::write(Kind::AUTH_DATA, &[&[method.0], data], out);
}

/// A message inside Authentication Data, with at most three bytes of padding behind it.
pub(super) fn padded<T>(
    data: &[u8],
    decoded: Result<Option<(T, usize)>, crate::wire::DecodeError>,
) -> Result<T, Malformed> {
    match decoded? {
        Some((message, length)) if data.len() - length < 4 => Ok(message),
        _ => Err(Malformed::UserPassword),
    }
}

/// Adds data of a method that is not user/password; there may be one for each method.
pub(super) fn add_auth_data(
    others: &mut Vec<AuthData>,
    method: Method,
    data: &[u8],
) -> Result<(), Fault> {
    if let Some(earlier) = others.iter().find(|other| other.method == method) {
        return Err(repeated(*earlier.data == *data));
    }
    if others.len() == AuthData::MAX_COUNT {
        return Err(Fault::TooMany);
    }
    let added = AuthData::new(method, data);
    others.push(added.map_err(|AuthDataTooLong| Fault::TooMany)?);
    Ok(())
}

/// The fault of an option that was there before.
pub(super) const fn repeated(same: bool) -> Fault {
    if same {
        Fault::Duplicate
    } else {
        Fault::Contradiction
    }
}

/// Fills a slot that may be filled once.
pub(super) fn fill<T: PartialEq>(slot: &mut Option<T>, value: T) -> Result<(), Fault> {
    match slot {
        None => {
            *slot = Some(value);
            Ok(())
        }
        Some(earlier) => Err(repeated(*earlier == value)),
    }
}

impl From<Malformed> for Fault {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}
