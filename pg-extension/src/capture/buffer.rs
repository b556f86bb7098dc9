//! The events of the running transaction, from the trigger to just before commit.
//!
//! The events lie encoded in one vector, in runs: a run belongs to one subtransaction and has no gap in it. A
//! rolled-back savepoint takes its runs off the end; a released one hands them to its parent. Before commit the runs
//! become segments; an early flush writes those of the current subtransaction only, for a row it writes goes when that
//! subtransaction is rolled back.
//!
//! Runs are written by rank ([`crate::capture::command`]): where a trigger writes, an event may be captured before another one
//! that comes before it. Such events get separate runs, because encoded data refers to what was encoded before it.

use std::cell::{Cell, RefCell};

use pgrx::prelude::*;
use tidings_wire::segment::{self, Event};

use crate::capture::command::{self, Rank};
use crate::capture::encoder::{Captured, Encoder, Run};
use crate::capture::watch;
use crate::foreign::infallible::GetCurrentSubTransactionId;
use crate::log::write as log;
use crate::shared::{Database, State};
use crate::{errors, shared};

/// Above this many bytes the current subtransaction's events are written early. Large enough for lz4 to find
/// repetitions, small enough that a backend's memory stays flat under an update of millions of rows.
const FLUSH_AT: usize = 256 * 1024;

/// Memory a backend keeps from one transaction to the next.
const KEEP: usize = 64 * 1024;

/// Memory that an ordinary write finds in its context.
const KEPT_CONTEXT: usize = 8 * 1024;

struct Buffer {
    bytes: Vec<u8>,
    runs: Vec<Run>,
    /// How the events of the last run are written.
    encoder: Encoder,
    /// How many events the transaction has captured.
    captured: i64,
    /// The highest rank of an event so far.
    highest: Rank,
    /// No future event has a lower rank than this.
    settled: Rank,
    /// Some events were captured before others that come before them.
    is_tangled: bool,
    /// Some of the first so many captured events were written.
    written_to: i64,
    /// The highest rank of an event that was written.
    written_rank: Rank,
    /// A segment was written: the relay is to be told after commit.
    written: bool,
    /// The user was warned of an event that could not be sent.
    warned: bool,
    /// The user was warned that a value is sent in another form.
    warned_of_value: bool,
    /// What else is to be done after commit.
    after_commit: AfterCommit,
    /// A database whose relay was sent away until this transaction ends.
    paused: Option<&'static Database>,
}

/// What is to be done once the transaction has committed.
#[derive(Clone, Copy, Default)]
struct AfterCommit {
    recheck: bool,
    launcher: bool,
    install: bool,
}

thread_local! {
    static BUFFER: RefCell<Buffer> = const {
        RefCell::new(Buffer {
            bytes: Vec::new(),
            runs: Vec::new(),
            encoder: Encoder::NEW,
            captured: 0,
            highest: Rank::FIRST,
            settled: Rank::FIRST,
            is_tangled: false,
            written_to: 0,
            written_rank: Rank::FIRST,
            written: false,
            warned: false,
            warned_of_value: false,
            after_commit: AfterCommit { recheck: false, launcher: false, install: false },
            paused: None,
        })
    };
}

thread_local! {
    /// Where what a write allocates lies while it lasts.
    static CONTEXT: Cell<Option<pg_sys::MemoryContext>> = const { Cell::new(None) };
}

/// Registers the callbacks; called from `_PG_init`, inherited by every backend.
pub fn init() {
    // SAFETY: both functions have the right signature, live as long as the process, and never unwind where they may
    // not.
    unsafe {
        pg_sys::RegisterXactCallback(Some(at_transaction), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(at_subtransaction), std::ptr::null_mut());
    }
}

/// Adds one event. The names have been checked.
pub fn append(event: &Event<'_>) {
    // SAFETY: called inside a transaction.
    let subxid = unsafe { GetCurrentSubTransactionId() };
    let full = BUFFER.with_borrow_mut(|buffer| {
        let (_, bytes, _) = buffer.next(subxid, Rank::now(), false);
        segment::append(bytes, event);
        buffer.is_full(subxid)
    });
    if full {
        write(Pass::early(false), |buffer| buffer.take_current(subxid));
    }
}

/// Adds one event of a change. The names have been checked.
pub fn append_captured(captured: Captured<'_>) {
    // SAFETY: called inside a transaction.
    let subxid = unsafe { GetCurrentSubTransactionId() };
    let full = BUFFER.with_borrow_mut(|buffer| {
        let (run, bytes, encoder) = buffer.next(subxid, captured.rank, true);
        run.append(bytes, encoder, captured);
        buffer.is_full(subxid)
    });
    if full {
        write(Pass::early(true), |buffer| buffer.take_current(subxid));
    }
}

/// Warns, once a transaction, of an event that cannot be sent, and counts it.
pub fn warn_skipped(detail: &str) {
    if let Some(db) = shared::my_database() {
        db.skipped.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
    if !BUFFER.with_borrow_mut(|buffer| std::mem::replace(&mut buffer.warned, true)) {
        errors::warn("tidings: a change is not announced", detail);
    }
}

/// Warns, once per transaction, that a value is sent in another form.
pub fn warn_of_value(detail: &str) {
    if !BUFFER.with_borrow_mut(|buffer| std::mem::replace(&mut buffer.warned_of_value, true)) {
        errors::warn("tidings: a value is sent in another form", detail);
    }
}

/// Once this transaction has committed, the relay looks whether the extension is still there.
pub fn recheck_after_commit() {
    BUFFER.with_borrow_mut(|buffer| buffer.after_commit.recheck = true);
}

/// Once this transaction has committed, the launcher looks for new databases.
pub fn wake_launcher_after_commit() {
    BUFFER.with_borrow_mut(|buffer| buffer.after_commit.launcher = true);
}

/// Once this transaction has committed, this database has the extension.
pub fn installed_after_commit() {
    BUFFER.with_borrow_mut(|buffer| buffer.after_commit.install = true);
}

/// Once this transaction has ended, the database's relay may come back.
pub fn let_relay_back_after_transaction(db: &'static Database) {
    BUFFER.with_borrow_mut(|buffer| buffer.paused = Some(db));
}

impl Buffer {
    /// The run that the subtransaction's next event goes to, if that is no new one.
    fn current(&self, subxid: pg_sys::SubTransactionId) -> Option<&Run> {
        self.runs.last().filter(|run| run.subxid == subxid && run.ordinal + i64::from(run.events) == self.captured)
    }

    /// Counts one event more; gives the run and the bytes that it goes to, and what it can refer to.
    fn next(
        &mut self,
        subxid: pg_sys::SubTransactionId,
        rank: Rank,
        by_trigger: bool,
    ) -> (&mut Run, &mut Vec<u8>, &mut Encoder) {
        let rank = rank.max(self.settled);
        if self.current(subxid).is_none_or(|run| run.last != rank) {
            self.turn_to(subxid, rank, by_trigger);
        }
        self.captured += 1;
        let run = self.runs.last_mut().expect("there is one now");
        run.events += 1;
        (run, &mut self.bytes, &mut self.encoder)
    }

    /// Makes sure that the last run can take an event of another rank: it continues if no future event can come between
    /// the two.
    fn turn_to(&mut self, subxid: pg_sys::SubTransactionId, rank: Rank, by_trigger: bool) {
        let is_next = self.current(subxid).is_some_and(|run| run.last == self.highest && rank > run.last);
        if is_next && !command::is_nested(by_trigger) {
            let last = self.runs.len() - 1;
            self.runs[last].last = rank;
            self.settled = rank;
        } else {
            self.is_tangled |= rank < self.highest;
            self.runs.push(Run::new(subxid, self.bytes.len(), self.captured, rank));
            self.encoder.clear();
        }
        self.highest = self.highest.max(rank);
    }

    /// Whether the current subtransaction's events are many enough to be written.
    fn is_full(&self, subxid: pg_sys::SubTransactionId) -> bool {
        self.bytes.len() > FLUSH_AT && self.bytes.len() - self.runs[self.first_of(subxid)].start > FLUSH_AT
    }

    /// The first run of the subtransaction and its children: theirs are always the last ones.
    fn first_of(&self, subxid: pg_sys::SubTransactionId) -> usize {
        self.runs.partition_point(|run| run.subxid < subxid)
    }

    fn take_all(&mut self) -> (Vec<u8>, Vec<Run>) {
        (std::mem::take(&mut self.bytes), std::mem::take(&mut self.runs))
    }

    fn take_current(&mut self, subxid: pg_sys::SubTransactionId) -> (Vec<u8>, Vec<Run>) {
        let first = self.first_of(subxid);
        if first == 0 {
            return self.take_all();
        }
        let start = self.runs.get(first).map_or(self.bytes.len(), |run| run.start);
        let mut runs = self.runs.split_off(first);
        for run in &mut runs {
            run.start -= start;
        }
        (self.bytes.split_off(start), runs)
    }

    fn commit_subtransaction(&mut self, subxid: pg_sys::SubTransactionId, parent: pg_sys::SubTransactionId) {
        let first = self.first_of(subxid);
        for run in &mut self.runs[first..] {
            run.subxid = parent;
        }
    }

    fn abort_subtransaction(&mut self, subxid: pg_sys::SubTransactionId) {
        let first = self.first_of(subxid);
        if let Some(run) = self.runs.get(first) {
            self.bytes.truncate(run.start);
            // The numbers are free again: nothing behind them is left, neither here nor in the log.
            self.captured = run.ordinal;
            self.written_to = self.written_to.min(run.ordinal);
            self.runs.truncate(first);
            self.encoder.clear();
        }
    }

    /// Forgets the transaction, and memory that an ordinary one does not need.
    fn reset(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEEP);
        self.runs.clear();
        self.runs.shrink_to(64);
        self.encoder.shrink();
        (self.captured, self.written) = (0, false);
        (self.warned, self.warned_of_value) = (false, false);
        (self.highest, self.settled, self.is_tangled) = (Rank::FIRST, Rank::FIRST, false);
        (self.written_to, self.written_rank) = (0, Rank::FIRST);
        self.after_commit = AfterCommit::default();
        if let Some(db) = self.paused.take() {
            db.end_pause();
        }
    }
}

/// When runs are written, and what was written before. This decides which of them may share a segment.
struct Pass {
    /// Commands are running that may still have events between any of these.
    is_nested: bool,
    /// It is the last write of the transaction.
    is_last: bool,
    /// See [`Buffer`].
    is_tangled: bool,
    /// See [`Buffer`].
    written_to: i64,
    /// See [`Buffer`].
    written_rank: Rank,
}

impl Pass {
    /// A write before the end of the transaction, in a trigger or not.
    fn early(by_trigger: bool) -> Self {
        Self { is_nested: command::is_nested(by_trigger), is_last: false, ..Self::last() }
    }

    fn last() -> Self {
        let (is_tangled, written_to, written_rank) =
            BUFFER.with_borrow(|buffer| (buffer.is_tangled, buffer.written_to, buffer.written_rank));
        Self { is_nested: false, is_last: true, is_tangled, written_to, written_rank }
    }

    /// Whether no event is, or ever will be, between two runs.
    fn joins(&self, a: &Run, b: &Run) -> bool {
        let adjoins = a.ordinal + i64::from(a.events) == b.ordinal;
        let is_behind_written = a.ordinal >= self.written_to;
        if a.last == b.first {
            adjoins || is_behind_written
        } else if self.is_tangled {
            self.is_last && (a.last > self.written_rank || a.last == self.written_rank && is_behind_written)
        } else {
            adjoins && !self.is_nested
        }
    }
}

/// Writes what `take` takes out of the buffer as segments; runs with nothing between them share one.
fn write(pass: Pass, take: impl FnOnce(&mut Buffer) -> (Vec<u8>, Vec<Run>)) {
    let (mut bytes, mut runs) = BUFFER.with_borrow_mut(|buffer| {
        let taken = take(buffer);
        if let Some(highest) = taken.1.iter().map(|run| run.last).max() {
            buffer.written = true;
            buffer.written_to = buffer.captured;
            buffer.written_rank = buffer.written_rank.max(highest);
        }
        taken
    });
    if let [first, ..] = runs.as_slice()
        && !pass.is_tangled
        && runs.windows(2).all(|pair| pass.joins(&pair[0], &pair[1]))
    {
        let (ordinal, events) = (first.first.ordinal(first.ordinal), runs.iter().map(|run| run.events).sum());
        log::write(log::Segment { ordinal, events, bytes: &mut bytes });
    } else {
        write_apart(&pass, &bytes, &runs);
    }
    // The memory is good for the next events.
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.bytes.is_empty() && buffer.runs.is_empty() {
            bytes.clear();
            runs.clear();
            (buffer.bytes, buffer.runs) = (bytes, runs);
        }
    });
}

/// Writes runs that are not in order, or do not all share one segment.
fn write_apart(pass: &Pass, bytes: &[u8], runs: &[Run]) {
    let ends = runs.iter().skip(1).map(|run| run.start).chain([bytes.len()]);
    let mut runs: Vec<_> = runs.iter().zip(ends).map(|(run, end)| (run, &bytes[run.start..end])).collect();
    runs.sort_by_key(|(run, _)| (run.last, run.ordinal));
    for group in runs.chunk_by(|(a, _), (b, _)| pass.joins(a, b)) {
        let (first, _) = group[0];
        let events = group.iter().map(|(run, _)| run.events).sum();
        let mut bytes: Vec<u8> = group.iter().flat_map(|(_, bytes)| *bytes).copied().collect();
        log::write(log::Segment { ordinal: first.first.ordinal(first.ordinal), events, bytes: &mut bytes });
    }
}

/// Writes everything that is left, at the end of the transaction.
fn write_all() {
    if BUFFER.with_borrow(|buffer| !buffer.runs.is_empty()) {
        with_snapshot(|| write(Pass::last(), Buffer::take_all));
    }
}

/// Writes what a subtransaction has captured while it still runs, if the buffer is full: once the next one runs, this
/// one's events could not be written before the commit, and thousands of savepoints would pile up.
fn write_released(subxid: pg_sys::SubTransactionId) {
    if BUFFER.with_borrow(|buffer| buffer.bytes.len() > FLUSH_AT && buffer.first_of(subxid) < buffer.runs.len()) {
        with_snapshot(|| write(Pass::early(false), |buffer| buffer.take_current(subxid)));
    }
}

/// Runs `body` with a snapshot: maybe none is active any more, and Postgres asserts one for every row of a table that
/// may move values out of line. What is allocated meanwhile goes at once: a subtransaction that keeps any memory keeps
/// it until the commit.
fn with_snapshot(body: impl FnOnce()) {
    // SAFETY: inside a transaction that is still in progress. The context lives as long as the process; an error leaves
    // what is in it to the next one.
    unsafe {
        let context = CONTEXT.get().unwrap_or_else(|| {
            pg_sys::AllocSetContextCreateInternal(
                pg_sys::TopMemoryContext,
                c"tidings write".as_ptr(),
                KEPT_CONTEXT,
                KEPT_CONTEXT,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            )
        });
        CONTEXT.set(Some(context));
        let before = pg_sys::MemoryContextSwitchTo(context);
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        body();
        pg_sys::PopActiveSnapshot();
        pg_sys::MemoryContextSwitchTo(before);
        pg_sys::MemoryContextReset(context);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_transaction(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    use pg_sys::XactEvent::*;
    match event {
        XACT_EVENT_PRE_COMMIT | XACT_EVENT_PRE_PREPARE => write_all(),
        XACT_EVENT_COMMIT => BUFFER.with_borrow_mut(|buffer| {
            after_commit(buffer.written, buffer.after_commit);
            buffer.reset();
        }),
        XACT_EVENT_PREPARE | XACT_EVENT_ABORT => BUFFER.with_borrow_mut(Buffer::reset),
        _ => return,
    }
    if !matches!(event, XACT_EVENT_PRE_COMMIT | XACT_EVENT_PRE_PREPARE) {
        command::reset();
    }
    // What an aborted statement has left.
    watch::forget_altered();
}

/// Runs where an error would bring the whole server down: atomics and latches only.
fn after_commit(written: bool, todo: AfterCommit) {
    if !(written || todo.recheck || todo.launcher || todo.install) {
        return;
    }
    if todo.install {
        // SAFETY: set once when the backend connects.
        if shared::want(unsafe { pg_sys::MyDatabaseId })
            && let Some(db) = shared::my_database()
        {
            db.recheck();
        }
    } else if let Some(db) = shared::my_database().filter(|db| db.state() != State::Absent) {
        if written {
            db.announce();
        }
        if todo.recheck {
            db.recheck();
        }
    // SAFETY: set once when the backend connects.
    } else if written && shared::want(unsafe { pg_sys::MyDatabaseId }) {
        // The log exists here, whether or not the launcher already knows.
        shared::wake_launcher();
    }
    if todo.install || todo.launcher {
        shared::wake_launcher();
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_subtransaction(
    event: pg_sys::SubXactEvent::Type,
    subxid: pg_sys::SubTransactionId,
    parent: pg_sys::SubTransactionId,
    _arg: *mut std::ffi::c_void,
) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_PRE_COMMIT_SUB {
        write_released(subxid);
        return;
    }
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        command::abort_subtransaction(subxid);
    }
    BUFFER.with_borrow_mut(|buffer| match event {
        pg_sys::SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => buffer.commit_subtransaction(subxid, parent),
        pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB => buffer.abort_subtransaction(subxid),
        _ => {}
    });
}
