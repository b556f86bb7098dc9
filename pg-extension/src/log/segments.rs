//! Reads the log for the proxy's live connection: everything after a place, segment by segment.

use std::borrow::Cow;

use tidings_wire::position::END;

use crate::log::scan::open_log;
use crate::log::ticks::{TickReader, Ticks, open_ticks};

/// A segment of the log, or a tick without events.
pub struct Row {
    /// The tick.
    pub tick: u64,
    /// The tick before it.
    pub previous: u64,
    /// How many events of the tick come before the segment.
    pub first: u32,
    /// Whether no segment of the tick follows.
    pub is_last: bool,
    /// The segment; `None` for a tick without events.
    pub data: Option<Vec<u8>>,
}

/// Reads the log after the `n`-th event of a tick, until there are `max_bytes` of segments, but at least one.
/// `complete` gets a segment as it is stored, and returns the whole of it. Called inside a transaction, with an active
/// snapshot.
pub fn read(tick: u64, n: u32, max_bytes: usize, complete: impl Fn(&[u8]) -> Cow<'_, [u8]>) -> Vec<Row> {
    let (tables, log) = (open_ticks(), open_log());
    let mut reader = TickReader::new(&log);
    let (mut rows, mut size) = (Vec::new(), 0);
    let mut ticks = Ticks::new(&tables, tick.saturating_add(u64::from(n == END)));
    while let Some(next) = ticks.next() {
        reader.read(&next);
        let (mut before, mut has_any) = (0, false);
        for (at, segment) in reader.segments.iter().enumerate() {
            let first = before;
            before += segment.events;
            if next.number == tick && before <= n {
                continue;
            }
            let data = reader.with_data(segment, |data| complete(data).into_owned());
            size += data.len();
            has_any = true;
            let is_last = at + 1 == reader.segments.len();
            rows.push(Row { tick: next.number, previous: next.previous, first, is_last, data: Some(data) });
            if size >= max_bytes {
                return rows;
            }
        }
        if !has_any && next.number > tick {
            rows.push(Row { tick: next.number, previous: next.previous, first: 0, is_last: true, data: None });
        }
    }
    rows
}
