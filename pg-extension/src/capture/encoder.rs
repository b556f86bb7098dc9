//! A run of events, and how an event of it is encoded: an outline once, and then of each event what is new in its
//! values.

use pgrx::pg_sys;
use tidings_wire::Row;
use tidings_wire::outline::MAX_OUTLINE;
use tidings_wire::segment::{self, Event};

use crate::capture::command::Rank;
use crate::capture::payload::Outline;

/// Events of one subtransaction, one behind the other.
pub struct Run {
    /// The subtransaction that captured it.
    pub subxid: pg_sys::SubTransactionId,
    /// The rank of its first event.
    pub first: Rank,
    /// The rank of its last event. Ranks do not fall within a run.
    pub last: Rank,
    /// Where it starts in the bytes; it ends where the next one starts.
    pub start: usize,
    /// How many events the transaction had captured before it.
    pub ordinal: i64,
    /// How many it has.
    pub events: i32,
    /// At most so many bytes of JSON come of its changes.
    told: usize,
}

/// Memory for the values of a last event kept from one transaction to the next.
const KEEP: usize = 8 * 1024;

/// The event of a captured change.
pub struct Captured<'a> {
    /// The topic it goes to.
    pub topic: &'a str,
    /// The event name.
    pub event: &'a str,
    /// Its order in its transaction.
    pub rank: Rank,
    /// How its payload looks.
    pub outline: &'a Outline,
    /// The values in it. They are used up; the row is good for the next event once it is cleared.
    pub row: &'a mut Row,
}

/// What the events to come can refer to, in the run that they are added to. The numbers of the outlines are their
/// places.
pub struct Encoder {
    /// Those in use, and behind them others for their memory.
    outlines: Vec<Written>,
    used: usize,
}

/// An outline that stands in the run.
#[derive(Default)]
struct Written {
    /// Its number in this process.
    number: u64,
    /// The values of the last event that filled it.
    previous: Row,
}

impl Encoder {
    /// One that knows nothing.
    pub const NEW: Self = Self { outlines: Vec::new(), used: 0 };

    /// Forgets everything: another run begins, or goes on.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// Gives back the memory that a transaction with one outline does not need.
    pub fn shrink(&mut self) {
        self.clear();
        self.outlines.truncate(1);
        for written in &mut self.outlines {
            written.previous.clear();
            written.previous.shrink_to(KEEP);
        }
    }

    /// The place of an outline, and whether it stands in the run; none if there is no room for one more.
    fn place(&mut self, outline: &Outline) -> Option<(u8, bool)> {
        let known = self.outlines[..self.used].iter().position(|written| written.number == outline.number);
        if known.is_none() {
            if self.used == segment::OUTLINES || outline.text.len() > MAX_OUTLINE {
                return None;
            }
            self.used += 1;
            self.outlines.resize_with(self.outlines.len().max(self.used), Written::default);
            self.outlines[self.used - 1].number = outline.number;
        }
        Some((known.unwrap_or(self.used - 1) as u8, known.is_some()))
    }
}

impl Run {
    /// A run without events.
    pub fn new(subxid: pg_sys::SubTransactionId, start: usize, ordinal: i64, rank: Rank) -> Self {
        Self { subxid, first: rank, last: rank, start, ordinal, events: 0, told: 0 }
    }

    /// Appends an event to the bytes; it is counted elsewhere.
    pub fn append(&mut self, bytes: &mut Vec<u8>, encoder: &mut Encoder, captured: Captured<'_>) {
        let Captured { topic, event, outline, row, .. } = captured;
        self.told += outline.widest(row);
        let Some((number, is_written)) = encoder.place(outline) else {
            return segment::append(bytes, &Event { topic, event, payload: outline.fill(row).into() });
        };
        let previous = &mut encoder.outlines[usize::from(number)].previous;
        let before = bytes.len();
        if is_written {
            segment::append_filled(bytes, number, topic, row, previous);
        }
        // The first event, or one that would make the run grow too much when it is read, stands for itself. Then its
        // values grow at most sixfold, and its outline, by the phrases that there are, about elevenfold.
        if !is_written || self.told / segment::MAX_GROWTH > bytes.len() - self.start {
            bytes.truncate(before);
            previous.clear();
            segment::append_outline(bytes, number, event, &outline.short);
            segment::append_filled(bytes, number, topic, row, previous);
        }
        if row.size() <= segment::MAX_PREVIOUS {
            // It may have had more in it, which was too long.
            row.shrink_to(segment::MAX_PREVIOUS);
            std::mem::swap(previous, row);
        } else {
            previous.clear();
        }
    }
}
