//! A place in the total order of events.
//!
//! | text | means |
//! |---|---|
//! | `<tick>-<n>` | everything up to the n-th event of the tick has been seen |
//! | `<tick>` | the whole of that tick has been seen |
//! | either, then `:<stamp>:<xmin>:<xmax>:<xid>,<xid>…` | the same, and of later events those that this snapshot sees |
//!
//! The last form is the result of `tidings.position()`. A snapshot is usually taken between two ticks, so its reader
//! knows some of the events in later ticks and not others. This ends with the first tick that begins with everything
//! the snapshot saw, or with a restart of the server after `stamp`.

use std::fmt;
use std::str::FromStr;

/// The longest text for a snapshot, in bytes: room for about 2,500 running transactions.
pub const MAX_TEXT: usize = 32 * 1024;

/// The longest text taken for a tick and a number: all their digits. It has a bound of its own, so that with any snapshot that is
/// taken, every place can be taken.
const MAX_PLACE: usize = 30;

/// The `n` of a position that stands behind the last event of its tick.
pub const END: u32 = u32::MAX;

/// A place in the total order of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The tick: microseconds since the Unix epoch when it was cut; 0 stands before the first one.
    pub tick: u64,
    /// How many of the tick's events lie at or before this place; [`END`] for all of them.
    pub n: u32,
    /// What a snapshot saw beyond that, if the position is one of a snapshot.
    pub seen: Option<Box<Seen>>,
}

/// What a snapshot saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// A time of the ticks' clock, after the last start of the server before the snapshot. It is later than all ticks
    /// from before that start.
    pub stamp: u64,
    /// Transactions below this are finished.
    pub xmin: u64,
    /// Transactions from this on had not started.
    pub xmax: u64,
    /// Transactions between the two that were still running, rising.
    pub running: Vec<u64>,
}

/// The text is no position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a position: expected <tick>-<n>, as in an event's id")]
pub struct PositionError;

impl Position {
    /// The place of the n-th event of `tick`, counted from 1.
    pub fn at(tick: u64, n: u32) -> Self {
        Self { tick, n, seen: None }
    }

    /// The place behind the last event of `tick`.
    pub fn after_tick(tick: u64) -> Self {
        Self::at(tick, END)
    }

    /// Tick and number, which order positions; what a snapshot saw has no part in the order.
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
        write!(f, ":{}:{}:{}:", seen.stamp, seen.xmin, seen.xmax)?;
        for (i, xid) in seen.running.iter().enumerate() {
            write!(f, "{}{xid}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let mut fields = text.split(':');
        let place = fields.next().ok_or(PositionError)?;
        if place.len() > MAX_PLACE || text.len() - place.len() > MAX_TEXT {
            return Err(PositionError);
        }
        let (tick, n) = match place.split_once('-') {
            Some((tick, n)) => (number(tick)?, u32::try_from(number(n)?).map_err(|_| PositionError)?),
            None => (number(place)?, END),
        };
        let seen = match fields.next() {
            None => None,
            Some(stamp) => {
                let mut next = || fields.next().ok_or(PositionError);
                Some(Box::new(Seen::parse(stamp, next()?, next()?, next()?)?))
            }
        };
        match fields.next() {
            None => Ok(Self { tick, n, seen }),
            Some(_) => Err(PositionError),
        }
    }
}

impl Seen {
    fn parse(stamp: &str, xmin: &str, xmax: &str, running: &str) -> Result<Self, PositionError> {
        let running = match running {
            "" => Vec::new(),
            list => list.split(',').map(number).collect::<Result<Vec<_>, _>>()?,
        };
        let seen = Self { stamp: number(stamp)?, xmin: number(xmin)?, xmax: number(xmax)?, running };
        let rising = seen.running.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = seen.running.iter().all(|xid| (seen.xmin..seen.xmax).contains(xid));
        // Postgres accepts no snapshot that begins or ends with transaction 0 of an epoch, because there is none.
        let real = [seen.xmin, seen.xmax].iter().all(|xid| xid % (1 << 32) != 0);
        (rising && inside && real && seen.xmin <= seen.xmax).then_some(seen).ok_or(PositionError)
    }
}

/// A whole number as Postgres's bigint can hold it, digits only: no sign, no blank.
fn number(text: &str) -> Result<u64, PositionError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let value = digits.then(|| text.parse::<i64>().ok()).flatten().ok_or(PositionError)?;
    Ok(value.unsigned_abs())
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
    fn what_is_no_position_is_refused() {
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
    fn what_the_longest_snapshot_divides_has_positions_too() {
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
