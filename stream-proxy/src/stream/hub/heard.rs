//! The last ticks that were heard, for the case that a crash loses some of them: a tick that the relay announced before
//! its row was flushed may be missing from the log afterwards, although its events are there.

use std::collections::VecDeque;

/// How many ticks are remembered. A tick is flushed within milliseconds after it is announced, so a crash loses only a
/// few; a failover to a standby that was behind may lose more.
const MAX_HEARD: usize = 1024;

/// The last ticks, in rising order.
#[derive(Debug, Default)]
pub struct Heard(VecDeque<HeardTick>);

/// A tick that was heard to its end.
#[derive(Debug)]
struct HeardTick {
    tick: u64,
    /// How many events it had, if it was announced before it was flushed. `None` if it was durable when it was heard.
    events: Option<u32>,
}

impl Heard {
    /// Starts at the end of a tick that the log has.
    pub fn restart(&mut self, tick: u64) {
        self.0.clear();
        self.note(tick, None);
    }

    /// Notes that a tick was heard to its end.
    pub fn note(&mut self, tick: u64, events: Option<u32>) {
        if self.0.len() == MAX_HEARD {
            self.0.pop_front();
        }
        self.0.push_back(HeardTick { tick, events });
    }

    /// How many events were published after the end of `known`. `None` if that is not known, or if one of the ticks
    /// after it was durable when it was heard, so that a crash alone can't have lost it.
    pub fn events_after(&self, known: u64) -> Option<u64> {
        let start = self.0.iter().rposition(|heard| heard.tick == known)?;
        self.0.iter().skip(start + 1).map(|heard| heard.events.map(u64::from)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ticks_that_were_announced_before_their_flush_can_be_vouched_for() {
        let mut heard = Heard::default();
        heard.restart(1);
        heard.note(2, Some(3));
        heard.note(3, Some(4));
        assert_eq!([1, 2, 3].map(|known| heard.events_after(known)), [Some(7), Some(4), Some(0)]);
        assert_eq!(heard.events_after(0), None, "it began after that tick");
        heard.note(4, None);
        heard.note(5, Some(1));
        assert_eq!([3, 4, 5].map(|known| heard.events_after(known)), [None, Some(1), Some(0)]);
    }

    #[test]
    fn a_bounded_number_of_ticks_is_remembered() {
        let mut heard = Heard::default();
        heard.restart(0);
        (1..=MAX_HEARD as u64).for_each(|tick| heard.note(tick, Some(1)));
        assert_eq!((heard.events_after(0), heard.events_after(1)), (None, Some(MAX_HEARD as u64 - 1)));
    }
}
