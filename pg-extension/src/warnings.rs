//! Warnings that a writer gets at most once in a transaction, however many rows they are about.

use std::cell::Cell;
use std::sync::atomic::Ordering::SeqCst;

use crate::{errors, shared};

thread_local! {
    /// The transaction has warned of an event that could not be sent.
    static SKIPPED: Cell<bool> = const { Cell::new(false) };
    /// The transaction has warned of a value that is sent in another form.
    static OTHER_FORM: Cell<bool> = const { Cell::new(false) };
}

/// Counts an event that cannot be sent, and warns of it.
pub fn event_skipped(detail: &str) {
    if let Some(db) = shared::my_database() {
        db.skipped.fetch_add(1, SeqCst);
    }
    if !SKIPPED.replace(true) {
        errors::warn("tidings: a change is not announced", detail);
    }
}

/// Warns of a value that is sent as text or NULL instead of its JSON.
pub fn value_in_other_form(detail: &str) {
    if !OTHER_FORM.replace(true) {
        errors::warn("tidings: a value is sent in another form", detail);
    }
}

/// Forgets the warnings, at the end of a transaction.
pub fn reset() {
    SKIPPED.set(false);
    OTHER_FORM.set(false);
}
