//! The places of events in their transaction.

use pgrx::pg_sys;

/// An event's order in its transaction. Events of one rank are ordered as they were captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank(u64);

/// The bits of an ordinal that hold the number of earlier events: enough for 16 billion.
const COUNT_BITS: u32 = 34;

/// The highest rank that fits into the rest of an ordinal: enough for 268 million commands. Later events are ordered as
/// they were captured.
const MAX_RANK: u64 = (1 << (63 - COUNT_BITS)) - 1;

impl Rank {
    /// The lowest rank.
    pub const FIRST: Self = Self(0);

    /// The rank of a command.
    pub fn of(command: pg_sys::CommandId) -> Self {
        // There is one extra rank between those of any two commands.
        Self((2 * u64::from(command)).min(MAX_RANK))
    }

    /// The extra rank between the previous command and this one.
    pub fn before(self) -> Self {
        if self.0 == MAX_RANK { self } else { Self(self.0.saturating_sub(1)) }
    }

    /// The number by which segments are sorted. `count` is the number of events captured before.
    pub fn ordinal(self, count: i64) -> i64 {
        ((self.0 as i64) << COUNT_BITS) | count.min((1 << COUNT_BITS) - 1)
    }
}

/// The places of a row's change in the order: that of its old version, and that of its new one. They differ if an inner
/// command made a row with the key that this row no longer has.
#[derive(Clone, Copy)]
pub struct Places {
    pub old: Rank,
    pub new: Rank,
}

impl From<Rank> for Places {
    fn from(rank: Rank) -> Self {
        Self { old: rank, new: rank }
    }
}
