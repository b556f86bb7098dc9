//! Streams that start with the current rows (`since=snapshot`): which of them wait for a reading, and which share one.
//!
//! A few readings run at a time, and the others wait in order. One identity has at most half of the places, so that its
//! slow clients do not make all others wait. Streams that wait for the same topics with the same claims share one
//! reading, which begins when it is the turn of any of their identities. It goes at the pace of its clients: frames
//! that some clients have taken and others have not are kept in a window of bounded size. A client that falls behind
//! the window for too long starts over, with a reading of its own.
//!
//! Not here: how rows are read (`reading`).

mod shared;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidings_wire::Position;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};

use crate::metrics::{Gauge, Metrics};
use crate::stream::frame::Frame;
use crate::stream::subscriber::{End, Subscriber};
use crate::upstream::database::DatabaseError;
use crate::upstream::reading::{Reading, Readings, Rows};
use crate::upstream::replay::{Replay, TopicLog};

use shared::{Member, Outcome, Shared, Taken};

/// The longest wait between two attempts while the database is away.
const RETRY: Duration = Duration::from_secs(1);

/// In the turns of how many identities one reading may wait. The streams of further identities wait for the same
/// reading, without a turn of their own.
const MAX_IDENTITIES: usize = 100;

/// What a stream asks for. Streams that ask for the same share a reading.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wish {
    /// The claims, as JSON. Without claims, the proxy's own role reads.
    pub claims: Option<Arc<str>>,
    /// The topics.
    pub topics: Arc<[Arc<str>]>,
    /// How the rows are sent.
    pub form: Form,
}

/// How rows are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// As the beginning of a stream.
    Events,
    /// As one JSON text.
    Json,
}

/// The readings that run and those that wait.
#[derive(Debug)]
pub struct Snapshots {
    readings: Readings,
    /// How long a reading may take.
    limit: Duration,
    permits: Semaphore,
    /// The places of each identity that waits or reads.
    shares: Mutex<HashMap<Arc<str>, Arc<Semaphore>>>,
    /// How many places one identity may have.
    share: usize,
    /// Whether a right to a stream may end: access is not open to everyone.
    is_guarded: bool,
    metrics: Arc<Metrics>,
    /// Groups whose reading has not begun.
    waiting: Mutex<HashMap<Wish, Group>>,
}

/// Streams that wait for the same reading.
#[derive(Debug)]
struct Group {
    shared: Arc<Shared>,
    /// In whose turns it waits.
    identities: Vec<Arc<str>>,
}

/// One stream that starts with rows, until it is live.
#[derive(Debug)]
pub struct Arrival {
    /// The readings to join.
    pub snapshots: Arc<Snapshots>,
    /// What it wants to read.
    pub wish: Wish,
    /// In whose turn.
    pub identity: Arc<str>,
    /// The log, for the changes after the rows.
    pub log: TopicLog,
    /// The client.
    pub subscriber: Arc<Subscriber>,
    /// How long the client is asked to wait if its rows can't be read.
    pub long_retry: Duration,
}

impl Arrival {
    /// Serves the client until it is live or gone: the events after `after`, or, without that, the rows.
    pub async fn run(self, mut after: Option<Position>) {
        loop {
            if let Some(position) = after.take() {
                let replay = Replay { log: self.log.clone(), subscriber: self.subscriber.clone() };
                let Err(why) = replay.run_from(position).await else { return };
                self.log.hub.count_resets(why, 1);
            }
            match self.snapshot().await {
                Some(position) => after = Some(position),
                None => return,
            }
        }
    }

    /// Sends the rows and ends the response. If the rows can't be read to the end, the response is cut off.
    pub async fn run_once(self) {
        let mut member = self.snapshots.join(&self, false);
        let mut is_first = true;
        while let Some(taken) = self.take(&mut member).await {
            match taken {
                Taken::Frame(frame) => self.feed(frame, &mut is_first),
                Taken::End(Outcome::Complete(_)) => _ = self.subscriber.close(End::Finished),
                Taken::End(_) => _ = self.subscriber.close(End::Gone),
            }
        }
    }

    /// Sends the rows. Returns their position, or `None` if the stream has ended.
    async fn snapshot(&self) -> Option<Position> {
        let (mut alone, metrics) = (false, &self.snapshots.metrics);
        loop {
            let mut member = self.snapshots.join(self, alone);
            let mut is_first = true;
            let outcome = loop {
                match self.take(&mut member).await? {
                    Taken::Frame(frame) => self.feed(frame, &mut is_first),
                    Taken::End(outcome) => break outcome,
                }
            };
            match outcome {
                Outcome::Complete(position) => return Some(position),
                Outcome::Behind => {
                    metrics.snapshots_behind.add(1);
                    alone = true;
                }
                Outcome::Away => sleep(RETRY.mul_f64(0.2 + 0.8 * fastrand::f64())).await,
                // The client has no id yet, so it starts over when it comes back.
                Outcome::Refused => {
                    self.subscriber.feed(Frame::retry(self.long_retry));
                    self.subscriber.close(End::Finished);
                    return None;
                }
            }
        }
    }
}

impl Arrival {
    /// What a reading has next, as soon as the client has room; `None` if the stream has ended. So nothing is read for
    /// a client that left while it waited.
    async fn take(&self, member: &mut Member) -> Option<Taken> {
        if !self.subscriber.room().await {
            return None;
        }
        tokio::select! {
            biased;
            taken = member.next() => Some(taken),
            () = self.subscriber.over() => None,
        }
    }

    /// Queues a frame of a reading. By the first one, the hub must know every recheck that comes before the rows. If
    /// there was one since the right was checked, the rows wait until it has been checked again.
    fn feed(&self, frame: Frame, is_first: &mut bool) {
        if std::mem::take(is_first)
            && let Some(place) = self.log.hub.place()
        {
            self.log.hub.hold_back(&self.subscriber, &self.log.topics, place);
        }
        self.subscriber.feed(frame);
    }
}

impl Snapshots {
    /// At most `parallel` readings at a time.
    pub fn new(
        readings: Readings,
        parallel: usize,
        limit: Duration,
        is_guarded: bool,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let (permits, share) = (Semaphore::new(parallel), (parallel / 2).max(1));
        let (shares, waiting) = (Mutex::default(), Mutex::default());
        Arc::new(Self { readings, limit, permits, shares, share, is_guarded, metrics, waiting })
    }

    /// Joins the group that waits for the same, or founds it.
    fn join(self: &Arc<Self>, Arrival { wish, identity, log, .. }: &Arrival, alone: bool) -> Member {
        let mut waiting = self.waiting.lock();
        let (member, shared, is_new) = match waiting.get_mut(wish).filter(|_| !alone) {
            Some(group) => {
                self.metrics.snapshots_shared.add(1);
                let is_new = group.identities.len() < MAX_IDENTITIES && !group.identities.contains(identity);
                if is_new {
                    group.identities.push(identity.clone());
                }
                (Member::of(&group.shared), group.shared.clone(), is_new)
            }
            None => {
                self.metrics.snapshots_waiting.rise();
                let shared = Arc::new(Shared::default());
                if !alone {
                    let identities = vec![identity.clone()];
                    waiting.insert(wish.clone(), Group { shared: shared.clone(), identities });
                }
                (Member::of(&shared), shared, true)
            }
        };
        drop(waiting);
        if is_new {
            let (snapshots, wish, identity, log) = (self.clone(), wish.clone(), identity.clone(), log.clone());
            tokio::spawn(async move {
                let share = snapshots.share_of(&identity);
                snapshots.serve(&wish, &log, &shared, &share, alone).await;
                snapshots.leave(&identity, share);
            });
        }
        member
    }

    /// The places of an identity.
    fn share_of(&self, identity: &Arc<str>) -> Arc<Semaphore> {
        let mut shares = self.shares.lock();
        shares.entry(identity.clone()).or_insert_with(|| Arc::new(Semaphore::new(self.share))).clone()
    }

    /// Forgets an identity that has nothing to read any more.
    fn leave(&self, identity: &Arc<str>, share: Arc<Semaphore>) {
        let mut shares = self.shares.lock();
        drop(share);
        if shares.get(identity).is_some_and(|share| Arc::strong_count(share) == 1) {
            shares.remove(identity);
        }
    }

    /// Whether a group still waits. With `take` it stops waiting: from then on, no other stream can join.
    fn waits(&self, wish: &Wish, shared: &Arc<Shared>, take: bool) -> bool {
        let mut waiting = self.waiting.lock();
        let waits = waiting.get(wish).is_some_and(|group| Arc::ptr_eq(&group.shared, shared));
        if waits && take {
            waiting.remove(wish);
        }
        waits
    }

    /// Serves a group when it is an identity's turn, unless it was served in another identity's turn.
    async fn serve(&self, wish: &Wish, log: &TopicLog, shared: &Arc<Shared>, share: &Semaphore, alone: bool) {
        // The semaphores are never closed.
        let Ok(turn) = share.acquire().await else { return };
        if !alone && !self.waits(wish, shared, false) {
            return;
        }
        let Ok(permit) = self.permits.acquire().await else { return };
        if !alone && !self.waits(wish, shared, true) {
            return;
        }
        self.metrics.snapshots_waiting.fall();
        if shared.is_empty() {
            return;
        }
        let runs = Counted::on(&self.metrics.snapshots);
        let read = self.read(wish, log, shared).await;
        drop(runs);
        // The rest needs no transaction.
        drop((permit, turn));
        let outcome = match read {
            Ok(position) => {
                self.metrics.snapshots_complete.add(1);
                Outcome::Complete(match wish.form {
                    Form::Events => log.pass_on(Some(position.clone()), &**shared).await.0.unwrap_or(position),
                    // The client comes back with the position.
                    Form::Json => position,
                })
            }
            Err(outcome) => outcome,
        };
        shared.end(outcome);
    }

    /// Reads all rows. Returns their position.
    async fn read(&self, wish: &Wish, log: &TopicLog, shared: &Shared) -> Result<Position, Outcome> {
        let deadline = Instant::now() + self.limit;
        let opening = self.readings.open(wish.claims.as_deref(), &wish.topics);
        let mut reading = match timeout_at(deadline, opening).await {
            Ok(Ok(reading)) => reading,
            Ok(Err(error)) => return Err(self.failed(wish, &error)),
            Err(_) => return Err(self.too_slow(wish)),
        };
        if self.is_guarded {
            // The hub must know first which rechecks come before the rows.
            let known = tokio::select! {
                known = timeout_at(deadline, log.until_known(reading.position.clone())) => known,
                () = shared.deserted() => Ok(false),
            };
            if known != Ok(true) {
                reading.close().await;
                return Err(if known.is_ok() { Outcome::Away } else { self.too_slow(wish) });
            }
        }
        let passed = tokio::select! {
            // First, because it may be complete.
            biased;
            passed = timeout_at(deadline, self.pass_on(&mut reading, wish.form, shared)) => passed,
            () = shared.deserted() => Ok(Ok(false)),
        };
        match passed {
            Ok(Ok(false)) => {
                reading.cancel().await;
                // Nobody is left to hear it.
                Err(Outcome::Away)
            }
            Ok(Ok(true)) => {
                let position = reading.position.clone();
                reading.close().await;
                let ready = match wish.form {
                    Form::Events => Frame::ready(&position, &wish.topics),
                    Form::Json => Frame::text(&format!("],\"position\":\"{position}\"}}")),
                };
                self.metrics.snapshot_bytes.add(ready.len() as u64);
                shared.push(ready);
                Ok(position)
            }
            Ok(Err(error)) => {
                reading.close().await;
                Err(self.failed(wish, &error))
            }
            Err(_) => {
                reading.cancel().await;
                Err(self.too_slow(wish))
            }
        }
    }

    /// False if it ended because no stream is left.
    async fn pass_on(&self, reading: &mut Reading<'_>, form: Form, shared: &Shared) -> Result<bool, DatabaseError> {
        shared.push(match form {
            Form::Events => Frame::forget(),
            Form::Json => Frame::text("{\"reset\":{\"reason\":\"snapshot\"},\"events\":["),
        });
        let mut is_first = true;
        loop {
            let rows = reading.next().await?;
            if rows.is_empty() {
                return Ok(true);
            }
            let frame = match form {
                Form::Events => Frame::rows(
                    rows.iter().flat_map(|rows| rows.payloads.iter().map(|payload| (&*rows.event, &**payload))),
                ),
                Form::Json => Frame::text(&members(&rows, std::mem::take(&mut is_first))),
            };
            self.metrics.snapshot_rows.add(rows.iter().map(|rows| rows.payloads.len() as u64).sum());
            self.metrics.snapshot_bytes.add(frame.len() as u64);
            if !shared.room_for_one().await {
                return Ok(false);
            }
            shared.push(frame);
        }
    }

    fn failed(&self, wish: &Wish, error: &DatabaseError) -> Outcome {
        if error.blames_the_query() {
            self.metrics.snapshots_failed.add(1);
            tracing::warn!(%error, topics = ?wish.topics, "rows can't be read");
            Outcome::Refused
        } else {
            tracing::debug!(%error, "a snapshot waits for the database");
            Outcome::Away
        }
    }

    fn too_slow(&self, wish: &Wish) -> Outcome {
        self.metrics.snapshots_over.add(1);
        tracing::warn!(topics = ?wish.topics, limit = ?self.limit, "a snapshot took too long");
        Outcome::Refused
    }
}

/// Rows as members of a JSON array.
fn members(rows: &[Rows], is_first: bool) -> String {
    let mut text = String::new();
    for Rows { topic, event, payloads } in rows {
        for data in payloads {
            let separator = if is_first && text.is_empty() { "" } else { "," };
            text += separator;
            text += &serde_json::json!({ "event": event, "data": data, "topic": topic }).to_string();
        }
    }
    text
}

/// Counts something as long as it lives.
struct Counted<'g>(&'g Gauge);

impl<'g> Counted<'g> {
    fn on(gauge: &'g Gauge) -> Self {
        gauge.rise();
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fall();
    }
}
