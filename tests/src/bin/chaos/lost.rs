//! What crashes took back: a tick that was announced, but not flushed when the server crashed, is missing from the log.
//! Its events are in the log, because their transactions are durable, in a later tick.
//!
//! A proxy that heard the lost tick goes on as if nothing had happened, and other proxies never show it. So in a
//! client's stream, an event of a lost tick stands for the same event at its place in the log.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::RangeInclusive;

use crate::clients::{Got, Life};
use crate::homes::Home;
use crate::reference::{Known, Place};
use crate::writers::END;

/// The ticks that crashes took back, as far as a client was shown them.
#[derive(Debug, Default)]
pub struct Lost {
    /// For each crash, the last tick before it and the last one when the server was back: what it took back is between.
    crashes: Vec<RangeInclusive<u64>>,
    /// Where the log has each event, by its payload.
    places: HashMap<u64, Place>,
    /// The ticks that are not in the log.
    ticks: BTreeSet<u64>,
    /// The places of their events, and where the log has the same events.
    again: BTreeMap<Place, Place>,
    /// What each proxy has shown of them.
    shown: HashSet<(Home, Place)>,
}

impl Lost {
    /// Collects what clients were shown that is not in the log, which has `known` in these `ticks`.
    pub fn new(known: &[Known], ticks: &BTreeSet<u64>, crashes: Vec<RangeInclusive<u64>>, lives: &[Life]) -> Self {
        let is_unique = |known: &&Known| known.write.name != END;
        let places = known.iter().filter(is_unique).map(|known| (known.print, known.place)).collect();
        let mut lost = Self { crashes, places, ..Self::default() };
        for life in lives {
            let mut home = None;
            for got in &life.got {
                let (place, print) = match *got {
                    Got::Connected(visit) => {
                        home = visit.home;
                        continue;
                    }
                    Got::Event(place, print) => (place, Some(print)),
                    Got::Id(place) => (place, None),
                    Got::Reset(..) => continue,
                };
                if ticks.contains(&place.0) || !lost.was_near_a_crash(place.0) {
                    continue;
                }
                lost.ticks.insert(place.0);
                lost.shown.extend(home.map(|home| (home, place)));
                let there = print.and_then(|print| lost.places.get(&print).copied());
                lost.again.extend(there.map(|there| (place, there)));
            }
        }
        lost
    }

    fn was_near_a_crash(&self, tick: u64) -> bool {
        self.crashes.iter().any(|crash| crash.contains(&tick))
    }

    /// Whether a crash took back this tick.
    pub fn has(&self, tick: u64) -> bool {
        self.ticks.contains(&tick)
    }

    /// Where the log has the event with this payload. None: the crash took it back too.
    pub fn place_of(&self, print: u64) -> Option<Place> {
        self.places.get(&print).copied()
    }

    /// A client that is at this place has the log's events up to the result.
    pub fn translate(&self, place: Place) -> Place {
        if !self.has(place.0) {
            return place;
        }
        let start = self.crashes.iter().filter(|crash| crash.contains(&place.0)).map(|crash| *crash.start()).min();
        let before = self.again.range((start.unwrap_or(place.0), 0)..=place).map(|(_, there)| *there).max();
        before.map_or(place, |there| there.max(place))
    }

    /// Whether a proxy has this place of a lost tick in its memory: it has shown it to some client.
    pub fn is_known_at(&self, home: Home, (tick, n): Place) -> bool {
        // An id of the whole tick is known where the end of the tick was heard.
        let last =
            self.again.range((tick, 0)..=(tick, u32::MAX)).next_back().map_or(n, |((_, last), _)| (*last).min(n));
        self.shown.contains(&(home, (tick, n))) || self.shown.contains(&(home, (tick, last)))
    }

    /// How many ticks a crash took back that some client was shown.
    pub fn by(&self, crash: &RangeInclusive<u64>) -> usize {
        self.ticks.range(crash.clone()).count()
    }
}
