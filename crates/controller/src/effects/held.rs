//! Connections of calls that have ended, until the engine has decided what follows. However busy this machine is, a node's
//! next call finds its connection open.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kubefledged_engine::BatchId;

/// See the module. `B` is a borrowed connection. Clones share it.
#[derive(Debug)]
pub struct Held<B>(Arc<Mutex<State<B>>>);

#[derive(Debug)]
struct State<B> {
    /// The engine has not handled the end of these yet.
    ended: HashMap<BatchId, B>,
    /// It has, and its commands are not carried out yet.
    handled: Vec<B>,
}

impl<B> Clone for Held<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B> Default for Held<B> {
    fn default() -> Self {
        let (ended, handled) = (HashMap::new(), Vec::new());
        Self(Arc::new(Mutex::new(State { ended, handled })))
    }
}

impl<B> Held<B> {
    /// Holds a connection. The caller tells the engine of the batch's end at once.
    pub fn hold(&self, batch: BatchId, connection: B) {
        self.state().ended.insert(batch, connection);
    }

    /// The engine handles the end of a batch.
    pub fn handled(&self, batch: BatchId) {
        let mut state = self.state();
        if let Some(connection) = state.ended.remove(&batch) {
            state.handled.push(connection);
        }
    }

    /// The commands that followed have begun: what none of them uses is returned.
    pub fn release(&self) {
        // Returned after the lock.
        let handled = std::mem::take(&mut self.state().handled);
        drop(handled);
    }

    fn state(&self) -> MutexGuard<'_, State<B>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_held_until_the_commands_have_begun_that_follow_its_end() {
        let (held, connection) = (Held::default(), Arc::new(()));
        let [first, second] = [1, 2].map(BatchId);
        held.hold(first, connection.clone());
        held.release();
        assert_eq!(Arc::strong_count(&connection), 2, "its end is not handled");
        held.handled(second);
        held.handled(first);
        assert_eq!(
            Arc::strong_count(&connection),
            2,
            "its commands are to come"
        );
        held.release();
        assert_eq!(Arc::strong_count(&connection), 1);
    }
}
