//! The task that keeps the state file: looks at what is known once a minute, and has it written when that is due.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::memory::{Memory, Outcome};
use super::store::Store;
use crate::daemon::left::{Left, Missing};
use crate::engine::{
    Cx, Interests, Mailbox, Next, Session, Shared, Task, TaskId, Turn, TurnContext,
};

/// What the keeper asks about, and tells.
pub(in crate::daemon) trait Knowledge {
    /// The remote in use, and every address that was valid since the start, best first.
    fn ever_valid(&self, now: Instant) -> (Option<SocketAddr>, Vec<SocketAddr>);

    /// Nobody is valid: those that once were may be tried again, also those that were forgotten.
    fn bring_back(&self, addresses: &[SocketAddr], cx: &mut Cx<'_>);

    /// Whether somebody is valid.
    fn has_valid(&self) -> bool;
}

/// Keeps one state file. Clones keep the same one.
#[derive(Clone)]
pub(in crate::daemon) struct Keeper {
    // A worker writes it, and at the end the main thread.
    store: Arc<Mutex<Store>>,
    memory: Shared<Memory>,
    knowledge: Shared<Option<Box<dyn Knowledge>>>,
    /// The path, for the log.
    shown: Rc<str>,
    /// Another process keeps the file now.
    is_retired: Rc<Cell<bool>>,
}

impl Keeper {
    /// Reads the file. What is wrong with it is said in the log.
    pub(in crate::daemon) fn open(path: &Path, now: Instant) -> Self {
        let (store, found) = Store::open(path);
        let shown: Rc<str> = store.path().display().to_string().into();
        match &found.problem {
            Some(problem) => log::warn!("state file {shown}: {problem}"),
            None => log::info!("state file {shown}: {} addresses", found.addresses.len()),
        }
        // Not at the first write, which may come in days. It is tried nevertheless: a start at boot may be too early.
        if let (true, Err(error)) = (store.is_writable(), store.check()) {
            log::warn!("state file {shown}: it could not be written now: {error}");
        }
        Self {
            memory: Rc::new(RefCell::new(Memory::new(found.addresses, found.age, now))),
            store: Arc::new(Mutex::new(store)),
            knowledge: Rc::default(),
            shown,
            is_retired: Rc::default(),
        }
    }

    /// Set to true once another process keeps the file: this one writes it no more then.
    pub(in crate::daemon) fn retirement(&self) -> Rc<Cell<bool>> {
        Rc::clone(&self.is_retired)
    }

    /// The addresses of the file, the one to start with first.
    pub(in crate::daemon) fn addresses(&self) -> Vec<SocketAddr> {
        self.memory.borrow().addresses().to_vec()
    }

    /// From now on the file follows what `knowledge` says.
    pub(in crate::daemon) fn follow(&self, knowledge: Box<dyn Knowledge>, cx: &mut Cx<'_>) {
        *self.knowledge.borrow_mut() = Some(knowledge);
        if lock(&self.store).is_writable() {
            cx.spawn(Box::new(Keeping {
                keeper: self.clone(),
                outcome: None,
                is_failing: false,
            }));
        }
    }

    /// Writes what is not written yet, at the end of the program.
    pub(in crate::daemon) fn finish(&self, now: Instant) {
        if self.is_retired.get() {
            return;
        }
        self.look(now);
        let memory = self.memory.borrow();
        // Waits for a write that is under way.
        let mut store = lock(&self.store);
        if let (Some(addresses), true) = (memory.unwritten(), store.is_writable())
            && let Err(error) = store.write(addresses)
        {
            log::warn!("cannot write state file {}: {error}", self.shown);
        }
    }

    fn look(&self, now: Instant) {
        if let Some(knowledge) = &*self.knowledge.borrow() {
            let (in_use, ever_valid) = knowledge.ever_valid(now);
            self.memory.borrow_mut().learn(in_use, ever_valid);
        }
    }
}

struct Keeping {
    keeper: Keeper,
    /// Of the write that is under way.
    outcome: Option<Left<io::Result<()>>>,
    /// The last write failed, which was said.
    is_failing: bool,
}

impl Keeping {
    fn take_outcome(&mut self) {
        let Some(outcome) = &mut self.outcome else {
            return;
        };
        let result = match outcome.take() {
            Ok(result) => result,
            Err(Missing::NotYet) => return,
            Err(Missing::Lost) => Err(io::Error::other("the writer ended")),
        };
        self.outcome = None;
        let failed = result.is_err();
        let shown = &self.keeper.shown;
        match result {
            Err(error) if !self.is_failing => {
                log::warn!("cannot write state file {shown}: {error}; going on, trying again");
            }
            Ok(()) if self.is_failing => log::info!("state file {shown} is written again"),
            _ => {}
        }
        self.is_failing = failed;
        self.keeper.memory.borrow_mut().written(match failed {
            true => Outcome::Failed,
            false => Outcome::Done,
        });
    }
}

impl Task for Keeping {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        if self.keeper.is_retired.get() {
            return Next::Done;
        }
        self.take_outcome();
        self.keeper.look(cx.now);
        if let Some(knowledge) = &*self.keeper.knowledge.borrow()
            && !knowledge.has_valid()
        {
            knowledge.bring_back(self.keeper.memory.borrow().addresses(), cx);
        }
        if let Some(addresses) = self.keeper.memory.borrow_mut().due(cx.now) {
            let outcome = self.outcome.insert(Left::default());
            cx.submit(Box::new(Writing {
                store: Arc::clone(&self.keeper.store),
                addresses,
                outcome: outcome.clone(),
                mailbox: cx.mailbox(),
                keeping: cx.id(),
            }));
        }
        Next::Wait(Some(cx.now + LOOK))
    }
}

/// One write, on a worker: flash can take a second for it, which nobody else is to wait for.
struct Writing {
    store: Arc<Mutex<Store>>,
    addresses: Vec<SocketAddr>,
    outcome: Left<io::Result<()>>,
    mailbox: Mailbox,
    keeping: TaskId,
}

impl Session for Writing {
    fn turn(&mut self, _: &mut TurnContext<'_>) -> Turn {
        let result = lock(&self.store).write(&self.addresses);
        self.outcome.leave(result);
        self.mailbox.wake(self.keeping);
        Turn::Done
    }

    fn interests<'a>(&'a self, _: &mut Interests<'a>) {}
}

fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often it is looked at what is known. What is lost when the power fails is this much, and what was not due to be written.
const LOOK: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::thread;

    use super::super::memory::FIRST;
    use super::*;
    use crate::engine::Reactor;

    struct Fixed {
        brought_back: Rc<Cell<usize>>,
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    impl Knowledge for Fixed {
        fn ever_valid(&self, _: Instant) -> (Option<SocketAddr>, Vec<SocketAddr>) {
            (Some(address(2)), vec![address(1), address(2)])
        }

        fn bring_back(&self, addresses: &[SocketAddr], _: &mut Cx<'_>) {
            self.brought_back.set(addresses.len());
        }

        fn has_valid(&self) -> bool {
            false
        }
    }

    struct Follow(Option<(Keeper, Box<dyn Knowledge>)>);

    impl Task for Follow {
        fn run(&mut self, cx: &mut Cx<'_>) -> Next {
            if let Some((keeper, knowledge)) = self.0.take() {
                keeper.follow(knowledge, cx);
            }
            Next::Done
        }
    }

    #[test]
    fn a_running_program_writes_by_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let keeper = Keeper::open(&path, Instant::now().checked_sub(FIRST).unwrap());
        let brought_back = Rc::default();
        let knowledge = Box::new(Fixed {
            brought_back: Rc::clone(&brought_back),
        });
        let mut reactor = Reactor::new(1).unwrap();
        let mailbox = reactor.mailbox();
        reactor.spawn(Box::new(Follow(Some((keeper.clone(), knowledge)))));
        let written = thread::spawn(move || {
            let limit = Instant::now() + Duration::from_secs(20);
            while Store::open(&path).1.addresses.is_empty() && Instant::now() < limit {
                thread::sleep(Duration::from_millis(5));
            }
            mailbox.stop();
            Store::open(&path).1.addresses
        });
        reactor.run().unwrap();
        assert_eq!(written.join().unwrap(), [address(2), address(1)]);
        assert_eq!(brought_back.get(), 2, "nobody is valid");
    }
}
