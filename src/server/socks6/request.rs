//! What becomes of a request of SOCKS 6 once it is accepted.

use std::net::SocketAddr;
use std::time::Instant;

use super::Opening6;
use crate::engine::{Turn, TurnContext};
use crate::server::answering::Answering;
use crate::server::closing::Closing;
use crate::server::opening::Opening;
use crate::server::pending::Pending;
use crate::server::rules::Rules;
use crate::server::session::{ServerSession, Stage, Step, closing};
use crate::server::socks6::Opened6;
use crate::wire::socks5::ReplyCode;
use crate::wire::socks6::{Command, Profile};
use crate::wire::{Address, Host};

impl ServerSession {
    /// The client has begun in SOCKS 6, which the other machine has not seen yet.
    pub(in crate::server) fn begin6(&self, opening: Opening, profile: Profile) -> Stage {
        Stage::Opening6(Box::new(Opening6::new(opening, profile)))
    }

    pub(in crate::server) fn open6(
        &mut self,
        mut opening: Box<Opening6>,
        cx: &mut TurnContext<'_>,
    ) -> Step {
        Step::Next(
            match opening.turn(&self.settings, &mut self.story.user, cx) {
                Opened6::Not(until) => {
                    let until = Some(until);
                    return Step::Stay(Stage::Opening6(opening), Turn::Wait { until });
                }
                Opened6::Request => {
                    let until = cx.now + self.settings.patience();
                    let shared = self.settings.socks6.as_ref();
                    let policy = shared.map(|shared| shared.options.stack);
                    match opening.into_pending(policy.unwrap_or_default(), until) {
                        Some((pending, command, address)) => {
                            self.request6(pending, command, &address, cx.now)
                        }
                        None => Stage::Over,
                    }
                }
                Opened6::Failed(reason, error) => {
                    self.settings.stats.refused(reason);
                    self.story.end(cx.now, &format_args!("{error} ({reason})"));
                    let (client, unsent) = opening.into_last_words();
                    closing(Closing::new(client, unsent, cx.now))
                }
                Opened6::Silent => {
                    self.settings.stats.refused("whole-request");
                    self.story.end(cx.now, &"no whole request at once");
                    Stage::Over
                }
                Opened6::Left => {
                    self.story.end(cx.now, &"left before its request");
                    Stage::Over
                }
                Opened6::TimedOut => {
                    self.settings.stats.refused("handshake-timeout");
                    self.story.end(cx.now, &"no request in time");
                    Stage::Over
                }
            },
        )
    }

    fn request6(
        &mut self,
        mut pending: Box<Pending>,
        command: Command,
        address: &Address,
        now: Instant,
    ) -> Stage {
        self.story.target = Some(match command {
            Command::CONNECT => format!("to {address}").into(),
            _ => format!("{command} {address}").into(),
        });
        match command {
            // Its address means nothing.
            Command::NOOP => {
                if let Answering::Socks6(answers) = &mut pending.answering {
                    answers.done(&mut pending.unsent);
                }
                self.story.end(now, &"done");
                closing(Closing::new(pending.client, pending.unsent, now))
            }
            Command::CONNECT => match self.dns_service(address) {
                Some(Some(dns)) => self.connect_to(pending, vec![dns], now),
                Some(None) => {
                    let code = ReplyCode::CONNECTION_REFUSED;
                    self.refuse(pending, code, &"no DNS service here (--dns)", now)
                }
                None => self.go_to(pending, address, Rules::check_name, now),
            },
            // Nothing goes past the proxies.
            Command::BIND => match self.settings.via.clone() {
                Some(via) => self.bind6_through(pending, via, address, now),
                None => self.bind6(pending, address, now),
            },
            Command::ASSOCIATE => match self.settings.via.clone() {
                Some(via) => self.associate6_through(pending, via, address, now),
                None => self.associate6(pending, address, now),
            },
            _ => self.no_such_command(pending, now),
        }
    }

    /// Where the DNS service is, if that is what is asked for, and if there is one.
    fn dns_service(&self, address: &Address) -> Option<Option<SocketAddr>> {
        let asked = matches!(address.host, Host::Ip(ip) if ip.to_canonical().is_unspecified())
            && address.port == DNS;
        let dns = self
            .settings
            .socks6
            .as_ref()
            .and_then(|own| own.options.dns);
        asked.then_some(dns)
    }
}

/// The port of the service, also at the proxy.
const DNS: u16 = 53;
