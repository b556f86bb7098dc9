//! The encoded events of a transaction, in runs. A run belongs to one subtransaction, and its events are consecutive.
//!
//! Rolling back a savepoint removes its runs from the end; releasing one hands its runs to the parent. Where triggers
//! write, an event may be captured before another one that precedes it by rank ([`crate::capture::command`]). Such
//! events get separate runs, because an encoded event refers to the ones encoded before it.

use pgrx::pg_sys;
use tidings_wire::segment;

use crate::capture::command;
use crate::capture::encoder::{Encoder, Run};
use crate::capture::rank::Rank;

/// Above this many bytes the current subtransaction's events are written early. Large enough for lz4 to find
/// repetitions, small enough that a backend's memory stays flat while it updates millions of rows.
pub const FLUSH_AT: usize = 256 * 1024;

/// The most memory for events that a backend keeps from one transaction to the next, in bytes.
const KEPT_EVENTS: usize = 64 * 1024;

/// The most places for runs that a backend keeps from one transaction to the next.
const KEPT_RUNS: usize = 64;

/// The events that the transaction has captured and not yet written.
pub struct Runs {
    bytes: Vec<u8>,
    runs: Vec<Run>,
    /// How the events of the last run are encoded.
    encoder: Encoder,
    /// The number of events that the transaction has captured.
    captured: i64,
    /// The highest rank of an event so far.
    highest: Rank,
    /// No future event has a lower rank than this.
    settled: Rank,
    /// Some events were captured before others that precede them.
    is_tangled: bool,
    /// The number of captured events up to the last one that was written. Some before it may not have been written.
    written_to: i64,
    /// The highest rank of an event that was written.
    written_rank: Rank,
    /// A segment was written, so the relay must be woken after the commit.
    has_written: bool,
}

/// Decides which runs may share a segment: those that no other event is, or ever will be, between.
pub struct Joining {
    /// Commands are running that may still have events between any two runs.
    is_nested: bool,
    /// This is the last write of the transaction.
    is_last: bool,
    /// See [`Runs`].
    is_tangled: bool,
    /// See [`Runs`].
    written_to: i64,
    /// See [`Runs`].
    written_rank: Rank,
}

impl Runs {
    /// No events.
    pub const NONE: Self = Self {
        bytes: Vec::new(),
        runs: Vec::new(),
        encoder: Encoder::NEW,
        captured: 0,
        highest: Rank::FIRST,
        settled: Rank::FIRST,
        is_tangled: false,
        written_to: 0,
        written_rank: Rank::FIRST,
        has_written: false,
    };

    /// The size of the encoded events in bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are no events.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whether the transaction has written a segment.
    pub fn has_written(&self) -> bool {
        self.has_written
    }

    /// The run that the subtransaction's next event would continue, if there is one.
    fn current(&self, subxid: pg_sys::SubTransactionId) -> Option<&Run> {
        self.runs.last().filter(|run| run.subxid == subxid && run.ordinal + i64::from(run.events) == self.captured)
    }

    /// Counts one more event. Returns the run, the bytes to append it to, and what it can refer to.
    pub fn next(
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
        let run = self.runs.last_mut().expect("the last run has this rank now");
        run.events += 1;
        (run, &mut self.bytes, &mut self.encoder)
    }

    /// Makes the last run accept an event of another rank. The run continues if no future event can be between the two
    /// ranks; otherwise a new run begins.
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

    /// Whether the current subtransaction has enough events for an early write.
    pub fn is_full(&self, subxid: pg_sys::SubTransactionId) -> bool {
        self.bytes.len() > FLUSH_AT && self.bytes.len() - self.runs[self.first_of(subxid)].start > FLUSH_AT
    }

    /// Whether a subtransaction that is about to be released has events, and the buffer is full.
    pub fn is_full_at_release_of(&self, subxid: pg_sys::SubTransactionId) -> bool {
        self.bytes.len() > FLUSH_AT && self.first_of(subxid) < self.runs.len()
    }

    /// The index of the first run of the subtransaction and its children. Their runs are always the last ones.
    fn first_of(&self, subxid: pg_sys::SubTransactionId) -> usize {
        self.runs.partition_point(|run| run.subxid < subxid)
    }

    /// A copy of each run as a segment of its own, with the segment's order in its transaction.
    pub fn copies(&self) -> Vec<(i64, Vec<u8>)> {
        let ends = self.runs.iter().skip(1).map(|run| run.start).chain([self.bytes.len()]);
        let copy = |(run, end): (&Run, usize)| {
            let segment = [&[segment::VERSION], &self.bytes[run.start..end]].concat();
            (run.first.ordinal(run.ordinal), segment)
        };
        self.runs.iter().zip(ends).map(copy).collect()
    }

    /// Takes all events out, to write them.
    pub fn take_all(&mut self) -> (Vec<u8>, Vec<Run>) {
        let taken = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.runs));
        self.note_written(&taken.1);
        taken
    }

    /// Takes the events of the subtransaction and its children out, to write them.
    pub fn take_current(&mut self, subxid: pg_sys::SubTransactionId) -> (Vec<u8>, Vec<Run>) {
        let first = self.first_of(subxid);
        if first == 0 {
            return self.take_all();
        }
        let start = self.runs.get(first).map_or(self.bytes.len(), |run| run.start);
        let mut runs = self.runs.split_off(first);
        for run in &mut runs {
            run.start -= start;
        }
        self.note_written(&runs);
        (self.bytes.split_off(start), runs)
    }

    fn note_written(&mut self, runs: &[Run]) {
        if let Some(highest) = runs.iter().map(|run| run.last).max() {
            self.has_written = true;
            self.written_to = self.captured;
            self.written_rank = self.written_rank.max(highest);
        }
    }

    /// Takes memory back for the next events.
    pub fn give_back(&mut self, mut bytes: Vec<u8>, mut runs: Vec<Run>) {
        if self.bytes.is_empty() && self.runs.is_empty() {
            bytes.clear();
            runs.clear();
            (self.bytes, self.runs) = (bytes, runs);
        }
    }

    /// Hands the runs of a released subtransaction to its parent.
    pub fn commit_subtransaction(&mut self, subxid: pg_sys::SubTransactionId, parent: pg_sys::SubTransactionId) {
        let first = self.first_of(subxid);
        for run in &mut self.runs[first..] {
            run.subxid = parent;
        }
    }

    /// Removes the runs of a subtransaction that was rolled back.
    pub fn abort_subtransaction(&mut self, subxid: pg_sys::SubTransactionId) {
        let first = self.first_of(subxid);
        if let Some(run) = self.runs.get(first) {
            self.bytes.truncate(run.start);
            // The numbers of these events can be used again: no later event is left, neither here nor in the log.
            self.captured = run.ordinal;
            self.written_to = self.written_to.min(run.ordinal);
            self.runs.truncate(first);
            self.encoder.clear();
        }
    }

    /// Forgets the transaction, and memory that an ordinary transaction does not need.
    pub fn reset(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_EVENTS);
        self.runs.clear();
        self.runs.shrink_to(KEPT_RUNS);
        self.encoder.shrink();
        (self.captured, self.has_written) = (0, false);
        (self.highest, self.settled, self.is_tangled) = (Rank::FIRST, Rank::FIRST, false);
        (self.written_to, self.written_rank) = (0, Rank::FIRST);
    }

    /// What the last write of the transaction may join.
    pub fn joining_at_end(&self) -> Joining {
        let Self { is_tangled, written_to, written_rank, .. } = *self;
        Joining { is_nested: false, is_last: true, is_tangled, written_to, written_rank }
    }

    /// What a write before the end of the transaction may join, in a trigger or not.
    pub fn joining_early(&self, by_trigger: bool) -> Joining {
        Joining { is_nested: command::is_nested(by_trigger), is_last: false, ..self.joining_at_end() }
    }
}

impl Joining {
    /// Whether these runs are in order and can all share one segment.
    pub fn joins_all(&self, runs: &[Run]) -> bool {
        !self.is_tangled && runs.windows(2).all(|pair| self.joins(&pair[0], &pair[1]))
    }

    /// Whether no event is, or ever will be, between two runs.
    pub fn joins(&self, a: &Run, b: &Run) -> bool {
        let adjoins = a.ordinal + i64::from(a.events) == b.ordinal;
        let is_after_written = a.ordinal >= self.written_to;
        if a.last == b.first {
            adjoins || is_after_written
        } else if self.is_tangled {
            self.is_last && (a.last > self.written_rank || a.last == self.written_rank && is_after_written)
        } else {
            adjoins && !self.is_nested
        }
    }
}
