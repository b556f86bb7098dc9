//! The events of the running transaction, from the trigger to just before the commit, when they become segments.
//!
//! A transaction with many events writes some of them early. Such a write includes only the events of the current
//! subtransaction, because its rows disappear when that subtransaction is rolled back.

use std::cell::{Cell, RefCell};

use pgrx::prelude::*;
use tidings_wire::segment::{self, Event, Recheck};

use crate::capture::encoder::{Captured, Encoder, Run};
use crate::capture::rank::Rank;
use crate::capture::runs::{Joining, Runs};
use crate::foreign::infallible::GetCurrentSubTransactionId;
use crate::log::endings;
use crate::log::write::{self, NewSegment, write_segment};
use crate::shared;

/// A segment of at most this many bytes is never stored out of line, so it can be written without a snapshot, which
/// would be one more for all writers to wait for.
const IN_LINE: usize = 1500;

/// From PostgreSQL 18 on, builds for developers require a snapshot for every row of such a table.
const IS_CHECKED: bool = cfg!(feature = "pg18");

/// The size of the memory context in which segments are written, in bytes. An ordinary write needs no more.
const WRITE_CONTEXT: usize = 8 * 1024;

thread_local! {
    static BUFFER: RefCell<Runs> = const { RefCell::new(Runs::NONE) };
    /// The memory context in which segments are written at the end of a (sub)transaction.
    static CONTEXT: Cell<Option<pg_sys::MemoryContext>> = const { Cell::new(None) };
}

/// Adds an event that was published. The caller has checked its names.
pub fn append(event: &Event<'_>) {
    add(Rank::now(), false, |_, bytes, _| segment::append(bytes, event));
}

/// Adds the event of a captured change. The caller has checked its names.
pub fn append_captured(captured: Captured<'_>) {
    add(captured.rank, true, |run, bytes, encoder| run.append(bytes, encoder, captured));
}

/// Adds a recheck. The caller has checked its text.
pub fn append_recheck(recheck: Recheck<'_>, rank: Rank, by_trigger: bool) {
    add(rank, by_trigger, |_, bytes, _| segment::append_recheck(bytes, recheck));
}

/// Adds one event, and writes those of the current subtransaction if they have become many.
fn add(rank: Rank, by_trigger: bool, append: impl FnOnce(&mut Run, &mut Vec<u8>, &mut Encoder)) {
    // SAFETY: called inside a transaction; the function reads a variable of this backend.
    let subxid = unsafe { GetCurrentSubTransactionId() };
    let full = BUFFER.with_borrow_mut(|buffer| {
        let (run, bytes, encoder) = buffer.next(subxid, rank, by_trigger);
        append(run, bytes, encoder);
        buffer.is_full(subxid)
    });
    if full {
        write_current(subxid, by_trigger);
    }
}

/// A copy of what the transaction has captured and not written, as segments, each with its order in the transaction.
pub fn copies() -> Vec<(i64, Vec<u8>)> {
    BUFFER.with_borrow(Runs::copies)
}

/// Whether the transaction has written a segment.
pub fn has_written() -> bool {
    BUFFER.with_borrow(Runs::has_written)
}

/// Forgets the transaction, at its end.
pub fn reset() {
    BUFFER.with_borrow_mut(Runs::reset);
}

/// Hands the events of a released subtransaction to its parent.
pub fn commit_subtransaction(subxid: pg_sys::SubTransactionId, parent: pg_sys::SubTransactionId) {
    BUFFER.with_borrow_mut(|buffer| buffer.commit_subtransaction(subxid, parent));
}

/// Removes the events of a subtransaction that was rolled back.
pub fn abort_subtransaction(subxid: pg_sys::SubTransactionId) {
    BUFFER.with_borrow_mut(|buffer| buffer.abort_subtransaction(subxid));
}

/// Writes all remaining events, at the end of the transaction, after a note that it is about to end. `is_final` if it
/// commits now, and is not prepared.
///
/// A transaction whose last segment is old writes another one, without events: the stamp of its last segment says when
/// it ended. The relay recognizes a prepared transaction by [`write::PREPARED`].
pub fn write_all(is_final: bool) {
    let (is_empty, has_written, bytes) =
        BUFFER.with_borrow(|buffer| (buffer.is_empty(), buffer.has_written(), buffer.size()));
    if is_empty && !has_written {
        return;
    }
    endings::begin();
    let write_all = || {
        if !is_empty {
            let write_as = WriteAs { is_final, is_first: !has_written };
            write(write_as, |buffer| (buffer.joining_at_end(), buffer.take_all()));
        }
        if is_empty || !is_final {
            let ordinal = if is_final { write::ENDED } else { write::PREPARED };
            write_segment(NewSegment { ordinal, events: 0, is_final, outline: None, entries: &mut Vec::new() });
        }
    };
    // The first segment since the server started needs a snapshot.
    if bytes <= IN_LINE && !IS_CHECKED && shared::first_xid().is_some() {
        in_context(write_all);
    } else {
        with_snapshot(write_all);
    }
}

/// Writes the events of a subtransaction that is about to be released, if the buffer is full. Once the next
/// subtransaction runs, these events could not be written before the commit, and thousands of savepoints would pile up.
pub fn write_released(subxid: pg_sys::SubTransactionId) {
    if BUFFER.with_borrow(|buffer| buffer.is_full_at_release_of(subxid)) {
        with_snapshot(|| write_current(subxid, false));
    }
}

/// Writes the events of the subtransaction and its children, before the end of the transaction.
fn write_current(subxid: pg_sys::SubTransactionId, by_trigger: bool) {
    let write_as = WriteAs { is_final: false, is_first: false };
    write(write_as, |buffer| (buffer.joining_early(by_trigger), buffer.take_current(subxid)));
}

/// When events are written.
#[derive(Clone, Copy)]
struct WriteAs {
    /// Right before the commit.
    is_final: bool,
    /// The transaction has written nothing before. Not known if the write is not final.
    is_first: bool,
}

/// Writes what `take` takes out of the buffer as segments. Runs with nothing between them share a segment.
fn write(write_as: WriteAs, take: impl FnOnce(&mut Runs) -> (Joining, (Vec<u8>, Vec<Run>))) {
    let WriteAs { is_final, is_first } = write_as;
    // The buffer is not borrowed while Postgres writes: that may run code that captures.
    let (joining, (mut bytes, runs)) = BUFFER.with_borrow_mut(take);
    if let [first, ..] = runs.as_slice()
        && joining.joins_all(&runs)
    {
        let (ordinal, events) = (first.first.ordinal(first.ordinal), runs.iter().map(|run| run.events).sum());
        let outline = first.outline.filter(|_| is_final && is_first);
        write_segment(NewSegment { ordinal, events, is_final, outline, entries: &mut bytes });
    } else {
        write_apart(is_final, &joining, &bytes, &runs);
    }
    BUFFER.with_borrow_mut(|buffer| buffer.give_back(bytes, runs));
}

/// Writes runs that are not in order, or can't all share one segment.
fn write_apart(is_final: bool, joining: &Joining, bytes: &[u8], runs: &[Run]) {
    let ends = runs.iter().skip(1).map(|run| run.start).chain([bytes.len()]);
    let mut runs: Vec<_> = runs.iter().zip(ends).map(|(run, end)| (run, &bytes[run.start..end])).collect();
    runs.sort_by_key(|(run, _)| (run.last, run.ordinal));
    for group in runs.chunk_by(|(a, _), (b, _)| joining.joins(a, b)) {
        let (first, _) = group[0];
        let events = group.iter().map(|(run, _)| run.events).sum();
        let mut entries: Vec<u8> = group.iter().flat_map(|(_, bytes)| *bytes).copied().collect();
        let ordinal = first.first.ordinal(first.ordinal);
        write_segment(NewSegment { ordinal, events, is_final, outline: None, entries: &mut entries });
    }
}

/// Runs `body` with an active snapshot. There may be none any more, and Postgres requires one to store a value out of
/// line.
fn with_snapshot(body: impl FnOnce()) {
    // SAFETY: inside a transaction that is still in progress.
    in_context(|| unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        body();
        pg_sys::PopActiveSnapshot();
    });
}

/// Runs `body` and frees at once what it allocates: otherwise each subtransaction would keep it until the commit.
fn in_context(body: impl FnOnce()) {
    // SAFETY: inside a transaction that is still in progress. The context lives as long as the process; what an error
    // leaves in it is freed by the next write.
    unsafe {
        let context = CONTEXT.get().unwrap_or_else(|| {
            pg_sys::AllocSetContextCreateInternal(
                pg_sys::TopMemoryContext,
                c"tidings write".as_ptr(),
                WRITE_CONTEXT,
                WRITE_CONTEXT,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            )
        });
        CONTEXT.set(Some(context));
        let before = pg_sys::MemoryContextSwitchTo(context);
        body();
        pg_sys::MemoryContextSwitchTo(before);
        pg_sys::MemoryContextReset(context);
    }
}
