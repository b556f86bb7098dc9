//! A run of events, and how an event in it is encoded: its outline once, then only what is new in the values of each
//! further event.

use pgrx::pg_sys;
use tidings_wire::Row;
use tidings_wire::outline::MAX_OUTLINE;
use tidings_wire::segment::{self, Event};

use crate::capture::payload::PayloadPlan;
use crate::capture::rank::Rank;
use crate::log::lenders::FirstOutline;

/// Consecutive events of one subtransaction.
pub struct Run {
    /// The subtransaction that captured them.
    pub subxid: pg_sys::SubTransactionId,
    /// The rank of the first event.
    pub first: Rank,
    /// The rank of the last event. Ranks never decrease within a run.
    pub last: Rank,
    /// Where the run starts in the buffer. It ends where the next run starts.
    pub start: usize,
    /// The number of events that the transaction had captured before it.
    pub ordinal: i64,
    /// The number of its events.
    pub events: i32,
    /// The outline that it begins with.
    pub outline: Option<FirstOutline>,
    /// Upper bound of the JSON that its changes render to, in bytes.
    max_rendered: usize,
}

/// The most memory for the values of a previous event that is kept from one transaction to the next, in bytes.
const KEPT_PREVIOUS: usize = 8 * 1024;

/// The event of a captured change.
pub struct Captured<'a> {
    /// Its topic.
    pub topic: &'a str,
    /// The event name.
    pub event: &'a str,
    /// Its order in the transaction.
    pub rank: Rank,
    /// How its payload is made.
    pub plan: &'a PayloadPlan,
    /// The values of the payload. Their memory may be swapped for that of an earlier event, so the caller clears the
    /// row before it uses it again.
    pub row: &'a mut Row,
}

/// What the next events of a run can refer to. An outline's number in the run is its index here.
pub struct Encoder {
    /// The outlines in use, then unused ones that keep their memory.
    outlines: Vec<Written>,
    used: usize,
}

/// An outline that the run contains.
#[derive(Default)]
struct Written {
    /// The number of its plan in this process.
    plan: u64,
    /// The values of the last event that filled it.
    previous: Row,
}

impl Encoder {
    /// An encoder for an empty run.
    pub const NEW: Self = Self { outlines: Vec::new(), used: 0 };

    /// Forgets all outlines, because the next event is added to another run.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// Releases memory that a transaction with one outline does not need.
    pub fn shrink(&mut self) {
        self.clear();
        self.outlines.truncate(1);
        for written in &mut self.outlines {
            written.previous.clear();
            written.previous.shrink_to(KEPT_PREVIOUS);
        }
    }

    /// The number of a plan's outline, and whether the run contains it already. None if there is no room for another
    /// one.
    fn place(&mut self, plan: &PayloadPlan) -> Option<(u8, bool)> {
        let known = self.outlines[..self.used].iter().position(|written| written.plan == plan.number);
        if known.is_none() {
            if self.used == segment::OUTLINES || plan.outline.len() > MAX_OUTLINE {
                return None;
            }
            self.used += 1;
            self.outlines.resize_with(self.outlines.len().max(self.used), Written::default);
            self.outlines[self.used - 1].plan = plan.number;
        }
        Some((known.unwrap_or(self.used - 1) as u8, known.is_some()))
    }
}

impl Run {
    /// A run without events.
    pub fn new(subxid: pg_sys::SubTransactionId, start: usize, ordinal: i64, rank: Rank) -> Self {
        Self { subxid, first: rank, last: rank, start, ordinal, events: 0, outline: None, max_rendered: 0 }
    }

    /// Appends an event to the bytes. The caller counts it.
    pub fn append(&mut self, bytes: &mut Vec<u8>, encoder: &mut Encoder, captured: Captured<'_>) {
        let Captured { topic, event, plan, row, .. } = captured;
        self.max_rendered += plan.max_length(row);
        let Some((number, is_written)) = encoder.place(plan) else {
            return segment::append(bytes, &Event { topic, event, payload: plan.fill(row).into() });
        };
        let previous = &mut encoder.outlines[usize::from(number)].previous;
        let before = bytes.len();
        if is_written {
            segment::append_filled(bytes, number, topic, row, previous);
        }
        // An event refers to no earlier one if it is the first, or if the run would otherwise grow too much when it is
        // read. By itself an event grows at most sixfold by its values, and about elevenfold by the phrases of its
        // outline.
        if !is_written || self.max_rendered / segment::MAX_GROWTH > bytes.len() - self.start {
            bytes.truncate(before);
            previous.clear();
            segment::append_outline(bytes, number, event, &plan.stored_outline);
            if before == self.start {
                self.outline = Some(FirstOutline { number: plan.number, length: bytes.len() - before });
            }
            segment::append_filled(bytes, number, topic, row, previous);
        }
        if row.size() <= segment::MAX_PREVIOUS {
            // The row's memory may be larger, if it held a payload that was too long.
            row.shrink_to(segment::MAX_PREVIOUS);
            std::mem::swap(previous, row);
        } else {
            previous.clear();
        }
    }
}
