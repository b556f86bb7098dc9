//! When each action can happen.

use crate::actions::Action;
use crate::protocol::{Protocol, look};
use crate::state::*;

impl Protocol {
    /// Which actions can happen.
    pub fn enabled(&self, s: &State, actions: &mut Vec<Action>) {
        self.writers_actions(s, actions);
        if s.database.hidden.is_some() {
            actions.push(Action::Show);
        } else if !s.database.relay {
            actions.push(Action::StartRelay);
        } else if self.scenario.by_horizon {
            self.relays_actions(s, actions);
        } else if s.database.look.is_some() || (self.has_news(s) && !self.scenario.slow_cut) {
            actions.push(Action::Cut);
        } else if self.has_news(s) {
            actions.push(Action::Look);
        }
        self.proxies_actions(s, actions);
        self.clients_actions(s, actions);
        self.standbys_actions(s, actions);
        if s.left.crashes > 0 {
            actions.extend((s.database.flushed..=s.database.wal.len() as u8).map(Action::Crash));
        }
        if s.left.removals > 0
            && s.database.rows().len() > 1
            && !self.scenario.standby_lags
            && !self.scenario.has_standby
        {
            actions.push(Action::Remove);
        }
    }

    fn relays_actions(&self, s: &State, actions: &mut Vec<Action>) {
        let now = look(s, s.database.clock + 1);
        if s.database.look.is_some() {
            actions.push(Action::Cut);
        } else if self.early_tick(s, &now).is_some() {
            actions.push(if self.scenario.slow_cut { Action::Look } else { Action::Cut });
        }
        if self.has_news(s) {
            actions.push(Action::CutAll);
        }
    }

    fn writers_actions(&self, s: &State, actions: &mut Vec<Action>) {
        for (w, writer) in (0u8..).zip(&s.writers) {
            // Writers of the same kind begin in order: which of them is which makes no difference.
            let earlier = s.writers.iter().zip(&self.scenario.writers).take(w as usize);
            let waits = earlier.filter(|(_, script)| **script == self.script(w)).any(|(w, _)| w.phase == Phase::Idle);
            let locked = self.scenario.same_row && s.writers.iter().any(Writer::is_ending);
            match writer.phase {
                Phase::Idle if !waits => actions.push(Action::Begin(w)),
                Phase::Running if !locked => actions.push(Action::Log(w)),
                Phase::Logged | Phase::Prepared => actions.push(Action::Commit(w)),
                Phase::Committing => actions.push(Action::End(w)),
                _ => {}
            }
        }
    }

    fn proxies_actions(&self, s: &State, actions: &mut Vec<Action>) {
        for (p, proxy) in (0u8..).zip(&s.proxies) {
            let shown = self.shown_at(s, p);
            let waits = proxy.place().is_some_and(|place| self.is_awaited(s, &shown, p, place.0));
            if !proxy.connected && self.can_connect(s) && !waits {
                actions.push(Action::Connect(p));
            }
            let expired = proxy.place().is_some_and(|place| self.is_expired(&s.database, place));
            if proxy.connected && (expired || self.next_tick(&shown, p).is_some()) {
                actions.push(Action::Hear(p));
            }
            if s.left.deaths > 0 && !proxy.memory.is_empty() {
                actions.push(Action::Die(p));
            }
        }
    }

    fn clients_actions(&self, s: &State, actions: &mut Vec<Action>) {
        for (c, client) in (0u8..).zip(&s.clients) {
            if s.left.starts > 0 {
                actions.push(Action::Start(c, false));
                if s.database.standby {
                    actions.push(Action::Start(c, true));
                }
            }
            if client.at.is_some() {
                if s.left.cuts > 0 {
                    actions.push(Action::CutOff(c));
                }
                continue;
            }
            for (p, proxy) in (0u8..).zip(&s.proxies) {
                let shown = self.shown_at(s, p);
                let waits = self.waits(s, &shown, client, p);
                let gone = self.is_gone(&shown, client) && !waits;
                if self.remembers(proxy, client) || (proxy.connected && gone) {
                    actions.push(Action::Come(c, p));
                } else if proxy.connected && !waits && self.can_read(&shown, client, p) {
                    actions.push(Action::Read(c, p));
                }
            }
        }
    }
}
