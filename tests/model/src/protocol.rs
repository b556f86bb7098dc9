//! What several actions need: what a tick has and in which order, when it is flushed first, what a proxy passes over,
//! and when a proxy knows that what it has published survived.

use crate::rules::Rule;
use crate::scenario::{Scenario, Script};
use crate::state::*;

/// The protocol, with the bounds of what is explored.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// The bounds.
    pub scenario: Scenario,
}

impl Database {
    /// Gives the next transaction its number.
    pub fn take_xid(&mut self) -> Xid {
        self.next_xid += 1;
        self.next_xid - 1
    }

    /// The next reading of the clock.
    pub fn tell_time(&mut self) -> Stamp {
        self.clock += 1;
        self.clock
    }

    /// Writes a record.
    pub fn write(&mut self, xid: Xid, kind: Kind) {
        self.wal.push(Record { xid, kind });
    }
}

impl State {
    /// The snapshot of this moment, as if transactions from `xmax` on had not begun.
    pub fn snapshot(&self, xmax: Xid) -> Snapshot {
        let running = self.writers.iter().filter(|writer| writer.is_running() && writer.xid < xmax);
        Snapshot { xmax, running: running.fold(0, |bits, writer| bits | 1 << writer.xid) }
    }

    /// A writer.
    pub fn writer(&self, w: u8) -> &Writer {
        &self.writers[w as usize]
    }

    /// The writers whose transactions are committed.
    fn committed(&self) -> impl Iterator<Item = (u8, &Writer)> {
        (0u8..).zip(&self.writers).filter(|(_, writer)| writer.phase == Phase::Committed)
    }
}

/// What a proxy remembers that begins at the end of a tick.
pub fn start_at(tick: Stamp) -> Heard {
    Heard { tick, events: Vec::new(), n: END, passed: 0, snapshot: None, start: true, flushed_first: false }
}

/// Takes a look with a tick's number.
pub fn look(s: &State, number: Stamp) -> Look {
    let lowest = |is_prepared| {
        let ending = s.writers.iter().filter(|writer| writer.is_ending());
        let ending = ending.filter(|writer| (writer.phase == Phase::Prepared) == is_prepared);
        ending.map(Writer::last_stamp).min().unwrap_or(Stamp::MAX)
    };
    Look { number, ending: lowest(false), prepared: lowest(true) }
}

impl Protocol {
    /// Whether a rule is followed.
    pub fn has(&self, rule: Rule) -> bool {
        self.scenario.rules.has(rule)
    }

    /// What a writer does.
    pub fn script(&self, w: u8) -> Script {
        self.scenario.writers[w as usize]
    }

    /// Everything is flushed, and if a standby is waited for, the standby has it.
    pub fn secure(&self, database: &mut Database) {
        let all = database.wal.len();
        self.secure_first(database, all);
    }

    /// The same for everything up to a record.
    pub fn secure_up_to(&self, database: &mut Database, kind: Kind) {
        if let Some(last) = database.wal.iter().position(|record| record.kind == kind) {
            self.secure_first(database, last + 1);
        }
    }

    fn secure_first(&self, database: &mut Database, count: usize) {
        if database.standby {
            database.flushed = database.flushed.max(count as u8);
            database.forget_replayed();
        } else if !self.scenario.standby_lags {
            for record in database.wal.drain(..count) {
                database.safe_xid = database.safe_xid.max(record.xid + 1);
            }
        }
    }

    /// The transactions between two snapshots, in order.
    pub fn transactions(&self, s: &State, since: Snapshot, until: Snapshot) -> Vec<u8> {
        let is_found = |xid| self.has(Rule::Stragglers) || xid >= since.xmax;
        let new = s.committed().filter(|(_, writer)| until.sees(writer.xid) && !since.sees(writer.xid));
        let mut new: Vec<_> = new.filter(|(_, writer)| is_found(writer.xid)).collect();
        let by_stamp = self.has(Rule::OrderByStamp);
        new.sort_by_key(|(_, writer)| if by_stamp { writer.last_stamp() } else { writer.xid });
        new.into_iter().map(|(w, _)| w).collect()
    }

    /// The events of a tick, in order.
    pub fn events(&self, s: &State, tick: &Tick) -> Vec<Event> {
        let transactions = self.transactions(s, tick.since, tick.until);
        let all = transactions.into_iter().flat_map(|w| (0..s.writer(w).stamps.len() as u8).map(move |n| (w, n)));
        let mut all: Vec<Event> = all.collect();
        if !self.has(Rule::OrderByLastStamp) {
            all.sort_by_key(|(w, n)| s.writer(*w).stamps[*n as usize]);
        }
        all
    }

    /// Whether something can be cut.
    pub fn has_news(&self, s: &State) -> bool {
        let until = self.until(s, &look(s, Stamp::MAX));
        !self.transactions(s, s.database.last().until, until).is_empty()
    }

    /// The snapshot that ends a tick which is cut now.
    pub fn until(&self, s: &State, look: &Look) -> Snapshot {
        let mut until = s.snapshot(s.database.next_xid);
        if self.scenario.holds_back {
            for w in self.transactions(s, s.database.last().until, until) {
                if s.writer(w).last_stamp() > look.ending.min(self.stamped_by(look)) {
                    until.running |= 1 << s.writer(w).xid;
                }
            }
        }
        until
    }

    /// The stamp up to which a look covers the transactions that were about to end.
    fn stamped_by(&self, look: &Look) -> Stamp {
        if self.has(Rule::LookCoversLaterStamps) { look.number } else { Stamp::MAX }
    }

    /// Cuts the tick that ends at a snapshot.
    pub fn cut_to(&self, s: &mut State, look: &Look, until: Snapshot, mark: bool) {
        let since = s.database.last().until;
        let flushed_first = self.must_flush_first(s, look, &self.transactions(s, since, until));
        let number = look.number;
        let xid = s.database.take_xid();
        s.database.write(xid, Kind::Tick(number));
        s.database.ticks.push(Tick { number, since, until, mark, flushed_first });
        if flushed_first {
            self.secure(&mut s.database);
        }
    }

    /// Whether a tick must be flushed before it is announced.
    fn must_flush_first(&self, s: &State, look: &Look, transactions: &[u8]) -> bool {
        let is_lazy = transactions.iter().any(|w| !self.script(*w).waits);
        let last = transactions.iter().map(|w| s.writer(*w).last_stamp()).max().unwrap_or(0);
        let prepared = if self.has(Rule::PreparedMayEnd) { look.prepared } else { Stamp::MAX };
        let is_early = last > look.ending.min(prepared).min(self.stamped_by(look));
        let is_prepared = transactions.iter().any(|w| self.script(*w).is_prepared);
        (is_lazy && self.has(Rule::FlushForAsynchronous))
            || (is_prepared && self.has(Rule::FlushForPrepared))
            || (is_early && self.has(Rule::FlushWhileEarlierEnd))
    }

    /// What a proxy notes when a tick is announced to it.
    pub fn announced(&self, tick: &Tick) -> Heard {
        let is_sent =
            self.has(Rule::SnapshotInAnnouncement) && !(tick.flushed_first && self.has(Rule::NoSnapshotOfFlushed));
        Heard {
            tick: tick.number,
            events: Vec::new(),
            n: 0,
            passed: 0,
            snapshot: is_sent.then_some(Skip { snapshot: self.hidden_by(tick), stamp: tick.number }),
            start: false,
            flushed_first: tick.flushed_first,
        }
    }

    /// The tick that a proxy is in, or the next one.
    pub fn next_tick(&self, s: &State, p: u8) -> Option<Tick> {
        let (number, n) = s.proxies[p as usize].place()?;
        let is_next = |tick: &&Tick| tick.number > number || (tick.number == number && n < END);
        s.database.rows().iter().skip(1).find(is_next).copied()
    }

    /// A proxy has all of a tick. Its clients learn it at the next heartbeat.
    pub fn finish(&self, s: &mut State, p: u8, mark: bool) {
        let proxy = &mut s.proxies[p as usize];
        if mark {
            proxy.skip = None;
        }
        let Some(heard) = proxy.memory.last_mut() else { return };
        heard.n = END;
        let place = (heard.tick, END);
        if self.scenario.heartbeats {
            for client in s.clients.iter_mut().filter(|client| client.at == Some(p)) {
                client.id = place;
            }
        }
    }

    /// Whether a snapshot hides a transaction: it sees one of this number, and it is not another one that was given the
    /// number of a lost one.
    pub fn hides(&self, s: &State, skip: Skip, writer: &Writer) -> bool {
        let mark = s.database.ticks.iter().find(|tick| tick.mark && tick.number > skip.stamp);
        let is_the_same = if self.has(Rule::SnapshotHasStamp) {
            writer.last_stamp() <= skip.stamp
        } else {
            mark.is_none_or(|mark| mark.until.sees(writer.xid))
        };
        skip.snapshot.sees(writer.xid) && is_the_same
    }

    /// Whether a proxy passes over a transaction, because it was published as part of a tick that is lost.
    pub fn passes(&self, s: &State, proxy: &Proxy, w: u8) -> bool {
        self.has(Rule::PassOver) && proxy.skip.is_some_and(|skip| self.hides(s, skip, s.writer(w)))
    }

    /// Whether a proxy can find out where to continue. If only the mark says what a snapshot means, the mark must
    /// exist.
    pub fn can_connect(&self, s: &State) -> bool {
        s.database.relay || self.has(Rule::SnapshotHasStamp)
    }

    /// What a proxy passes over when it continues after `known`, the last of its ticks that the log has; `None` if it
    /// can't know that everything it has published since then survived.
    pub fn vouch(&self, s: &State, p: u8, known: Tick) -> Option<Skip> {
        let lost: Vec<_> = s.proxies[p as usize].memory.iter().filter(|heard| heard.tick > known.number).collect();
        let last = lost.last()?;
        let skip = last.snapshot?;
        if last.n != END || last.start {
            return None;
        }
        if self.has(Rule::AllLostTicksHeard)
            && lost.iter().any(|heard| heard.snapshot.is_none() || heard.n != END || heard.start)
        {
            return None;
        }
        let published: usize = lost.iter().map(|heard| heard.events.len()).sum();
        let is_there = published == self.count(s, known, skip);
        (is_there || !self.has(Rule::AskWhatIsLeft)).then_some(skip)
    }

    /// How many events after a tick a snapshot sees.
    pub fn count(&self, s: &State, known: Tick, skip: Skip) -> usize {
        let seen = s.committed().filter(|(_, writer)| !known.until.sees(writer.xid) && self.hides(s, skip, writer));
        seen.map(|(_, writer)| writer.stamps.len()).sum()
    }

    /// Whether a proxy has a reason to reset its clients: something that it has published after `known` is lost, or it
    /// heard one of the lost ticks only in part, or without a snapshot because that tick was flushed first.
    pub fn has_lost(&self, s: &State, p: u8, known: Tick) -> bool {
        let heard = s.proxies[p as usize].memory.iter().filter(|heard| heard.tick > known.number);
        let mut lost = heard.filter(|heard| !s.database.has(heard.tick));
        lost.any(|heard| {
            let is_gone = |(_, (w, _)): &(u8, Event)| s.writer(*w).phase != Phase::Committed;
            heard.start || heard.n != END || heard.flushed_first || heard.events.iter().any(is_gone)
        })
    }

    /// Whether a position is older than what is retained.
    pub fn is_expired(&self, database: &Database, place: Place) -> bool {
        self.has(Rule::CheckRetention) && place < (database.floor(), END)
    }

    /// Whether a tick is missing in the log although it is not older than what is retained.
    pub fn is_lost(&self, database: &Database, number: Stamp) -> bool {
        number > database.floor() && !database.knows(number)
    }

    /// A proxy drops its memory and continues at the end of a tick; its clients are reset.
    pub fn reset_proxy(&self, s: &mut State, p: u8, tick: Stamp, is_just: bool) {
        let proxy = &mut s.proxies[p as usize];
        proxy.memory = vec![start_at(tick)];
        proxy.skip = None;
        for c in 0..s.clients.len() as u8 {
            if s.clients[c as usize].at == Some(p) {
                self.reset_client(s, c, is_just);
            }
        }
    }

    /// A client gets `reset` with its proxy's place, and reads the tables again.
    pub fn reset_client(&self, s: &mut State, c: u8, is_just: bool) {
        let Some(p) = s.clients[c as usize].at else { return };
        let base = self.behind(&self.shown_at(s, p), p);
        let client = &mut s.clients[c as usize];
        client.got.clear();
        client.base = base;
        client.id = s.proxies[p as usize].place().unwrap_or(client.id);
        client.seen = None;
        client.read_at = None;
        client.wronged |= !is_just;
    }

    /// The committed events up to a proxy's place, which it will not publish any more.
    pub fn behind(&self, s: &State, p: u8) -> Vec<Event> {
        let proxy = &s.proxies[p as usize];
        let Some((number, n)) = proxy.place() else { return Vec::new() };
        let ticks = &s.database.ticks;
        let known = *ticks.iter().rfind(|tick| tick.number <= number).unwrap_or(&ticks[0]);
        let is_within = known.number == number && n < END;
        let until = if is_within { known.since } else { known.until };
        let passed = |w, writer: &Writer| until.sees(writer.xid) || self.passes(s, proxy, w);
        let whole = s.committed().filter(|(w, writer)| passed(*w, writer)).map(|(w, _)| w);
        let mut behind: Vec<Event> =
            whole.flat_map(|w| (0..s.writer(w).stamps.len() as u8).map(move |n| (w, n))).collect();
        if is_within {
            behind.extend(self.events(s, &known).into_iter().take(n.into()));
        }
        behind.sort_unstable();
        behind.dedup();
        behind
    }

    /// All committed events.
    pub fn all_events(&self, s: &State) -> Vec<Event> {
        s.committed().flat_map(|(w, writer)| (0..writer.stamps.len() as u8).map(move |n| (w, n))).collect()
    }

    /// Whether a proxy's memory has everything after the id of a client.
    pub fn remembers(&self, proxy: &Proxy, client: &Client) -> bool {
        let (tick, n) = client.id;
        let is_known = |heard: &Heard| {
            heard.tick == tick
                && (!heard.start || n == END)
                && (n >= heard.passed || !self.has(Rule::MemoryKnowsItsGaps))
        };
        let is_between = proxy.memory.first().is_some_and(|first| (first.tick, first.n) <= (tick, n));
        client.seen.is_none()
            && proxy.place().is_some_and(|place| (tick, n) <= place)
            && (proxy.memory.iter().any(is_known) || (is_between && !self.has(Rule::LostIdsAreUnknown)))
    }

    /// Whether the log can't serve a client: its position is too old, or it may have seen events that are lost.
    pub fn is_gone(&self, s: &State, client: &Client) -> bool {
        let is_less = |seen: Seen| {
            let tick = s.database.ticks.iter().find(|tick| tick.number == client.id.0);
            let count = tick.map(|tick| self.count(s, *tick, seen.skip));
            self.has(Rule::PositionHasCount) && count != Some(seen.count.into())
        };
        self.is_expired(&s.database, client.id)
            || self.is_lost(&s.database, client.id.0)
            || client.seen.is_some_and(is_less)
    }

    /// Whether a client that the log cannot serve has a reason to be reset. One that has just read the tables has none
    /// after a crash. Later, while its ids have the long form, it has: proxies know these ids by the log alone.
    pub fn may_reset(&self, s: &State, client: &Client) -> bool {
        let is_there = s.database.has(client.id.0);
        let is_underway = client.read_at != Some(client.id.0) && (client.seen.is_some() || !is_there);
        is_underway || self.scenario.standby_lags || self.is_expired(&s.database, client.id)
    }

    /// Whether, from a tick on, it no longer matters what a client has read from the tables.
    pub fn covers(&self, s: &State, number: Stamp, seen: Seen) -> bool {
        let since = s.database.rows().iter().find(|tick| tick.number == number).map(|tick| tick.since);
        since.is_some_and(|since| {
            s.committed().all(|(_, writer)| since.sees(writer.xid) || !self.hides(s, seen.skip, writer))
        })
    }

    /// What remains of the long form of a client's position when its id moves on to a tick. It ends when nothing that
    /// the client has read lies behind it.
    pub fn move_on(&self, s: &State, client: &Client, number: Stamp) -> Option<Seen> {
        let mut seen = client.seen.filter(|seen| !self.covers(s, number, *seen))?;
        let is_passed = |tick: &&Tick| tick.number > client.id.0 && tick.number <= number;
        for tick in s.database.rows().iter().filter(is_passed) {
            if seen.count == 0 {
                return None;
            }
            let transactions = self.transactions(s, tick.since, tick.until).into_iter().map(|w| s.writer(w));
            let read = transactions.filter(|writer| self.hides(s, seen.skip, writer));
            seen.count -= seen.count.min(read.map(|writer| writer.stamps.len() as u8).sum());
        }
        Some(seen)
    }

    /// Whether a client must, and can, be served from the log.
    pub fn can_read(&self, s: &State, client: &Client, p: u8) -> bool {
        // What the client has read may not be in a tick yet.
        let until = s.database.last().until;
        let is_early = client.seen.is_some_and(|seen| {
            s.committed().any(|(_, writer)| self.hides(s, seen.skip, writer) && !until.sees(writer.xid))
        });
        !is_early
            && (self.next_in_log(s, client).is_some() || client.seen.is_some() || self.end_of_log(s, p) > client.id)
    }

    /// The next event in the log for a client.
    pub fn next_in_log(&self, s: &State, client: &Client) -> Option<(Place, Event)> {
        let is_new = |w: u8| client.seen.is_none_or(|seen| !self.hides(s, seen.skip, s.writer(w)));
        // The first row is only the start: its events are gone.
        s.database.rows().iter().skip(1).filter(|tick| tick.number >= client.id.0).find_map(|tick| {
            let mut events = (1u8..).zip(self.events(s, tick)).map(|(n, event)| ((tick.number, n), event));
            events.find(|(place, (w, _))| *place > client.id && is_new(*w))
        })
    }

    /// Where a client is when the log has nothing more for it.
    pub fn end_of_log(&self, s: &State, p: u8) -> Place {
        let end = (s.database.last().number, END);
        if self.has(Rule::LogEndsWhereItEnds) {
            return end;
        }
        s.proxies[p as usize].place().map_or(end, |place| place.max(end))
    }
}
