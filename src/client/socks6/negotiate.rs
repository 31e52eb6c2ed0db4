//! The driver's view of a handshake: with payload, and with the one method that we know.

use std::io::{Read, Write};

use super::super::error::Socks6NegotiationError;
use super::super::negotiate::{Machine, drive};
use crate::handshake::socks6::client::Phase;
use crate::handshake::socks6::{Client, ClientError, Outcome};
use crate::wire::socks5::Method;
use crate::wire::socks6::Authentication;
use crate::wire::user_password::{Request, Status};

/// Carries a handshake of SOCKS 6 over a blocking stream of any kind, to its next outcome, as
/// [`negotiate`](crate::client::negotiate) does for the older versions. Reads not a byte more than belongs to it.
///
/// `early` is the first payload of a CONNECT. As much of it as the request permits is sent with it, in one write: all of it
/// after a request that advertises no methods, else what it declares. The rest is sent as soon as the proxy has accepted the
/// client.
///
/// BINDs have more than one outcome: each call waits for the next.
///
/// # Errors
/// The stream is of no use afterwards. [`Outcome::Negotiate`] is no error: run the method, call [`Client::negotiated`], and
/// call this again with what is left.
pub fn negotiate_socks6(
    stream: &mut (impl Read + Write),
    handshake: &mut Client,
    early: &[u8],
) -> Result<Outcome, Socks6NegotiationError> {
    let mut unsent = Vec::new();
    handshake.start(&mut unsent);
    let along = match (unsent.is_empty(), handshake.allows_false_start()) {
        (true, _) => 0,
        (false, true) => early.len(),
        (false, false) => handshake.initial_data(),
    };
    let (along, later) = early.split_at_checked(along).unwrap_or((early, &[]));
    unsent.extend(along);
    drive(
        stream,
        &mut Asking::new(handshake, later, None),
        &mut unsent,
    )
}

/// A handshake with what follows it.
pub(super) struct Asking<'a> {
    handshake: &'a mut Client,
    /// Payload for when the proxy has accepted us.
    later: &'a [u8],
    /// For a proxy that wants it by negotiation.
    login: Option<&'a Request>,
    /// The beginning of its answer, once it was sent.
    status: Option<Vec<u8>>,
}

impl<'a> Asking<'a> {
    pub(super) const fn new(
        handshake: &'a mut Client,
        later: &'a [u8],
        login: Option<&'a Request>,
    ) -> Self {
        Self {
            handshake,
            later,
            login,
            status: None,
        }
    }
}

impl Machine for Asking<'_> {
    type Outcome = Outcome;
    type Phase = Phase;
    type Error = ClientError;

    fn phase(&self) -> Phase {
        self.handshake.phase()
    }

    fn wanted(&self) -> usize {
        match &self.status {
            Some(status) => STATUS.saturating_sub(status.len()),
            None => self.handshake.wanted(),
        }
    }

    fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), ClientError> {
        if let Some(status) = &mut self.status {
            status.extend(input);
            match Status::decode(status) {
                Ok(None) => {}
                // Also if it is none: then the proxy says so once more.
                Ok(Some(_)) => {
                    self.status = None;
                    self.login = None;
                    self.handshake.negotiated();
                }
                Err(_) => return Err(ClientError::AuthenticationFailed),
            }
            return Ok(());
        }
        self.handshake.feed(input)?;
        if let (Some(Outcome::Negotiate(Method::USER_PASSWORD)), Some(login)) =
            (self.handshake.outcome(), self.login)
        {
            login.encode(out);
            self.status = Some(Vec::new());
            return Ok(());
        }
        let reply = self.handshake.auth_reply();
        let accepted =
            reply.is_some_and(|reply| reply.authentication() == Authentication::Succeeded);
        if accepted {
            out.extend(std::mem::take(&mut self.later));
        }
        Ok(())
    }

    fn outcome(&self) -> Option<Outcome> {
        match self.status {
            Some(_) => None,
            None => self.handshake.outcome().cloned(),
        }
    }

    fn closed(&self) -> ClientError {
        match &self.status {
            Some(status) => ClientError::ClosedEarly(Phase::Negotiation, status.len()),
            None => self.handshake.closed(),
        }
    }
}

/// The answer to user and password (RFC 1929 §2).
const STATUS: usize = 2;
