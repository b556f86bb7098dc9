//! A place in the total order of events, which is what subscribers resume from.

use tidings_wire::Position;
use tidings_wire::position::END;

/// A place in the total order of events: a tick, and how many of its events lie at or before the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The tick.
    pub tick: u64,
    /// The number within the tick, [`END`] after its last event.
    pub n: u32,
}

impl Place {
    /// The place after the last event of `tick`.
    pub fn after_tick(tick: u64) -> Self {
        Self { tick, n: END }
    }

    /// The same as a position.
    pub fn position(self) -> Position {
        Position::at(self.tick, self.n)
    }
}

impl From<&Position> for Place {
    fn from(position: &Position) -> Self {
        Self { tick: position.tick, n: position.n }
    }
}
