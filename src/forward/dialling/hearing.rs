//! Hearing more of the client's first bytes.

use socket2::Socket;

use super::{DIALS, Dial};
use crate::engine::TurnContext;
use crate::forward::announced::without_announcement;
use crate::forward::attempt::Attempt;
use crate::forward::said::{KEPT, Told};
use crate::forward::serving::Serving;
use crate::forward::verdict::Verdict;
use crate::handshake::watch::{Asked, Speaks};
use crate::net::read_some;

#[expect(clippy::large_enum_variant, reason = "nobody keeps one")]
pub(super) enum Heard {
    More,
    Nothing,
    Verdict(Verdict),
}

impl Dial {
    /// Takes in what more the client said.
    fn keep(&mut self, bytes: &[u8], serving: &Serving) {
        self.held.extend_from_slice(bytes);
        self.kept.append(&mut self.held);
        if !self.is_asked && serving.carries_datagrams() {
            (self.kept, self.held) = without_announcement(std::mem::take(&mut self.kept));
        }
    }

    /// Whether more of the client's first bytes is read. What is not read waits in the kernel.
    pub(super) fn listens(&self) -> bool {
        let is_wanted = !self.attempts.is_empty() || self.request_by.is_some();
        is_wanted && self.speaks() != Speaks::Other && self.kept.len() < KEPT
    }

    /// Reads more of the client's first bytes.
    pub(super) fn hear(
        &mut self,
        client: &Socket,
        serving: &Serving,
        cx: &mut TurnContext<'_>,
    ) -> Heard {
        if !self.listens() || self.is_client_dry {
            return Heard::Nothing;
        }
        let room = KEPT.saturating_sub(self.kept.len() + self.held.len());
        match read_some(client, cx.buffer_up_to(room)) {
            Ok(None) => Heard::Nothing,
            Ok(Some([])) if self.told != Told::Nothing => Heard::Verdict(self.half_closed(serving)),
            // A SOCKS client does not end its side before it has an answer.
            Ok(Some([])) | Err(_) => Heard::Verdict(self.client_left(serving)),
            Ok(Some(bytes)) => {
                let bytes = bytes.to_vec();
                self.keep(&bytes, serving);
                if !self.is_asked && matches!(self.said(serving).asked(), Asked::For { .. }) {
                    self.is_asked = true;
                    let usual = serving.settings.connect_timeout;
                    self.give_up = cx.now + self.choice.longest(usual) * DIALS;
                }
                Heard::More
            }
        }
    }

    /// The client has ended its side behind its request: that is for the remote, so there is no other one for it any more.
    fn half_closed(&mut self, serving: &Serving) -> Verdict {
        let open = self.attempts.iter().position(Attempt::is_open);
        match open {
            // The relay sees the end again.
            Some(place) if self.said(serving).asked() != Asked::NotYet => self.relay(place, &[]),
            _ => self.client_left(serving),
        }
    }

    pub(super) fn client_left(&self, serving: &Serving) -> Verdict {
        let remotes = self.attempts.len();
        log::debug!("{}: left, {remotes} remotes under way", serving.client);
        Verdict::Over
    }
}
