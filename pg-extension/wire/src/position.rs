//! A place in the total order of events.
//!
//! | text | meaning |
//! |---|---|
//! | `<tick>-<n>` | everything up to the n-th event of the tick has been seen |
//! | `<tick>` | the whole of that tick has been seen |
//! | either, then `:<stamp>:<xmin>:<xmax>:<xid>,<xid>…` | the same, and those of the later events that this snapshot sees and that have a stamp up to this one |
//!
//! `tidings.position()` returns the last form if its snapshot was taken between two ticks and saw some of the events of
//! later ticks. It then also contains how many events those are. If the log has fewer, the others were lost.
//!
//! | text with a count | |
//! |---|---|
//! | `<tick>-<4294967295 - count>:<stamp>:…` | after the whole of that tick. Releases before 0.2.0 read it as that, because no tick has so many events |
//! | `<tick>-<n>:<stamp>:<xmin>:<xmax>:<xid>,<xid>…:<count>` | within that tick; `count` is still that of the events after it |
//!
//! Positions of releases before 0.2.0 have no count, and the long form even if it makes no difference. Their snapshot
//! counts up to the first tick that begins with everything that it saw, or up to a restart of the server after `stamp`.

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

/// The largest count. It stands for any larger one.
pub const MAX_COUNT: u32 = END / 2;

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
    /// With a count, the highest stamp of the events that were seen. Without one, a time on the clock of the ticks that
    /// is after the last start of the server before the snapshot.
    pub stamp: u64,
    /// What was seen.
    pub snapshot: Snapshot,
    /// How many events after the tick were seen, if that is known.
    pub count: Option<u32>,
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
        let count = self.seen.as_ref().and_then(|seen| seen.count);
        match (&self.seen, self.n) {
            (None, END) => write!(f, "{}", self.tick),
            (None, n) => write!(f, "{}-{n}", self.tick),
            (Some(seen), END) => {
                let Seen { stamp, snapshot, .. } = &**seen;
                write!(f, "{}", self.tick)?;
                if let Some(count) = count.filter(|count| *count > 0) {
                    write!(f, "-{}", END - count)?;
                }
                write!(f, ":{stamp}:{snapshot}")
            }
            (Some(seen), n) => write!(f, "{}-{n}:{seen}", self.tick),
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.stamp, self.snapshot)?;
        match self.count {
            Some(count) => write!(f, ":{count}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Seen {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let (stamp, rest) = text.split_once(':').ok_or(PositionError)?;
        let (snapshot, count) = match rest.match_indices(':').nth(2) {
            Some((end, _)) => (&rest[..end], Some(small(&rest[end + 1..])?)),
            None => (rest, None),
        };
        Ok(Self { stamp: number(stamp)?, snapshot: snapshot.parse()?, count })
    }
}

impl Seen {
    /// Whether a transaction with this stamp was seen. With a count, the stamp tells it from one that was given the
    /// same id after a failover.
    pub fn has(&self, xid: u64, stamp: u64) -> bool {
        self.snapshot.sees(xid) && (self.count.is_none() || stamp <= self.stamp)
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
        let (tick, mut n) = match place.split_once('-') {
            Some((tick, n)) => (number(tick)?, small(n)?),
            None => (number(place)?, END),
        };
        let mut seen: Option<Box<Seen>> = rest.map(str::parse).transpose()?.map(Box::new);
        // The count has its own field only within a tick.
        if let Some(seen) = seen.as_mut().filter(|_| END - n <= MAX_COUNT) {
            if seen.count.is_some() {
                return Err(PositionError);
            }
            seen.count = Some(END - n).filter(|count| *count > 0);
            n = END;
        }
        Ok(Self { tick, n, seen })
    }
}

/// A number that is not too large for the number of an event.
fn small(text: &str) -> Result<u32, PositionError> {
    u32::try_from(number(text)?).map_err(|_| PositionError)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_and_value_are_the_same_thing() {
        for text in [
            "0-0",
            "1766548000000000-12",
            "17",
            "5-1:9:10:20:10,15",
            "5:9:10:10:",
            "5-4294967294:9:10:20:10,15",
            "5-2147483648:9:10:10:",
            "5-1:9:10:20:10,15:7",
            "5-1:9:10:10::0",
        ] {
            assert_eq!(text.parse::<Position>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_count_after_the_whole_of_a_tick_is_counted_back_from_its_end() {
        let position: Position = "5-4294967292:9:10:20:10,15".parse().unwrap();
        assert_eq!((position.place(), position.seen.unwrap().count), ((5, END), Some(3)));
        let position: Position = "5-1:9:10:20:10,15:3".parse().unwrap();
        assert_eq!((position.place(), position.seen.unwrap().count), ((5, 1), Some(3)));
        // An old one, and an event's id, have none.
        assert_eq!("5:9:10:20:10,15".parse::<Position>().unwrap().seen.unwrap().count, None);
        assert_eq!("5-4294967292".parse::<Position>().unwrap().place(), (5, 4294967292));
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
            "5-1:1:2:4:3,2",
            "5-1:1:3:2:",
            "5:1:2:3:2:4",
            "5-4294967292:1:2:3:2:4",
            "5-1:1:2:3:2:",
            "5-1:1:2:3:2:-1",
            "5-1:1:2:3:2:4294967296",
            "5-1:1:2:3:2:4:4",
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
        for place in [Position { tick: i64::MAX as u64, n: MAX_COUNT - 1, ..position.clone() }, position] {
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
