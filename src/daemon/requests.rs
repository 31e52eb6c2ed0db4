//! What the control socket can ask of a forwarder.

use super::forwarder::Forwarder;
use super::{answers, peer_list};
use crate::control::messages::{Call, Disconnected, ErrorCode, ErrorObject, Probing};
use crate::control::server::Reply;
use crate::engine::{Cx, Shared};
use crate::remote::Remote;

/// Answers one call, `connect` later.
pub(super) fn handle(forwarder: &Shared<Forwarder>, call: Call, reply: Reply, cx: &mut Cx<'_>) {
    let mut this = forwarder.borrow_mut();
    match call {
        // On a connection from before: new ones are the other process's.
        Call::Connect { .. } | Call::Disconnect | Call::Probing { .. } if this.is_handed_over() => {
            let error = ErrorObject::new(ErrorCode::HandedOver, "another process has taken over");
            reply.send::<()>(Err(error));
        }
        Call::Status => reply.send(Ok(answers::status(&this, cx))),
        Call::Proxies => {
            let (entries, left_out) = peer_list::proxies(&this, cx.now);
            reply.send_part(&entries, left_out);
        }
        Call::Connect {
            remote: None,
            drain,
        } => this.connect_best(forwarder, drain, reply, cx),
        Call::Connect {
            remote: Some(text),
            drain,
        } => match Remote::parse(&text) {
            Ok(remote) => this.connect_to(remote, drain, reply, cx),
            Err(error) => {
                let error = ErrorObject::new(ErrorCode::InvalidParams, "not a remote")
                    .with_reason(error.to_string());
                reply.send::<()>(Err(error));
            }
        },
        Call::Disconnect => reply.send(Ok(Disconnected {
            closed: this.disconnect(cx),
        })),
        Call::TakeOver { role: None } => this.hand_over(reply, cx.now),
        Call::TakeOver { role: Some(_) } => {
            let error = ErrorObject::new(ErrorCode::InvalidParams, "this is a forwarder");
            reply.send::<()>(Err(error));
        }
        Call::TookOver => this.let_go(reply, cx),
        Call::Probing { run } => {
            let mut discovery = this.discovery.borrow_mut();
            if run {
                discovery.start(cx);
            } else {
                discovery.stop(cx);
            }
            log::info!("probing {}", if run { "started" } else { "stopped" });
            reply.send(Ok(Probing { probing: run }));
        }
    }
}
