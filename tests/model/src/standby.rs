//! A hot standby, with proxies that read there: what it gets, what it shows and when, and its promotion.
//!
//! Everything that a server shows is a state of its own, made from the true one: so the functions of `protocol.rs` are
//! those of both servers.

use std::borrow::Cow;

use crate::actions::Action;
use crate::protocol::Protocol;
use crate::rules::Rule;
use crate::state::*;

impl Database {
    /// The records that the standby has yet to replay.
    fn unreplayed(&self) -> &[Record] {
        &self.wal[self.replayed.into()..]
    }

    /// What is flushed and replayed is on both servers for good.
    pub fn forget_replayed(&mut self) {
        let count = self.replayed.min(self.flushed);
        for record in self.wal.drain(..usize::from(count)) {
            self.safe_xid = self.safe_xid.max(record.xid + 1);
        }
        self.replayed -= count;
        self.flushed -= count;
    }
}

impl State {
    /// Whether one of the servers shows a writer's transaction as committed.
    pub fn is_shown(&self, w: u8) -> bool {
        match self.writer(w).phase {
            Phase::Committed => true,
            Phase::Committing => self.database.standby && self.is_replayed(w),
            _ => false,
        }
    }

    /// Whether a commit, which is written, is replayed.
    fn is_replayed(&self, w: u8) -> bool {
        !self.database.unreplayed().iter().any(|record| record.kind == Kind::Commit(w))
    }

    /// The highest stamp that the standby has replayed.
    fn replayed_clock(&self, ticks: &[Tick]) -> Stamp {
        let is_of = |record: &&Record, w| matches!(record.kind, Kind::Segment(v) | Kind::Prepare(v) if v == w);
        let segments = (0u8..).zip(&self.writers).filter_map(|(w, writer)| {
            let missing = self.database.unreplayed().iter().filter(|record| is_of(record, w)).count();
            writer.stamps.get(..writer.stamps.len().saturating_sub(missing))?.last().copied()
        });
        segments.chain(ticks.iter().map(|tick| tick.number)).max().unwrap_or(0)
    }
}

impl Protocol {
    /// What the server of a proxy shows.
    pub fn shown_at<'a>(&self, s: &'a State, p: u8) -> Cow<'a, State> {
        self.shown(s, s.proxies[p as usize].at_standby)
    }

    /// What one of the servers shows. The standby shows those commits and ticks that it has replayed, whatever the
    /// primary shows.
    pub fn shown<'a>(&self, s: &'a State, at_standby: bool) -> Cow<'a, State> {
        if !at_standby {
            return Cow::Borrowed(s);
        }
        let mut shown = s.clone();
        for (w, writer) in (0u8..).zip(&mut shown.writers) {
            if matches!(writer.phase, Phase::Committing | Phase::Committed) {
                writer.phase = if s.is_replayed(w) { Phase::Committed } else { Phase::Committing };
            }
        }
        let is_replayed =
            |tick: &Tick| !s.database.unreplayed().iter().any(|record| record.kind == Kind::Tick(tick.number));
        let database = &mut shown.database;
        database.ticks.extend(database.hidden.take());
        database.ticks.retain(is_replayed);
        database.clock = s.replayed_clock(&database.ticks);
        let replayed = s.database.wal.iter().take(s.database.replayed.into()).map(|record| record.xid + 1);
        database.next_xid = replayed.fold(s.database.safe_xid, Xid::max);
        Cow::Owned(shown)
    }

    /// The commit record of a tick is written. Where there is a standby, the sessions of the primary see it later.
    pub fn show_later(&self, database: &mut Database, tick: Tick) {
        if database.standby {
            database.hidden = Some(tick);
        } else {
            database.ticks.push(tick);
        }
    }

    /// The sessions of the primary see the last tick. If it is to be flushed first, the relay has waited for that.
    pub fn show(&self, database: &mut Database) {
        let Some(tick) = database.hidden.take() else { return };
        database.ticks.push(tick);
        if tick.flushed_first {
            self.secure_up_to(database, Kind::Tick(tick.number));
        }
    }

    /// Everything that is written is flushed, for whatever reason.
    pub fn flush(&self, database: &mut Database) {
        self.secure(database);
    }

    /// The standby replays the next commit, and what comes before it.
    pub fn replay(&self, database: &mut Database) {
        if let Some(count) = self.next_replay(database) {
            database.replayed += count;
            database.forget_replayed();
        }
    }

    /// The primary is gone, and the standby takes its place. It has replayed what it had received: what counts as
    /// flushed, or, if it lags, the first `kept` records of that. Proxies find the new primary.
    pub fn promote(&self, s: &mut State, kept: u8) {
        s.database.standby = false;
        s.database.flushed = 0;
        for proxy in &mut s.proxies {
            proxy.at_standby = false;
        }
        self.crash(s, kept);
        s.database.replayed = 0;
    }

    /// The connection of a proxy ends, and it goes to the other server.
    pub fn change_server(&self, s: &mut State, p: u8) {
        let proxy = &mut s.proxies[p as usize];
        proxy.connected = false;
        proxy.at_standby = !proxy.at_standby;
    }

    /// Whether a server that does not show a tick has to wait for it before it can say anything about it. Ticks have the
    /// order of their commit records, so a tick that is missing among those that a standby has replayed is lost.
    pub fn is_awaited(&self, s: &State, shown: &State, p: u8, number: Stamp) -> bool {
        let is_beyond = number > shown.database.last().number;
        if s.proxies[p as usize].at_standby {
            let is_late = is_beyond || !(shown.database.knows(number) || self.has(Rule::EarlierTickIsLost));
            is_late && self.has(Rule::UnreplayedIsAwaited)
        } else {
            let is_cut = s.database.hidden.is_some_and(|tick| number <= tick.number);
            is_beyond && is_cut && self.has(Rule::CutTickIsAwaited)
        }
    }

    /// Whether a proxy's server must wait before it can serve a client from the log.
    pub fn waits(&self, s: &State, shown: &State, client: &Client, p: u8) -> bool {
        let is_unseen = |seen: Seen| shown.writers.iter().any(|w| w.is_ending() && self.hides(shown, seen.skip, w));
        self.is_awaited(s, shown, p, client.id.0)
            || (self.has(Rule::SeenIsAwaited) && client.seen.is_some_and(is_unseen))
    }

    /// How many records the standby replays up to the next commit; none if it has not received any.
    fn next_replay(&self, database: &Database) -> Option<u8> {
        let received = if self.has(Rule::OnlyFlushedIsSent) { database.flushed.into() } else { database.wal.len() };
        let received = database.wal.get(database.replayed.into()..received)?;
        let is_commit = |record: &Record| matches!(record.kind, Kind::Commit(_) | Kind::Tick(_));
        received.iter().position(is_commit).map(|i| i as u8 + 1)
    }

    /// What can happen because there is a standby.
    pub fn standbys_actions(&self, s: &State, actions: &mut Vec<Action>) {
        let database = &s.database;
        if !database.standby {
            return;
        }
        if usize::from(database.flushed) < database.wal.len() {
            actions.push(Action::Flush);
        }
        if self.next_replay(database).is_some() {
            actions.push(Action::Replay);
        }
        if s.left.promotions > 0 {
            let least = if self.scenario.standby_lags { database.replayed } else { database.flushed };
            actions.extend((least..=database.flushed).map(Action::Promote));
        }
        if s.left.moves > 0 {
            actions.extend((0..self.scenario.proxies).map(Action::ChangeServer));
        }
    }
}
