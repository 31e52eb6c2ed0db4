//! One client's way through the proxies.
//!
//! ```text
//! LookingUp ──the first's addresses──▶ Dialling ──▶ Asking ──connected──▶ Asking the next … the last ──▶ through
//!                                         ▲            ▲│ takes no names
//!                                         │            └┴▶ Naming: looks up the next one's
//!                                         └── the last can't reach this address, there is another
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use socket2::Socket;

use super::asking::{Another, Asked, Asking, Attempt, Declined, Why};
use super::stand_ins::Progress;
use super::{Errand, Expected, Failure, Fault, Via};
use crate::engine::{Interests, TurnContext, Want};
use crate::net::canonical;
use crate::proxy_uri::{Resolution, Scheme};
use crate::resolver::{Lookup, ResolveError, Resolver};
use crate::server::OTHERS;
use crate::server::dial::{Dial, Dialled};
use crate::wire::socks4::RequestError;
use crate::wire::socks5::ReplyCode;
#[cfg(feature = "socks6")]
use crate::wire::socks6::{AssociationId, Profile};
use crate::wire::{Address, BoundAddress, Host};

/// A connection to a destination that is made through the proxies. No bytes from behind the last one's reply are read.
pub(in crate::server) struct Way {
    pub(super) via: Arc<Via>,
    resolver: Resolver,
    errand: Errand,
    /// BIND: who may come.
    expected: Option<Expected>,
    /// BIND: whether the client knows of its port. Then it is too late for another one.
    pub(super) is_listening: bool,
    /// What the last proxy is asked for; while it refuses, the next one.
    destinations: VecDeque<Address>,
    /// The first proxy's, once they are known.
    addresses: Vec<SocketAddr>,
    /// A proxy that has forgotten us has been restarted; one that does so twice does not work.
    attempt: Attempt,
    /// Among proxies that stand in for each other.
    pub(super) progress: Progress,
    stage: Stage,
}

enum Stage {
    /// Nothing is done yet.
    Starting,
    LookingUp(Lookup),
    Dialling(Box<Dial>),
    Asking(Box<Asking>),
    /// The proxy at this place takes no names, and the next one has one.
    Naming(usize, Socket, Lookup),
    Over,
}

/// How far it has got.
pub(in crate::server) enum Gone {
    /// To the destination.
    Through(Arrived),
    /// BIND: the last proxy listens there. Goes on with the next turn.
    Listening(SocketAddr),
    /// BIND with a backlog: to a port that the last proxy keeps open.
    #[cfg(feature = "socks6")]
    Kept(Kept),
    /// Nowhere.
    Failed(Failure),
    /// Not yet there: to be looked at again then, or when a descriptor is ready.
    Not(Option<Instant>),
}

/// A connection through all of the proxies.
pub(in crate::server) struct Arrived {
    pub(in crate::server) socket: Socket,
    /// The address that the last proxy told. BIND: of the peer.
    pub(in crate::server) told: SocketAddr,
    /// How much of the payload went ahead of the reply.
    pub(in crate::server) carried: usize,
    /// The id of the association that was asked for, and how its messages are written.
    #[cfg(feature = "socks6")]
    pub(in crate::server) association: Option<(AssociationId, Profile)>,
}

/// A port that the last proxy keeps open as long as the connection to it.
#[cfg(feature = "socks6")]
pub(in crate::server) struct Kept {
    pub(in crate::server) socket: Socket,
    /// Its address as the proxy names it, and as others do.
    pub(in crate::server) named: SocketAddr,
    pub(in crate::server) told: SocketAddr,
    pub(in crate::server) backlog: u16,
}

impl Way {
    /// To one of the destinations: a name, or addresses.
    pub(in crate::server) fn new(
        via: Arc<Via>,
        destinations: Vec<Address>,
        resolver: Resolver,
    ) -> Self {
        Self::with(via, Errand::Connect, destinations, resolver)
    }

    /// To whoever is expected and comes to a port of the last proxy, which is asked for one of the destinations. Only for
    /// proxies that do [BIND](Via::binds).
    pub(in crate::server) fn bind(
        via: Arc<Via>,
        destinations: Vec<Address>,
        expected: Expected,
        resolver: Resolver,
    ) -> Self {
        Self {
            expected: Some(expected),
            ..Self::with(via, Errand::Bind, destinations, resolver)
        }
    }

    /// To a port at this address with a backlog, where the last proxy [keeps](Via::keeps_ports) such; without one, as
    /// [`Way::bind`].
    #[cfg(feature = "socks6")]
    pub(in crate::server) fn listen(
        via: Arc<Via>,
        at: SocketAddr,
        backlog: u16,
        expected: Expected,
        resolver: Resolver,
    ) -> Self {
        Self {
            expected: Some(expected),
            ..Self::with(via, Errand::Listen(backlog), vec![at.into()], resolver)
        }
    }

    /// To a place for datagrams at the last proxy, which must [carry](Via::carries_datagrams) them. One of SOCKS 6 is asked for
    /// this address; for the older ones it is where the datagrams will come from, of which zeros say nothing.
    pub(in crate::server) fn associate(
        via: Arc<Via>,
        address: SocketAddr,
        resolver: Resolver,
    ) -> Self {
        Self::with(via, Errand::Associate, vec![address.into()], resolver)
    }

    fn with(
        via: Arc<Via>,
        errand: Errand,
        mut destinations: Vec<Address>,
        resolver: Resolver,
    ) -> Self {
        let usable = |address: &Address| {
            let is_v6 = matches!(address.host, Host::Ip(ip) if ip.to_canonical().is_ipv6());
            !(is_v6 && via.last().scheme() == Scheme::Socks4)
        };
        destinations.retain(usable);
        destinations.truncate(MOST_DESTINATIONS);
        let stage = match destinations.is_empty() {
            true => Stage::Over,
            false => Stage::Starting,
        };
        Self {
            via,
            resolver,
            errand,
            expected: None,
            is_listening: false,
            destinations: destinations.into(),
            addresses: Vec::new(),
            attempt: Attempt::First,
            progress: Progress::default(),
            stage,
        }
    }

    /// Begins with the proxies from the start.
    pub(super) fn begin(&mut self) {
        self.addresses.clear();
        self.attempt = Attempt::First;
        self.stage = Stage::LookingUp(look_up(&self.resolver, self.via.first.address()));
    }

    /// Goes on with the proxies that are being tried.
    pub(super) fn advance(&mut self, payload: &[u8], cx: &mut TurnContext<'_>) -> Gone {
        loop {
            let stage = match mem::replace(&mut self.stage, Stage::Over) {
                Stage::Starting => {
                    self.choose(cx.now);
                    self.begin();
                    continue;
                }
                Stage::LookingUp(mut lookup) => match lookup.take() {
                    None => return self.wait(Stage::LookingUp(lookup), None),
                    Some(answer) => self.first_found(answer, cx.now),
                },
                Stage::Dialling(mut dial) => match dial.turn(cx.now) {
                    Dialled::Pending(next) => return self.wait(Stage::Dialling(dial), next),
                    Dialled::Connected(socket) => self.ask(0, socket),
                    Dialled::Failed(code) => {
                        Err(self.trouble(0, &format_args!("cannot connect: {code}")))
                    }
                },
                Stage::Naming(place, socket, mut lookup) => match lookup.take() {
                    None => return self.wait(Stage::Naming(place, socket, lookup), None),
                    Some(answer) => self.next_found(place, socket, answer),
                },
                Stage::Asking(mut asking) => match self.turn_of(&mut asking, payload, cx) {
                    Asked::Not => return self.wait(Stage::Asking(asking), None),
                    #[cfg(feature = "socks6")]
                    Asked::Kept(bound, backlog) => match self.kept(*asking, &bound, backlog) {
                        Ok(kept) => return Gone::Kept(kept),
                        Err(failure) => Err(failure),
                    },
                    Asked::Listening(bound) => match self.placed(&bound, &asking.socket) {
                        Some(bound) => {
                            self.is_listening = true;
                            self.stage = Stage::Asking(asking);
                            return Gone::Listening(bound);
                        }
                        None => Err(self.trouble(asking.place, &NO_LISTENER)),
                    },
                    Asked::Granted(bound) if asking.place == self.via.others.len() => {
                        return self.through(*asking, &bound);
                    }
                    Asked::Granted(_) => self.ask(asking.place + 1, asking.socket),
                    Asked::Declined(declined) => self.declined(asking.place, declined, cx.now),
                    Asked::Broken(error) => {
                        let awaited = asking.awaited();
                        let what =
                            format_args!("connection lost waiting for the {awaited}: {error}");
                        Err(self.trouble(asking.place, &what))
                    }
                },
                // There was nothing that could be asked for.
                Stage::Over => Err(self.unaskable(RequestError::NotIpv4)),
            };
            match stage {
                Ok(stage) => self.stage = stage,
                Err(failure) => return Gone::Failed(failure),
            }
        }
    }

    fn turn_of(&mut self, asking: &mut Asking, payload: &[u8], cx: &mut TurnContext<'_>) -> Asked {
        let asked = asking.turn(payload, cx);
        self.heed(asking, &asked);
        asked
    }

    /// Whether the proxy that is asked may keep silent until it knows about the destination.
    pub(super) fn may_be_silent(&self) -> bool {
        matches!(&self.stage, Stage::Asking(asking) if asking.may_be_silent())
    }

    /// Whether it is UDP ASSOCIATE.
    pub(in crate::server) fn is_for_datagrams(&self) -> bool {
        self.errand == Errand::Associate
    }

    /// Who looks up the names of destinations.
    pub(in crate::server) fn resolution(&self) -> Resolution {
        self.via.resolution()
    }

    /// BIND: who may come.
    pub(in crate::server) const fn expected(&self) -> Option<&Expected> {
        self.expected.as_ref()
    }

    fn wait(&mut self, stage: Stage, until: Option<Instant>) -> Gone {
        self.stage = stage;
        Gone::Not(until)
    }

    fn first_found(
        &mut self,
        answer: Result<Vec<SocketAddr>, ResolveError>,
        now: Instant,
    ) -> Result<Stage, Failure> {
        let addresses = answer.map_err(|error| self.trouble(0, &error))?;
        let mut addresses: Vec<_> = addresses.into_iter().map(canonical).collect();
        addresses.retain(|address| !self.via.own.is_own(*address));
        if addresses.is_empty() {
            return Err(self.trouble(0, &"it is a listener of this server"));
        }
        self.addresses = addresses;
        Ok(self.dial(now))
    }

    fn dial(&self, now: Instant) -> Stage {
        let dial = Dial::new(&self.addresses, self.via.uplink.clone(), now);
        Stage::Dialling(Box::new(dial))
    }

    /// The last proxy has done it.
    fn through(&self, asking: Asking, bound: &BoundAddress) -> Gone {
        let told = match (&self.expected, bound) {
            (Some(_), BoundAddress::Socket(peer)) => canonical(*peer),
            (Some(_), BoundAddress::Name(..)) => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
            (None, _) if self.is_for_datagrams() && !self.via.asks_where() => {
                match self.placed(bound, &asking.socket) {
                    Some(relay) => relay,
                    None => {
                        let what = "it takes datagrams at no address that can be sent to";
                        return Gone::Failed(self.trouble(asking.place, &what));
                    }
                }
            }
            _ => self.told(bound, &asking.socket),
        };
        Gone::Through(Arrived {
            carried: asking.carried(),
            #[cfg(feature = "socks6")]
            association: asking.association(),
            socket: asking.socket,
            told,
        })
    }

    /// The last proxy keeps a port open there.
    #[cfg(feature = "socks6")]
    fn kept(&self, asking: Asking, bound: &BoundAddress, backlog: u16) -> Result<Kept, Failure> {
        let told = self.placed(bound, &asking.socket);
        match (bound, told) {
            (BoundAddress::Socket(named), Some(told)) => Ok(Kept {
                socket: asking.socket,
                named: canonical(*named),
                told,
                backlog,
            }),
            _ => Err(self.trouble(asking.place, &NO_LISTENER)),
        }
    }

    /// Asks the proxy at this place for the one behind it, or for the destination.
    fn ask(&self, place: usize, socket: Socket) -> Result<Stage, Failure> {
        let Some(next) = self.via.proxy(place + 1) else {
            let Some(destination) = self.destinations.front() else {
                return Err(self.unaskable(RequestError::NotIpv4));
            };
            let asking = self.asking(place, socket, destination.clone());
            return asking.map_err(|error| self.unaskable(error));
        };
        let next = next.address();
        let takes_names = self
            .via
            .proxy(place)
            .is_some_and(|proxy| proxy.scheme().resolution() == Resolution::AtProxy);
        if matches!(next.host, Host::Name(_)) && !takes_names {
            let lookup = look_up(&self.resolver, next);
            return Ok(Stage::Naming(place, socket, lookup));
        }
        let asking = self.asking(place, socket, next.clone());
        asking.map_err(|error| self.trouble(place, &error))
    }

    fn next_found(
        &self,
        place: usize,
        socket: Socket,
        answer: Result<Vec<SocketAddr>, ResolveError>,
    ) -> Result<Stage, Failure> {
        let addresses = answer.map_err(|error| self.trouble(place + 1, &error))?;
        let scheme = self.via.proxy(place).map(|proxy| proxy.scheme());
        let usable = |address: &SocketAddr| address.is_ipv4() || scheme != Some(Scheme::Socks4);
        let address = addresses.into_iter().map(canonical).find(usable);
        let address = address.ok_or_else(|| self.trouble(place + 1, &RequestError::NotIpv4))?;
        let asking = self.asking(place, socket, address.into());
        asking.map_err(|error| self.trouble(place, &error))
    }

    fn asking(&self, place: usize, socket: Socket, target: Address) -> Result<Stage, RequestError> {
        let errand = match place == self.via.others.len() {
            true => self.errand,
            false => Errand::Connect,
        };
        let asking = Asking::new(&self.via, place, socket, errand, target, self.attempt)?;
        Ok(Stage::Asking(Box::new(asking)))
    }

    /// What to do about a proxy that did not do what it was asked for.
    fn declined(
        &mut self,
        place: usize,
        declined: Declined,
        now: Instant,
    ) -> Result<Stage, Failure> {
        let mut failure = self.trouble(place, &declined);
        match declined.why {
            #[cfg(feature = "socks6")]
            Why::Stale if self.attempt == Attempt::First => {
                log::debug!("{failure}, asking again");
                self.attempt = Attempt::Again;
                return Ok(self.dial(now));
            }
            Why::Destination(code, another) if place == self.via.others.len() => {
                let another = another == Another::Perhaps && !self.is_listening;
                if another && self.destinations.len() > 1 {
                    self.destinations.pop_front();
                    return Ok(self.dial(now));
                }
                failure.code = code;
                failure.fault = Fault::Destination;
            }
            Why::Login => failure.fault = Fault::Login,
            _ => {}
        }
        Err(failure)
    }

    /// What to tell the client as the bound address. For a proxy that tells 0.0.0.0 with a port it is itself; where it tells a
    /// name or nothing, nothing is told, as RFC 1928 §6 has no other way to say so.
    fn told(&self, bound: &BoundAddress, socket: &Socket) -> SocketAddr {
        let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let proxy = self.last_proxy(socket);
        let proxy = proxy.filter(|_| bound.port() != 0).unwrap_or(unknown);
        let told = bound.seen_from(proxy);
        canonical(told.unwrap_or_else(|| SocketAddr::new(unknown, bound.port())))
    }

    /// The address of a port at the last proxy that others shall send to or connect to, if it told one. What the proxy knows
    /// itself by (0.0.0.0, loopback) is no address for anybody else: then it is that of the proxy.
    fn placed(&self, bound: &BoundAddress, socket: &Socket) -> Option<SocketAddr> {
        let BoundAddress::Socket(bound) = bound else {
            return None;
        };
        let proxy = self.last_proxy(socket);
        let ip = match bound.ip().to_canonical() {
            ip if ip.is_unspecified() => proxy?,
            ip if ip.is_loopback() => proxy.filter(|proxy| !proxy.is_loopback()).unwrap_or(ip),
            ip => ip,
        };
        (bound.port() != 0).then_some(SocketAddr::new(ip, bound.port()))
    }

    /// The address of the last proxy, if it is known here.
    fn last_proxy(&self, socket: &Socket) -> Option<IpAddr> {
        match self.via.last().address().host {
            Host::Ip(ip) => Some(ip.to_canonical()),
            Host::Name(_) if self.via.others.is_empty() => {
                let peer = socket.peer_addr().ok()?.as_socket()?;
                Some(peer.ip().to_canonical())
            }
            Host::Name(_) => None,
        }
    }

    /// What to blame when the time is over.
    pub(in crate::server) fn timed_out(&self) -> Failure {
        match &self.stage {
            Stage::Asking(asking) if self.is_listening => Failure {
                code: ReplyCode::TTL_EXPIRED,
                fault: Fault::Destination,
                ..self.trouble(asking.place, &"nobody came in time")
            },
            Stage::Asking(asking) => {
                let awaited = asking.awaited();
                let what = format_args!("timed out waiting for the {awaited}");
                let mut failure = self.trouble(asking.place, &what);
                // It has been asked, so it may be waiting itself.
                if asking.awaits_reply() && asking.place == self.via.others.len() {
                    failure.code = ReplyCode::HOST_UNREACHABLE;
                    failure.fault = Fault::Destination;
                }
                failure
            }
            Stage::Naming(place, ..) => self.trouble(place + 1, &LOOKUP_TIMED_OUT),
            Stage::LookingUp(_) => self.trouble(0, &LOOKUP_TIMED_OUT),
            Stage::Starting | Stage::Dialling(_) | Stage::Over => {
                self.trouble(0, &"connecting timed out")
            }
        }
    }

    fn trouble(&self, place: usize, what: &dyn fmt::Display) -> Failure {
        let proxy = self.via.proxy(place).unwrap_or(&self.via.first);
        Failure {
            code: ReplyCode::GENERAL_FAILURE,
            fault: Fault::Proxy,
            text: format!("via {}: {what}", proxy.address()),
        }
    }

    fn unaskable(&self, error: RequestError) -> Failure {
        Failure {
            code: ReplyCode::ADDRESS_TYPE_NOT_SUPPORTED,
            fault: Fault::Destination,
            ..self.trouble(self.via.others.len(), &error)
        }
    }

    pub(in crate::server) fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        match &self.stage {
            Stage::LookingUp(lookup) | Stage::Naming(_, _, lookup) => {
                if let Some(descriptor) = lookup.descriptor() {
                    interests.watch(OTHERS, descriptor, Want::READ);
                }
            }
            Stage::Dialling(dial) => dial.interests(interests),
            Stage::Asking(asking) => asking.interests(interests),
            Stage::Starting | Stage::Over => {}
        }
    }
}

fn look_up(resolver: &Resolver, address: &Address) -> Lookup {
    resolver.lookup(&address.host.to_string(), address.port)
}

const NO_LISTENER: &str = "it listens at no address that a peer could connect to";

const LOOKUP_TIMED_OUT: &str = "name look-up timed out";

/// Addresses of one destination that the last proxy is asked for: each costs a whole handshake with every proxy, and the
/// deadline ends it anyway.
const MOST_DESTINATIONS: usize = 8;

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::engine::Ready;
    use crate::net::OwnListeners;

    /// Runs it against a proxy that gives these replies, one a connection; what became of it, and how many connections there
    /// were.
    fn run(scheme: &str, destinations: &[&str], replies: &[[u8; 10]]) -> (Gone, usize) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("{scheme}://{}", listener.local_addr().unwrap());
        let via = Via::new(uri.parse().unwrap(), Vec::new(), OwnListeners::new());
        let destinations = destinations
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        let resolver = Resolver::default();
        let mut way = Way::new(Arc::new(via.unwrap()), destinations, resolver);
        let replies = replies.to_vec();
        let proxy = thread::spawn(move || {
            let mut kept = Vec::new();
            for reply in replies {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 13];
                stream.read_exact(&mut request[..3]).unwrap();
                stream.write_all(&[5, 0]).unwrap();
                stream.read_exact(&mut request[3..]).unwrap();
                stream.write_all(&reply).unwrap();
                kept.push(stream);
            }
            kept
        });
        let mut buffer = Vec::new();
        for _ in 0..5000 {
            let mut cx = TurnContext::new(Instant::now(), Ready::ALL, &mut buffer);
            match way.turn(&[], &mut cx) {
                Gone::Not(_) => thread::sleep(Duration::from_millis(1)),
                gone => return (gone, proxy.join().unwrap().len()),
            }
        }
        panic!("nothing came of it");
    }

    #[test]
    fn a_port_that_the_client_knows_of_is_not_given_up_for_another_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("socks5://{}", listener.local_addr().unwrap());
        let via = Via::new(uri.parse().unwrap(), Vec::new(), OwnListeners::new());
        let peers = ["192.0.2.1:20", "192.0.2.2:20"].map(|text| text.parse::<Address>().unwrap());
        let expected = Expected::Named;
        let mut way = Way::bind(
            Arc::new(via.unwrap()),
            peers.into(),
            expected,
            Resolver::default(),
        );
        let proxy = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 3]).unwrap();
            stream.write_all(&[5, 0]).unwrap();
            stream.read_exact(&mut [0; 10]).unwrap();
            stream.write_all(&[reply(0), reply(4)].concat()).unwrap();
            let _ = stream.read(&mut [0; 1]);
            listener.set_nonblocking(true).unwrap();
            listener.accept().is_ok()
        });
        let mut buffer = Vec::new();
        let mut heard = Vec::new();
        for _ in 0..5000 {
            let mut cx = TurnContext::new(Instant::now(), Ready::ALL, &mut buffer);
            match way.turn(&[], &mut cx) {
                Gone::Not(_) => thread::sleep(Duration::from_millis(1)),
                Gone::Listening(bound) => heard.push(bound.port()),
                Gone::Failed(failure) => {
                    heard.push(failure.code.0.into());
                    break;
                }
                _ => panic!("nobody came"),
            }
        }
        assert_eq!(heard, [80, 4]);
        drop(way);
        assert!(!proxy.join().unwrap(), "asked again");
    }

    fn reply(code: u8) -> [u8; 10] {
        [5, code, 0, 1, 192, 0, 2, 1, 0, 80]
    }

    #[test]
    fn the_next_address_is_asked_for_while_the_last_proxy_cannot_reach_one() {
        let two = ["192.0.2.1:80", "192.0.2.2:80"];
        let (gone, connections) = run("socks5", &two, &[reply(4), reply(0)]);
        assert!(matches!(gone, Gone::Through(arrived) if arrived.told.port() == 80));
        assert_eq!(connections, 2);
        for (replies, expected) in [(&[reply(4), reply(5)][..], 5), (&[reply(2)], 2)] {
            match run("socks5", &two, replies) {
                (Gone::Failed(failure), connections) => {
                    assert_eq!(failure.code, ReplyCode(expected));
                    assert_eq!((failure.reason(), connections), (None, replies.len()));
                }
                _ => panic!("not refused"),
            }
        }
    }

    #[test]
    fn nothing_is_asked_of_socks4_that_it_cannot_reach() {
        match run("socks4", &["[2001:db8::1]:80"], &[]) {
            (Gone::Failed(failure), 0) => {
                assert_eq!(failure.code, ReplyCode::ADDRESS_TYPE_NOT_SUPPORTED);
            }
            _ => panic!("not refused"),
        }
    }
}
