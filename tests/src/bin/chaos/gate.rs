//! A gate before everything that commits, or flushes what it reads, so that a fault can strike while nobody does.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use tidings_tests::until;

/// Where writers and readers of the log wait while it is closed.
#[derive(Debug, Default)]
pub struct Gate {
    is_closed: AtomicBool,
    /// How many are inside.
    inside: AtomicUsize,
}

impl Gate {
    /// False while it is closed. If it returns true, [`Self::leave`] must follow.
    pub fn enter(&self) -> bool {
        self.inside.fetch_add(1, SeqCst);
        let is_open = !self.is_closed.load(SeqCst);
        if !is_open {
            self.leave();
        }
        is_open
    }

    /// Whoever has entered is out again.
    pub fn leave(&self) {
        self.inside.fetch_sub(1, SeqCst);
    }

    /// Closes it, and waits until nobody is inside. It stays closed until the result is dropped.
    pub fn close(&self) -> Closed<'_> {
        self.is_closed.store(true, SeqCst);
        let closed = Closed(self);
        until("the writers pause", || self.inside.load(SeqCst) == 0);
        closed
    }
}

/// While this exists, nobody enters.
#[derive(Debug)]
pub struct Closed<'a>(&'a Gate);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.is_closed.store(false, SeqCst);
    }
}
