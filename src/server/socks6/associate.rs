//! UDP ASSOCIATE of SOCKS 6.

use std::time::Instant;

use socket2::Socket;

use super::Answers;
use crate::engine::{Step, Turn, TurnContext};
use crate::server::answering::Answering;
use crate::server::association::socks6::{Association, Prepared, Refused, Wanted};
use crate::server::closing::Closing;
use crate::server::pending::Pending;
use crate::server::session::{ServerSession, Stage, closing};
use crate::wire::Address;

impl ServerSession {
    /// `wanted` is the address and port that remote hosts shall see; zeros stand for any.
    pub(super) fn associate6(
        &mut self,
        pending: Box<Pending>,
        wanted: &Address,
        now: Instant,
    ) -> Stage {
        let Answering::Socks6(answers) = pending.answering else {
            return self.no_such_command(pending, now);
        };
        let Pending {
            client,
            unsent,
            payload,
            ..
        } = *pending;
        let prepared = {
            let wanted = Wanted {
                address: wanted,
                stack: &pending.stack.map(|stack| *stack).unwrap_or_default(),
                session: answers.session(),
                profile: *answers.profile(),
            };
            let address = self.story.client;
            let (slot, settings) = (&mut self.slot, &self.settings);
            Prepared::new(&client, address, &wanted, slot, settings, now)
        };
        let client = (client, unsent, payload);
        self.associated_with(prepared, *answers, client, now)
    }

    /// Tells the client how its request went. It comes with what is still to be sent to it, and what it has sent behind it.
    pub(super) fn associated_with(
        &mut self,
        prepared: Result<Prepared, Refused>,
        mut answers: Answers,
        (client, mut unsent, payload): (Socket, Vec<u8>, Vec<u8>),
        now: Instant,
    ) -> Stage {
        match prepared {
            Ok(prepared) => {
                let stack = Some(Box::new(*prepared.stack()));
                answers.reply(prepared.bound().into(), stack, &mut unsent);
                let association = Association::new(client, unsent, payload, prepared, now);
                Stage::Associated6(Box::new(association))
            }
            Err(why) => {
                self.settings.stats.refused(why.reason());
                self.story.end(now, &why);
                answers.refuse(why.code(), &mut unsent);
                closing(Closing::new(client, unsent, now))
            }
        }
    }

    pub(in crate::server) fn carry6(
        &mut self,
        mut association: Box<Association>,
        cx: &mut TurnContext<'_>,
    ) -> Step<Stage> {
        let counted = association.moved();
        let turn = association.turn(&self.settings, cx);
        self.count(counted, association.moved());
        if turn != Turn::Done {
            return Step::Stay(Stage::Associated6(association), turn);
        }
        self.story.end(cx.now, &association);
        Step::Next(Stage::Over)
    }
}
