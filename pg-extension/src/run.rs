//! A run of events, and how an event of it is encoded: after the first one of a watch, the values of its payload are enough.

use std::borrow::Cow;

use pgrx::pg_sys;
use tidings_wire::segment::{self, Event};

use crate::payload::Outline;

/// Events of one subtransaction, one behind the other.
pub struct Run {
    /// The subtransaction that captured it.
    pub subxid: pg_sys::SubTransactionId,
    /// Where it starts in the bytes; it ends where the next one starts.
    pub start: usize,
    /// How many events the transaction had captured before it.
    pub ordinal: i64,
    /// How many it has.
    pub events: i32,
    /// How many bytes it would have more if it had every payload whole.
    saved: usize,
    /// The outlines that it has met, by the number that they have in it.
    outlines: Vec<Met>,
}

/// Whoever reads a run makes at most so many times its bytes of it, however long an outline is and however short its values are.
const MOST_SAVED: usize = 16;

/// An outline that a run has met.
struct Met {
    /// Its number in this process.
    number: u64,
    /// The run holds it. The first event has its payload whole: a transaction of one row has no use for an outline.
    appended: bool,
}

/// The event of a captured change.
pub struct Captured<'a> {
    /// The topic it goes to.
    pub topic: &'a str,
    /// The event name.
    pub event: &'a str,
    /// How its payload looks.
    pub outline: &'a Outline,
    /// Its payload, or only the values in it, each ended by a NUL.
    pub payload: &'a str,
    /// Which of the two.
    pub whole: bool,
}

impl Run {
    /// A run without events.
    pub fn new(subxid: pg_sys::SubTransactionId, start: usize, ordinal: i64) -> Self {
        Self { subxid, start, ordinal, events: 0, saved: 0, outlines: Vec::new() }
    }

    /// Whether an event with this outline is there, so that the values will do for the next one.
    pub fn has_met(&self, outline: &Outline) -> bool {
        self.find(outline).is_some()
    }

    fn find(&self, outline: &Outline) -> Option<usize> {
        self.outlines.iter().position(|met| met.number == outline.number)
    }

    /// Appends an event to the bytes, whole if need be; it is counted elsewhere.
    pub fn append(&mut self, bytes: &mut Vec<u8>, captured: &Captured<'_>) {
        let Captured { topic, event, outline, payload, whole } = *captured;
        let met = self.find(outline);
        let saved = self.saved + outline.text.len();
        let saves_enough = saved / MOST_SAVED > bytes.len() - self.start;
        if let Some(number) = met.filter(|_| !whole && !saves_enough) {
            let number = number as u8;
            self.saved = saved;
            if !std::mem::replace(&mut self.outlines[usize::from(number)].appended, true) {
                segment::append_outline(bytes, number, &outline.text);
            }
            segment::append_filled(bytes, topic, event, number, payload);
            return;
        }
        if met.is_none() && self.outlines.len() < segment::OUTLINES && outline.text.len() <= segment::MAX_OUTLINE {
            self.outlines.push(Met { number: outline.number, appended: false });
        }
        // The run has saved enough, or rendering the values has run SQL that began another one.
        let filled = if whole { None } else { segment::fill(&outline.text, payload) };
        let payload = filled.map_or(Cow::Borrowed(payload), Cow::Owned);
        segment::append(bytes, &Event { topic, event, payload });
    }
}
