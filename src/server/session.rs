//! One client of a SOCKS server, from accept to close.
//!
//! ```text
//! Opening ──request──▶ LookingUp ──▶ Dialling or Through ──connected, reply──▶ Relaying
//!    │                     │             │                              ▲
//!    │                     ├──▶ Binding ─┼──peer came, second reply─────┘
//!    │                     └───────┴─────┴──denied, no address answered, nobody came──▶ Closing: the reply, then the
//!    │                                                                                  client closes
//!    ├──UDP ASSOCIATE──▶ Associated
//!    ├──not SOCKS, nothing acceptable, wrong password──▶ Closing
//!    └──SOCKS 6──▶ Opening6 ──request──▶ as above; NOOP ──▶ Closing
//!                     ├──BIND with a backlog──▶ Listening or Keeping, until the client closes
//!                     └──BIND for a peer of that──▶ Fetching ──peer came──▶ Relaying
//! ```

use std::fmt;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::OTHERS;
#[cfg(feature = "socks6")]
use super::association;
use super::association::{Association, Exit, NoAssociation, Prepared};
use super::binding::Binding;
use super::cause::Cause;
use super::closing::Closing;
use super::dial::Dial;
use super::login::Login;
use super::opening::{Opened, Opening};
use super::pending::Pending;
use super::rules::{Denied, NameVerdict};
use super::settings::ServerSettings;
#[cfg(feature = "socks6")]
use super::socks6::{FarHandle, Fetch, Handle, Opening6};
use super::users::Users;
use super::via::Way;
use crate::engine::{self, Effort, Interests, Session, Turn, TurnContext, Want};
use crate::handshake::ServerError;
use crate::listen::{Client, Slot};
use crate::net::canonical;
use crate::relay::{Moved, Relay};
use crate::resolver::Lookup;
use crate::wire::Address;
use crate::wire::socks5::ReplyCode;

/// One client of a SOCKS server.
pub struct ServerSession {
    pub(super) stage: Stage,
    pub(super) story: Story,
    pub(super) settings: Arc<ServerSettings>,
    pub(super) slot: Slot,
}

pub(super) enum Stage {
    Opening(Box<Opening>),
    #[cfg(feature = "socks6")]
    Opening6(Box<Opening6>),
    LookingUp {
        pending: Box<Pending>,
        name: NameVerdict,
        lookup: Lookup,
    },
    Dialling {
        pending: Box<Pending>,
        dial: Box<Dial>,
    },
    Binding {
        pending: Box<Pending>,
        binding: Box<Binding>,
    },
    /// For a peer of a port that another connection keeps open.
    #[cfg(feature = "socks6")]
    Fetching {
        pending: Box<Pending>,
        fetch: Box<Fetch>,
    },
    /// Keeps such a port open.
    #[cfg(feature = "socks6")]
    Listening(Box<Handle>),
    /// The same, where a proxy does.
    #[cfg(feature = "socks6")]
    Keeping(Box<FarHandle>),
    Through {
        pending: Box<Pending>,
        way: Box<Way>,
    },
    Closing(Box<Closing>),
    Relaying(Box<Established>),
    Associated(Box<Association>),
    #[cfg(feature = "socks6")]
    Associated6(Box<association::socks6::Association>),
    Over,
}

/// A client that was connected.
pub(super) struct Established {
    pub(super) relay: Relay,
    /// What the server's numbers know of, with the reply.
    pub(super) counted: Moved,
    /// Bytes of the reply, which are not the destination's.
    pub(super) reply: u64,
    /// Bytes of the client that were on their way before.
    pub(super) sent: u64,
}

/// What the log tells of a connection, in one line at its end.
pub(super) struct Story {
    pub(super) client: Option<SocketAddr>,
    pub(super) user: Option<Login>,
    /// With the command.
    pub(super) target: Option<Box<str>>,
    pub(super) since: Instant,
}

pub(super) type Step = engine::Step<Stage>;

impl ServerSession {
    /// Serves a client.
    #[must_use]
    pub fn new(client: Client, settings: Arc<ServerSettings>, now: Instant) -> Self {
        let Client {
            socket,
            address,
            slot,
        } = client;
        let opening = Opening::new(socket, address, &settings, now);
        Self::begun(opening, slot, settings, now)
    }

    /// Serves a client that has `said` something in SOCKS 4, 4a or 5 to somebody who could not serve it, and has `heard` that from
    /// them: at most the answers to its greeting, and to its user and password.
    #[must_use]
    pub fn resumed(
        client: Client,
        said: Vec<u8>,
        heard: Vec<u8>,
        settings: Arc<ServerSettings>,
        now: Instant,
    ) -> Self {
        let Client {
            socket,
            address,
            slot,
        } = client;
        let opening = Opening::resumed(socket, address, said, heard, &settings, now);
        Self::begun(opening, slot, settings, now)
    }

    fn begun(opening: Opening, slot: Slot, settings: Arc<ServerSettings>, now: Instant) -> Self {
        Self {
            story: Story {
                client: opening.address,
                user: None,
                target: None,
                since: now,
            },
            stage: Stage::Opening(Box::new(opening)),
            settings,
            slot,
        }
    }

    fn open(&mut self, mut opening: Box<Opening>, cx: &mut TurnContext<'_>) -> Step {
        match opening.turn(&self.settings, &mut self.story.user, cx) {
            Opened::Not(until) => {
                let until = Some(until);
                Step::Stay(Stage::Opening(opening), Turn::Wait { until })
            }
            #[cfg(feature = "socks6")]
            Opened::Socks6(profile) => Step::Next(self.begin6(*opening, profile)),
            Opened::Request(request) => Step::Next(self.request(*opening, &request, cx.now)),
            Opened::Failed(error) => {
                self.settings.stats.refused(reason(error));
                self.story.end(cx.now, &error);
                let unsent = opening.last_words(error);
                Step::Next(closing(Closing::new(opening.client, unsent, cx.now)))
            }
            Opened::Left => {
                self.story.end(cx.now, &"left before its request");
                Step::Next(Stage::Over)
            }
            Opened::TimedOut => {
                self.settings.stats.refused("handshake-timeout");
                self.story.end(cx.now, &"no request in time");
                Step::Next(Stage::Over)
            }
        }
    }

    /// Gets ready for a client's datagrams, which leave by this exit, and tells it where to send them.
    pub(super) fn associate(
        &mut self,
        pending: Box<Pending>,
        announced: &Address,
        exit: io::Result<Exit>,
        now: Instant,
    ) -> Stage {
        let (client, address) = (&pending.client, self.story.client);
        let prepared = Prepared::new(client, address, announced, &mut self.slot, &self.settings);
        let prepared = prepared.and_then(|prepared| {
            let exit = exit.map_err(NoAssociation::System)?;
            Ok((prepared, exit))
        });
        let (prepared, exit) = match prepared {
            Ok(prepared) => prepared,
            Err(why) => {
                self.settings.stats.refused(why.reason());
                return self.refuse(pending, why.code(), &why, now);
            }
        };
        let Pending {
            client,
            mut answering,
            mut unsent,
            ..
        } = *pending;
        let told = prepared.told(&self.settings);
        answering.reply(told, None, &mut unsent);
        let association = Association::new(client, unsent, prepared, exit, now);
        Stage::Associated(Box::new(association))
    }

    pub(super) fn no_such_command(&mut self, pending: Box<Pending>, now: Instant) -> Stage {
        self.settings.stats.refused("command");
        let code = ReplyCode::COMMAND_NOT_SUPPORTED;
        self.refuse(pending, code, &"command not supported", now)
    }

    pub(super) fn deny(&mut self, pending: Box<Pending>, denied: Denied, now: Instant) -> Stage {
        self.settings.stats.refused("rules");
        self.refuse(pending, ReplyCode::NOT_ALLOWED, &denied, now)
    }

    #[expect(clippy::boxed_local, reason = "stages hand on the box")]
    pub(super) fn refuse(
        &mut self,
        pending: Box<Pending>,
        cause: impl Into<Cause>,
        why: &dyn fmt::Display,
        now: Instant,
    ) -> Stage {
        self.story.end(now, why);
        let Pending {
            client,
            mut answering,
            mut unsent,
            ..
        } = *pending;
        answering.refuse(cause.into(), &mut unsent);
        closing(Closing::new(client, unsent, now))
    }

    fn relay(&mut self, mut established: Box<Established>, cx: &mut TurnContext<'_>) -> Step {
        let turn = established.relay.turn(cx);
        let mut moved = established.relay.moved();
        moved.down = moved.down.saturating_sub(established.reply);
        moved.up += established.sent;
        let counted = mem::replace(&mut established.counted, moved);
        self.count(counted, moved);
        if turn != Turn::Done {
            return Step::Stay(Stage::Relaying(established), turn);
        }
        let Moved { up, down } = moved;
        match established.relay.ended() {
            Some(how) => {
                let ended = format_args!("{up} up, {down} down: {how:?}");
                self.story.end(cx.now, &ended);
            }
            None => self
                .story
                .end(cx.now, &format_args!("{up} up, {down} down")),
        }
        Step::Next(Stage::Over)
    }

    fn carry(&mut self, mut association: Box<Association>, cx: &mut TurnContext<'_>) -> Step {
        let counted = association.moved();
        let turn = association.turn(&self.settings, cx);
        self.count(counted, association.moved());
        if turn != Turn::Done {
            return Step::Stay(Stage::Associated(association), turn);
        }
        self.story.end(cx.now, &association);
        Step::Next(Stage::Over)
    }

    /// Counts bytes that are not counted yet.
    pub(super) fn count(&self, counted: Moved, moved: Moved) {
        if moved != counted {
            let (up, down) = (moved.up - counted.up, moved.down - counted.down);
            self.settings.stats.moved(up, down);
            if let Some(user) = &self.story.user {
                user.moved(up, down);
            }
        }
    }
}

pub(super) fn closing(closing: Closing) -> Stage {
    Stage::Closing(Box::new(closing))
}

/// Under which name a failure is counted.
fn reason(error: ServerError) -> &'static str {
    match error {
        ServerError::Version(_) | ServerError::Http => "not-socks",
        ServerError::Socks4Refused => "socks4",
        ServerError::UserIdRejected => "socks4-user",
        ServerError::NoAcceptableMethod => "no-acceptable-method",
        ServerError::CredentialsRejected => "credentials",
        ServerError::NoDestination | ServerError::Malformed(..) => "malformed",
    }
}

impl Story {
    pub(super) fn end(&self, now: Instant, how: &dyn fmt::Display) {
        let lasted = now.saturating_duration_since(self.since);
        log::debug!("{self}: {how} in {lasted:.1?}");
    }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.client {
            Some(client) => write!(f, "{}", canonical(client))?,
            None => f.write_str("local client")?,
        }
        if let Some(user) = &self.user {
            write!(f, ", user {user:?}")?;
        }
        match &self.target {
            Some(target) => write!(f, " {target}"),
            None => Ok(()),
        }
    }
}

impl Session for ServerSession {
    fn turn(&mut self, cx: &mut TurnContext<'_>) -> Turn {
        loop {
            let step = match mem::replace(&mut self.stage, Stage::Over) {
                Stage::Opening(opening) => self.open(opening, cx),
                #[cfg(feature = "socks6")]
                Stage::Opening6(opening) => self.open6(opening, cx),
                Stage::LookingUp {
                    pending,
                    name,
                    lookup,
                } => self.look_up(pending, name, lookup, cx),
                Stage::Dialling { pending, dial } => self.dial(pending, dial, cx),
                Stage::Binding { pending, binding } => self.await_peer(pending, binding, cx),
                #[cfg(feature = "socks6")]
                Stage::Fetching { pending, fetch } => self.await_fetched(pending, fetch, cx),
                #[cfg(feature = "socks6")]
                Stage::Listening(handle) => self.keep_open(handle, cx),
                #[cfg(feature = "socks6")]
                Stage::Keeping(handle) => self.keep(handle, cx),
                Stage::Through { pending, way } => self.through(pending, way, cx),
                Stage::Closing(mut closing) => match closing.turn(cx) {
                    Turn::Done => Step::Next(Stage::Over),
                    turn => Step::Stay(Stage::Closing(closing), turn),
                },
                Stage::Relaying(established) => self.relay(established, cx),
                Stage::Associated(association) => self.carry(association, cx),
                #[cfg(feature = "socks6")]
                Stage::Associated6(association) => self.carry6(association, cx),
                Stage::Over => return Turn::Done,
            };
            if let Some(turn) = step.settle(&mut self.stage, cx) {
                return turn;
            }
        }
    }

    fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        match &self.stage {
            Stage::Opening(opening) => opening.interests(interests),
            #[cfg(feature = "socks6")]
            Stage::Opening6(opening) => opening.interests(interests),
            Stage::LookingUp {
                pending, lookup, ..
            } => {
                pending.interests(interests);
                if let Some(descriptor) = lookup.descriptor() {
                    interests.watch(OTHERS, descriptor, Want::READ);
                }
            }
            Stage::Dialling { pending, dial } => {
                pending.interests(interests);
                dial.interests(interests);
            }
            Stage::Binding { pending, binding } => {
                pending.interests(interests);
                binding.interests(interests);
            }
            #[cfg(feature = "socks6")]
            Stage::Fetching { pending, fetch } => {
                pending.interests(interests);
                fetch.interests(interests);
            }
            #[cfg(feature = "socks6")]
            Stage::Listening(handle) => handle.interests(interests),
            #[cfg(feature = "socks6")]
            Stage::Keeping(handle) => handle.interests(interests),
            Stage::Through { pending, way } => {
                pending.interests(interests);
                way.interests(interests);
            }
            Stage::Closing(closing) => closing.interests(interests),
            Stage::Relaying(established) => established.relay.interests(interests),
            Stage::Associated(association) => association.interests(interests),
            #[cfg(feature = "socks6")]
            Stage::Associated6(association) => association.interests(interests),
            Stage::Over => {}
        }
    }

    fn effort(&self) -> Effort {
        let reads_file = || {
            let users = self.settings.users.as_ref();
            users.is_some_and(Users::have_file)
        };
        match &self.stage {
            Stage::Relaying(established) => established.relay.effort(),
            Stage::Associated(_) => Effort::Work,
            #[cfg(feature = "socks6")]
            Stage::Associated6(_) => Effort::Work,
            Stage::Opening(_) if reads_file() => Effort::Work,
            #[cfg(feature = "socks6")]
            Stage::Opening6(_) if reads_file() => Effort::Work,
            _ => Effort::Small,
        }
    }
}
