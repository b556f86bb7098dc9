//! The tick whose announcement is arriving in parts.

use tidings_wire::Part;

use crate::stream::place::Place;

/// What has arrived of a tick, and what must come next.
#[derive(Debug, Default)]
pub struct Arriving {
    tick: u64,
    /// The number of the next part.
    part: u32,
    /// The number of its first event.
    event: u32,
    /// Where the hub is while the next part is awaited.
    place: Option<Place>,
    /// The parts so far of a tick that a crash may lose. They are published together with the last part, because a
    /// crash may also cut the announcement short: only of a whole tick can be told afterwards whether its events
    /// survived.
    held: Vec<String>,
}

impl Arriving {
    /// Whether this part continues exactly where the hub is, or where the parts end that are held back.
    pub fn is_next(&self, part: &Part<'_>, place: Place) -> bool {
        let first = match part.part {
            0 => return false,
            1 if Place::after_tick(part.previous) == place => 1,
            number if (self.tick, self.part, self.place) == (part.tick, number, Some(place)) => self.event,
            _ => return false,
        };
        part.events.iter().zip(first..).all(|((n, _), expected)| *n == expected)
    }

    /// Takes the next part. Returns the parts that must be published before it, or nothing if it is held back, too.
    pub fn take(&mut self, part: &Part<'_>, payload: &str) -> Option<Vec<String>> {
        if part.part == 1 {
            self.held.clear();
        }
        (self.tick, self.part) = (part.tick, part.part + 1);
        self.event = part.events.last().map_or(1, |(n, _)| n + 1);
        if part.is_durable || part.part == part.parts {
            return Some(std::mem::take(&mut self.held));
        }
        self.held.push(payload.to_owned());
        None
    }

    /// Notes where the hub is while the next part is awaited.
    pub fn wait_at(&mut self, place: Option<Place>) {
        self.place = place;
    }
}
