//! The actions: what can happen in a state, each as a function with a sentence that says what it is.
//!
//! `enabled.rs` says when an action can happen. Functions that several actions need are in `protocol.rs`, and those of
//! a standby in `standby.rs`.

use crate::protocol::{Protocol, look, start_at};
use crate::rules::Rule;
use crate::state::*;

/// Something that happens. Numbers are those of writers, proxies and clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// See `Protocol::begin`.
    Begin(u8),
    /// See `Protocol::log`.
    Log(u8),
    /// See `Protocol::commit`.
    Commit(u8),
    /// See `Protocol::end`.
    End(u8),
    /// See `Protocol::look`.
    Look,
    /// See `Protocol::cut`.
    Cut,
    /// See `Protocol::cut_all`.
    CutAll,
    /// See `Protocol::start_relay`.
    StartRelay,
    /// See `Protocol::connect`.
    Connect(u8),
    /// See `Protocol::hear`.
    Hear(u8),
    /// See `Protocol::come`: the client, the proxy.
    Come(u8, u8),
    /// See `Protocol::read`: the client, the proxy.
    Read(u8, u8),
    /// See `Protocol::start`: the client; whether it reads at the standby.
    Start(u8, bool),
    /// See `Protocol::crash`.
    Crash(u8),
    /// See `Protocol::show`.
    Show,
    /// See `Protocol::flush`.
    Flush,
    /// See `Protocol::replay`.
    Replay,
    /// See `Protocol::promote`.
    Promote(u8),
    /// See `Protocol::change_server`.
    ChangeServer(u8),
    /// See `Protocol::die`.
    Die(u8),
    /// See `Protocol::cut_off`.
    CutOff(u8),
    /// See `Protocol::remove`.
    Remove,
}

impl Action {
    /// Whether the protocol does this by itself; the others may happen or not.
    pub fn is_progress(self) -> bool {
        !matches!(
            self,
            Self::Start(..)
                | Self::Crash(_)
                | Self::Promote(_)
                | Self::ChangeServer(_)
                | Self::Die(_)
                | Self::CutOff(_)
                | Self::Remove
        )
    }
}

impl Protocol {
    /// A transaction begins and takes its number; a large one writes its first segment.
    fn begin(&self, s: &mut State, w: u8) {
        let database = &mut s.database;
        let writer = &mut s.writers[w as usize];
        writer.phase = Phase::Running;
        writer.xid = database.take_xid();
        if self.script(w).is_large {
            writer.stamps.push(database.tell_time());
            database.write(writer.xid, Kind::Segment(w));
        }
    }

    /// Right before its commit, a transaction writes its last segment, with a stamp. One of two phases is prepared,
    /// which is flushed at once.
    fn log(&self, s: &mut State, w: u8) {
        let writer = &mut s.writers[w as usize];
        if self.scenario.by_horizon {
            // The note, before the stamp.
            s.database.tell_time();
        }
        if !self.script(w).is_large || self.scenario.rules.has(Rule::LargeOnesStampAgain) {
            writer.stamps.push(s.database.tell_time());
        }
        if self.script(w).is_prepared {
            writer.phase = Phase::Prepared;
            s.database.write(writer.xid, Kind::Prepare(w));
            self.secure(&mut s.database);
        } else {
            writer.phase = Phase::Logged;
            s.database.write(writer.xid, Kind::Segment(w));
        }
        if self.scenario.same_row {
            s.row.push(w);
        }
    }

    /// A transaction writes its commit record. If it does not wait for it, it is visible at once.
    fn commit(&self, s: &mut State, w: u8) {
        let writer = &mut s.writers[w as usize];
        s.database.write(writer.xid, Kind::Commit(w));
        writer.phase = if self.script(w).waits { Phase::Committing } else { Phase::Committed };
    }

    /// A transaction that has waited for its commit becomes visible.
    fn end(&self, s: &mut State, w: u8) {
        s.writers[w as usize].phase = Phase::Committed;
        self.secure_up_to(&mut s.database, Kind::Commit(w));
    }

    /// The relay takes the number of the next tick, and notes which transactions are about to become visible.
    fn look(&self, s: &mut State) {
        let number = s.database.tell_time();
        s.database.look = Some(look(s, number));
    }

    /// The relay cuts a tick of what is visible, and announces it: at once, or after a flush.
    fn cut(&self, s: &mut State) {
        if !self.scenario.slow_cut {
            self.look(s);
        }
        let Some(look) = s.database.look.take() else { return };
        if self.scenario.by_horizon {
            return self.cut_early(s, &look);
        }
        let until = self.until(s, &look);
        self.cut_to(s, &look, until, false);
    }

    /// The relay cuts a tick of everything that is visible, because something must be flushed or has waited long
    /// enough.
    fn cut_all(&self, s: &mut State) {
        s.database.look = None;
        let until = s.snapshot(s.database.next_xid);
        self.cut_flushed(s, until, false);
    }

    /// After a start of the server the relay starts. It cuts what was committed before, then a tick with a mark.
    fn start_relay(&self, s: &mut State) {
        let until = s.snapshot(s.database.first_xid.max(s.database.last().until.xmax));
        if self.scenario.by_horizon {
            if !self.transactions(s, s.database.last().until, until).is_empty() {
                self.cut_flushed(s, until, false);
                self.show(&mut s.database);
            }
            self.cut_flushed(s, s.database.last().until, true);
            s.database.relay = true;
            return;
        }
        if !self.transactions(s, s.database.last().until, until).is_empty() {
            let number = s.database.tell_time();
            self.cut_to(s, &look(s, number), until, false);
        }
        if self.scenario.rules.has(Rule::MarkAfterRestart) {
            let number = s.database.tell_time();
            self.cut_to(s, &look(s, number), s.database.last().until, true);
        }
        s.database.relay = true;
    }

    /// A proxy connects, and finds out where to go on: at its place, or there with everything passed over that it has
    /// published, or, with a `reset` for all its clients, at the last tick that the log and it have in common.
    fn connect(&self, s: &mut State, p: u8) {
        s.proxies[p as usize].connected = true;
        let shown = self.shown_at(s, p).into_owned();
        let Some(place) = s.proxies[p as usize].place() else {
            let last = shown.database.last().number;
            s.proxies[p as usize].memory.push(start_at(last));
            return;
        };
        if self.is_expired(&s.database, place) {
            self.reset_proxy(s, p, shown.database.last().number, true);
        } else if self.is_lost(&shown.database, place.0) {
            let known = shown.database.at_or_below(place.0);
            match self.vouch(&shown, p, known) {
                Some(skip) => s.proxies[p as usize].skip = Some(skip),
                None => {
                    let is_just = self.has_lost(s, p, known);
                    self.reset_proxy(s, p, known.number, is_just);
                }
            }
        }
    }

    /// A proxy takes the next event, or all that is left of the next tick, from an announcement or from the log, and
    /// publishes it to its clients.
    fn hear(&self, s: &mut State, p: u8) {
        let proxy = &s.proxies[p as usize];
        let Some((number, n)) = proxy.place() else { return };
        if self.is_expired(&s.database, (number, n)) {
            return self.reset_proxy(s, p, s.database.last().number, true);
        }
        let shown = self.shown_at(s, p).into_owned();
        let Some(tick) = self.next_tick(&shown, p) else { return };
        if n == END {
            let heard = self.announced(&tick);
            s.proxies[p as usize].memory.push(heard);
        }
        let mut is_first = true;
        let events = self.events(&shown, &tick);
        loop {
            let proxy = &s.proxies[p as usize];
            let heard = &proxy.memory[proxy.memory.len() - 1];
            let Some(event) = events.get(heard.n as usize) else { break };
            let passes = self.passes(&shown, proxy, event.0);
            if !passes && !is_first && self.scenario.piecemeal {
                return;
            }
            publish(s, p, *event, passes);
            is_first &= passes;
        }
        self.finish(s, p, tick.mark);
    }

    /// A client that was cut off comes to a proxy with its id, and gets what it has missed from that proxy's memory; or
    /// a `reset`, if the id is too old, or unknown there and in the log.
    fn come(&self, s: &mut State, c: u8, p: u8) {
        let id = s.clients[c as usize].id;
        let proxy = &s.proxies[p as usize];
        if self.remembers(proxy, &s.clients[c as usize]) {
            let missed: Vec<Event> = proxy.published_after(id).map(|(_, event)| event).collect();
            let place = proxy.place().unwrap_or(id);
            let client = &mut s.clients[c as usize];
            client.at = Some(p);
            client.got.extend(missed);
            client.id = place;
        } else {
            let is_just = self.may_reset(s, &s.clients[c as usize]);
            s.clients[c as usize].at = Some(p);
            self.reset_client(s, c, is_just);
        }
    }

    /// A client whose tick the log has, but not the proxy's memory, is sent the next event from the log. At the end of
    /// the log, what it has read before makes no more difference.
    fn read(&self, s: &mut State, c: u8, p: u8) {
        let shown = self.shown_at(s, p).into_owned();
        match self.next_in_log(&shown, &s.clients[c as usize]) {
            Some((place, event)) => {
                let seen = self.move_on(&shown, &s.clients[c as usize], place.0);
                let client = &mut s.clients[c as usize];
                client.id = place;
                client.seen = seen;
                client.got.push(event);
            }
            None => {
                s.clients[c as usize].id = self.end_of_log(&shown, p);
                s.clients[c as usize].seen = None;
            }
        }
    }

    /// A client leaves its proxy, and reads the tables and `tidings.position()` with one snapshot.
    fn start(&self, s: &mut State, c: u8, at_standby: bool) {
        if self.scenario.rules.has(Rule::PositionIsFlushed) && !at_standby {
            self.secure(&mut s.database);
        }
        let shown = self.shown(s, at_standby);
        let last = shown.database.last();
        let snapshot = shown.snapshot(shown.database.next_xid);
        let new = self.transactions(&shown, last.until, snapshot);
        let count = new.iter().map(|w| shown.writer(*w).stamps.len() as u8).sum();
        let stamp = new.iter().map(|w| shown.writer(*w).last_stamp()).max().unwrap_or(0);
        let skip = Skip { snapshot, stamp };
        let base = self.all_events(&shown);
        let client = &mut s.clients[c as usize];
        client.at = None;
        client.id = (last.number, END);
        // If it has read nothing behind the tick, the short form says the same.
        client.seen = (count > 0).then_some(Seen { skip, count });
        client.read_at = Some(last.number);
        client.got.clear();
        client.base = base;
    }

    /// The server crashes and starts again, or another takes its place. Of the records that were at risk, the first
    /// `kept` are there. All connections break.
    pub fn crash(&self, s: &mut State, kept: u8) {
        for record in s.database.wal.split_off(kept as usize).into_iter().rev() {
            match record.kind {
                Kind::Tick(number) => {
                    s.database.ticks.retain(|tick| tick.number != number);
                    s.database.hidden = s.database.hidden.filter(|tick| tick.number != number);
                }
                Kind::Commit(w) if self.script(w).is_prepared => s.writers[w as usize].phase = Phase::Prepared,
                Kind::Commit(w) | Kind::Segment(w) | Kind::Prepare(w) => s.writers[w as usize].phase = Phase::Gone,
            }
        }
        for writer in &mut s.writers {
            match writer.phase {
                Phase::Committing => writer.phase = Phase::Committed,
                Phase::Running | Phase::Logged => writer.phase = Phase::Gone,
                _ => {}
            }
        }
        let database = &mut s.database;
        database.ticks.extend(database.hidden.take());
        database.replayed = database.replayed.min(kept);
        database.next_xid = database.wal.iter().map(|record| record.xid + 1).fold(database.safe_xid, Xid::max);
        database.first_xid = database.next_xid;
        database.relay = false;
        database.look = None;
        if !self.scenario.rules.has(Rule::ClockNeverGoesBack) {
            let living = s.writers.iter().filter(|writer| writer.phase != Phase::Gone).map(Writer::last_stamp);
            database.clock = living.fold(database.last().number, Stamp::max);
        }
        self.secure(database);
        for proxy in s.proxies.iter_mut().filter(|proxy| !proxy.at_standby) {
            proxy.connected = false;
        }
    }

    /// A proxy dies and starts again, without its memory and its clients.
    fn die(&self, s: &mut State, p: u8) {
        let proxy = &mut s.proxies[p as usize];
        *proxy = Proxy { connected: false, at_standby: proxy.at_standby, memory: Vec::new(), skip: None };
        for client in s.clients.iter_mut().filter(|client| client.at == Some(p)) {
            client.at = None;
        }
    }

    /// A client is cut off from its proxy.
    fn cut_off(&self, s: &mut State, c: u8) {
        s.clients[c as usize].at = None;
    }

    /// The oldest tick and its events leave the log, because their retention has ended. This is flushed at once.
    fn remove(&self, s: &mut State) {
        self.secure(&mut s.database);
        s.database.removed += 1;
    }

    /// The state after an action.
    pub fn act(&self, before: &State, action: Action) -> State {
        let mut s = before.clone();
        match action {
            Action::Begin(w) => self.begin(&mut s, w),
            Action::Log(w) => self.log(&mut s, w),
            Action::Commit(w) => self.commit(&mut s, w),
            Action::End(w) => self.end(&mut s, w),
            Action::Look => self.look(&mut s),
            Action::Cut => self.cut(&mut s),
            Action::CutAll => self.cut_all(&mut s),
            Action::StartRelay => self.start_relay(&mut s),
            Action::Connect(p) => self.connect(&mut s, p),
            Action::Hear(p) => self.hear(&mut s, p),
            Action::Come(c, p) => self.come(&mut s, c, p),
            Action::Read(c, p) => self.read(&mut s, c, p),
            Action::Start(c, at_standby) => {
                s.left.starts -= 1;
                self.start(&mut s, c, at_standby);
            }
            Action::Show => self.show(&mut s.database),
            Action::Flush => self.flush(&mut s.database),
            Action::Replay => self.replay(&mut s.database),
            Action::Promote(kept) => {
                s.left.promotions -= 1;
                self.promote(&mut s, kept);
            }
            Action::ChangeServer(p) => {
                s.left.moves -= 1;
                self.change_server(&mut s, p);
            }
            Action::Crash(kept) => {
                s.left.crashes -= 1;
                self.crash(&mut s, kept);
            }
            Action::Die(p) => {
                s.left.deaths -= 1;
                self.die(&mut s, p);
            }
            Action::CutOff(c) => {
                s.left.cuts -= 1;
                self.cut_off(&mut s, c);
            }
            Action::Remove => {
                s.left.removals -= 1;
                self.remove(&mut s);
            }
        }
        s
    }
}

/// Goes on to the next event of the tick that a proxy is in: its clients get it, unless it is passed over.
fn publish(s: &mut State, p: u8, event: Event, passes: bool) {
    let Some(heard) = s.proxies[p as usize].memory.last_mut() else { return };
    heard.n += 1;
    if passes {
        heard.passed = heard.n;
        return;
    }
    heard.events.push((heard.n, event));
    let place = (heard.tick, heard.n);
    for client in s.clients.iter_mut().filter(|client| client.at == Some(p)) {
        client.got.push(event);
        client.id = place;
    }
}
