//! The variant of the protocol that the code follows: no snapshot is sent, because the number of a tick that is
//! announced first, its horizon, stands for it. All transactions that end with a stamp up to the horizon are in this
//! tick or an earlier one.

use crate::protocol::Protocol;
use crate::rules::Rule;
use crate::state::*;

/// A snapshot that sees everything: only the stamp matters.
const ALL: Snapshot = Snapshot { xmax: Xid::MAX, running: 0 };

impl Protocol {
    /// The snapshot that a proxy remembers with a tick.
    pub fn hidden_by(&self, tick: &Tick) -> Snapshot {
        if self.scenario.by_horizon { ALL } else { tick.until }
    }

    /// The stamp up to which nothing is missing any more. A transaction notes a reading of the clock right before its
    /// last stamp.
    fn horizon(&self, look: &Look) -> Stamp {
        if self.scenario.rules.has(Rule::FlushWhileEarlierEnd) {
            look.number.min(look.ending.saturating_sub(1))
        } else {
            look.number
        }
    }

    /// The tick that would be announced first now; none if there is nothing for it, or if the next one must be flushed.
    pub fn early_tick(&self, s: &State, look: &Look) -> Option<Tick> {
        let (number, last) = (self.horizon(look), s.database.last());
        let rules = &self.scenario.rules;
        let mut until = s.snapshot(s.database.next_xid);
        let visible = self.transactions(s, last.until, until);
        let is_lazy = visible.iter().any(|w| !self.script(*w).waits) && rules.has(Rule::FlushForAsynchronous);
        let is_prepared = visible.iter().any(|w| self.script(*w).is_prepared) && rules.has(Rule::FlushForPrepared);
        let may_end = look.prepared != Stamp::MAX && rules.has(Rule::PreparedMayEnd);
        if is_lazy || is_prepared || may_end || number <= last.number {
            return None;
        }
        let (late, taken): (Vec<u8>, Vec<u8>) = visible
            .into_iter()
            .partition(|w| s.writer(*w).last_stamp() > number && rules.has(Rule::LookCoversLaterStamps));
        for w in late {
            until.running |= 1 << s.writer(w).xid;
        }
        let tick = Tick { number, since: last.until, until, mark: false, flushed_first: false };
        (!taken.is_empty()).then_some(tick)
    }

    /// Cuts a tick that is announced first.
    pub fn cut_early(&self, s: &mut State, look: &Look) {
        if let Some(tick) = self.early_tick(s, look) {
            let xid = s.database.take_xid();
            s.database.write(xid, Kind::Tick(tick.number));
            self.show_later(&mut s.database, tick);
        }
    }

    /// Cuts a tick of everything that is visible below `until`, and flushes it before it is announced.
    pub fn cut_flushed(&self, s: &mut State, until: Snapshot, mark: bool) {
        let (number, since) = (s.database.tell_time(), s.database.last().until);
        let xid = s.database.take_xid();
        s.database.write(xid, Kind::Tick(number));
        self.show_later(&mut s.database, Tick { number, since, until, mark, flushed_first: true });
        if s.database.hidden.is_none() {
            self.secure(&mut s.database);
        }
    }
}
