//! The model as the checker sees it: how it begins, what can happen, and what must hold.

use stateright::{Model, Property};

use crate::actions::Action;
use crate::properties;
use crate::protocol::{Protocol, start_at};
use crate::state::*;

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let nothing = Snapshot { xmax: 1, running: 0 };
        let first = Tick { number: 1, since: nothing, until: nothing, mark: false, flushed_first: true };
        let database = Database {
            wal: Vec::new(),
            safe_xid: 1,
            next_xid: 1,
            first_xid: 1,
            clock: 1,
            ticks: vec![first],
            removed: 0,
            relay: true,
            look: None,
            hidden: None,
            standby: self.scenario.has_standby,
            flushed: 0,
            replayed: 0,
        };
        let idle = Writer { phase: Phase::Idle, xid: 0, stamps: Vec::new() };
        let client = |c| Client {
            at: Some(c % self.scenario.proxies),
            id: (1, END),
            seen: None,
            read_at: None,
            got: Vec::new(),
            base: Vec::new(),
            wronged: false,
        };
        let proxy = |p| Proxy {
            connected: true,
            at_standby: self.scenario.has_standby && p % 2 == 1,
            memory: vec![start_at(1)],
            skip: None,
        };
        vec![State {
            writers: vec![idle; self.scenario.writers.len()],
            row: Vec::new(),
            database,
            proxies: (0..self.scenario.proxies).map(proxy).collect(),
            clients: (0..self.scenario.clients).map(client).collect(),
            left: self.scenario.left,
        }]
    }

    fn actions(&self, s: &State, actions: &mut Vec<Action>) {
        self.enabled(s, actions);
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        Some(self.act(before, action))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}
