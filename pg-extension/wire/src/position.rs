//! A place in the total order of events.
//!
//! | text | meaning |
//! |---|---|
//! | `<tick>-<n>` | everything up to the n-th event of the tick has been seen |
//! | `<tick>` | the whole of that tick has been seen |
//! | either, then `:<stamp>:<xmin>:<xmax>:<xid>,<xid>…` | the same, and those of the later events that this snapshot sees |
//!
//! The last form is the result of `tidings.position()`. A snapshot is usually taken between two ticks, so its reader
//! knows some of the events in later ticks and not others. This ends with the first tick that begins with everything
//! the snapshot saw, or with a restart of the server after `stamp`.

use std::fmt;
use std::str::FromStr;

use crate::snapshot::{Snapshot, SnapshotError, number};

/// The longest text of a snapshot in bytes, enough for about 2,500 running transactions.
pub const MAX_TEXT: usize = 32 * 1024;

/// The longest text of a tick and a number. It has a bound of its own so that any accepted snapshot can be combined
/// with any tick and number.
const MAX_PLACE: usize = 30;

/// The `n` of a position after the last event of its tick.
pub const END: u32 = u32::MAX;

/// A place in the total order of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The tick: microseconds since the Unix epoch when it was cut; 0 is before the first one.
    pub tick: u64,
    /// The number of events of the tick that are at or before this place; [`END`] for all of them.
    pub n: u32,
    /// Later events that were seen, if the position is that of a snapshot.
    pub seen: Option<Box<Seen>>,
}

/// The snapshot of a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// A time on the clock of the ticks, after the last start of the server before the snapshot. All ticks from before
    /// that start have lower numbers.
    pub stamp: u64,
    /// What was seen.
    pub snapshot: Snapshot,
}

/// The text is not a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a position: expected <tick>-<n>, as in an event's id")]
pub struct PositionError;

impl From<SnapshotError> for PositionError {
    fn from(_: SnapshotError) -> Self {
        Self
    }
}

impl Position {
    /// The place of the n-th event of `tick`, counted from 1.
    pub fn at(tick: u64, n: u32) -> Self {
        Self { tick, n, seen: None }
    }

    /// The place after the last event of `tick`.
    pub fn after_tick(tick: u64) -> Self {
        Self::at(tick, END)
    }

    /// Tick and number, which order positions. The snapshot does not affect the order.
    pub fn place(&self) -> (u64, u32) {
        (self.tick, self.n)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.tick)?;
        if self.n != END {
            write!(f, "-{}", self.n)?;
        }
        let Some(seen) = &self.seen else { return Ok(()) };
        write!(f, ":{seen}")
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.stamp, self.snapshot)
    }
}

impl FromStr for Seen {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let (stamp, snapshot) = text.split_once(':').ok_or(PositionError)?;
        Ok(Self { stamp: number(stamp)?, snapshot: snapshot.parse()? })
    }
}

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let (place, rest) = match text.split_once(':') {
            Some((place, rest)) => (place, Some(rest)),
            None => (text, None),
        };
        if place.len() > MAX_PLACE || text.len() - place.len() > MAX_TEXT {
            return Err(PositionError);
        }
        let (tick, n) = match place.split_once('-') {
            Some((tick, n)) => (number(tick)?, u32::try_from(number(n)?).map_err(|_| PositionError)?),
            None => (number(place)?, END),
        };
        let seen = match rest {
            None => None,
            Some(rest) => Some(Box::new(rest.parse()?)),
        };
        Ok(Self { tick, n, seen })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_and_value_are_the_same_thing() {
        for text in ["0-0", "1766548000000000-12", "17", "5-1:9:10:20:10,15", "5:9:10:10:"] {
            assert_eq!(text.parse::<Position>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_texts_are_not_positions() {
        for text in [
            "",
            "-",
            "5-",
            "-5",
            "+5-1",
            "5-1-1",
            "5 -1",
            "5-4294967296",
            "9223372036854775808-1",
            "x",
            "5:1",
            "5-1:1:2",
            "5-1:1:2:3",
            "5-1:1:2:3:1",
            "5-1:1:2:3:2,2",
            "5-1:1:3:2:",
            "5-1:1:2:3:2:4",
            "5:1:0:0:",
            "5:1:0:3:",
            "5:1:2:4294967296:",
            "5:1:4294967296:4294967297:",
            "٥-1",
            "5-1\n",
            "earliest",
        ] {
            assert_eq!(text.parse::<Position>(), Err(PositionError), "{text:?}");
        }
        assert!(format!("{}5-1", "0".repeat(MAX_PLACE)).parse::<Position>().is_err());
        assert!(format!("5:1:2:99999999:{}", "2,".repeat(MAX_TEXT / 2)).parse::<Position>().is_err());
    }

    #[test]
    fn the_longest_snapshot_can_be_combined_with_any_tick_and_number() {
        let mut text = "5:1:100000:999999:100000".to_owned();
        let mut xid = 100_000;
        while text.len() + 7 <= MAX_TEXT {
            xid += 1;
            text.push_str(&format!(",{xid}"));
        }
        let position: Position = text.parse().unwrap();
        for place in [Position { tick: i64::MAX as u64, n: END - 1, ..position.clone() }, position] {
            assert_eq!(place.to_string().parse::<Position>().unwrap(), place);
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in "[0-9:,\\-]{0,40}|\\PC{0,40}") {
            if let Ok(position) = text.parse::<Position>() {
                prop_assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
            }
        }
    }
}
