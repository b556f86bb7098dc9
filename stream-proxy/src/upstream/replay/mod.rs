//! Brings one client from its position to the live stream when memory can't do it in one step: from the log, page by
//! page, or from memory, part by part, always at the client's own pace. The next page is read while the client gets one.

pub mod outlet;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tidings_wire::Position;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::metrics::Metrics;
use crate::stream::frame::{Frame, Reset};
use crate::stream::hub::{Hub, Joined};
use crate::stream::place::Place;
use crate::stream::subscriber::{End, Subscriber};
use crate::upstream::database::DatabaseError;
use crate::upstream::reads::{ClientLog, Page, Reads};
use crate::upstream::replay::outlet::{Outlet, Pace, pass_on};

/// The longest wait for the hub's next tick before checking again.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long to wait until a server has reached a position; a relay that was down has started again by then. A position
/// that no server ever reaches must not be asked for forever: its stream ends, and the client may try another proxy.
const TOO_EARLY: Duration = Duration::from_secs(20);

/// The events of some topics in the log, up to what the hub has in memory.
#[derive(Debug)]
pub struct TopicLog<L = Reads> {
    /// The hub that has the rest in memory.
    pub hub: Arc<Hub>,
    /// Where the log is read.
    pub reads: Arc<L>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The topics.
    pub topics: Arc<[Arc<str>]>,
}

impl<L> Clone for TopicLog<L> {
    fn clone(&self) -> Self {
        let Self { hub, reads, metrics, topics } = self;
        Self { hub: hub.clone(), reads: reads.clone(), metrics: metrics.clone(), topics: topics.clone() }
    }
}

/// A client that is catching up.
#[derive(Debug)]
pub struct Replay<L = Reads> {
    /// The events that it catches up on.
    pub log: TopicLog<L>,
    /// The client.
    pub subscriber: Arc<Subscriber>,
}

/// How far a replay has come.
struct Cursor {
    /// Everything up to here has been queued; `None` for the beginning of the log.
    after: Option<Position>,
    /// Whether the log has confirmed the position.
    located: bool,
    from_log: bool,
    /// The page after this one, if it has been read.
    ahead: Option<Ahead>,
    /// Since when the server, or the hub of a standby, has been known not to have reached the position.
    early: Option<Instant>,
}

/// A page that was read before it was needed.
struct Ahead {
    after: Position,
    page: Result<Page, DatabaseError>,
    /// From before it was read.
    ticks: Ticks,
}

/// Whether the same question would fail again.
fn is_final(error: &DatabaseError) -> bool {
    matches!(error, DatabaseError::Expired | DatabaseError::Lost) || error.blames_the_input()
}

type Ticks = watch::Receiver<Option<u64>>;

/// Waits for the hub's next tick; false if none comes soon.
async fn next(mut ticks: Ticks) -> bool {
    timeout(PATIENCE, ticks.changed()).await.is_ok()
}

impl Cursor {
    fn at(after: Option<Position>) -> Self {
        Self { after, located: false, from_log: false, ahead: None, early: None }
    }

    async fn wait_for_database(&mut self, error: &DatabaseError) {
        tracing::debug!(%error, "replay waits for the database");
        self.located = false;
        sleep(PATIENCE.mul_f64(0.2 + 0.8 * fastrand::f64())).await;
    }
}

/// Why a client has to read its data again, after an error that is final.
fn reset_after(error: &DatabaseError) -> Reset {
    if matches!(error, DatabaseError::Lost) { Reset::Lost } else { Reset::Expired }
}

impl<L: ClientLog> Replay<L> {
    /// Serves the client everything after `after`, or everything that is retained, until it is live or has
    /// disconnected.
    pub async fn run(self, after: Option<Position>) {
        let mut cursor = Cursor::at(after);
        while let Err(why) = self.until_reset(&mut cursor).await {
            if self.reset(why).await {
                break;
            }
        }
    }

    /// The same, but fails if the client has to read its data again.
    pub async fn run_from(&self, after: Position) -> Result<(), Reset> {
        self.until_reset(&mut Cursor::at(Some(after))).await
    }

    async fn until_reset(&self, cursor: &mut Cursor) -> Result<(), Reset> {
        self.log.metrics.replaying.rise();
        let mut result = Ok(());
        while self.subscriber.room().await {
            match self.step(cursor).await {
                Ok(false) => {}
                Ok(true) => break,
                Err(error) if is_final(&error) => {
                    result = Err(reset_after(&error));
                    break;
                }
                Err(error) => cursor.wait_for_database(&error).await,
            }
        }
        self.log.metrics.replaying.fall();
        result
    }

    /// One step; true when the client is live.
    async fn step(&self, cursor: &mut Cursor) -> Result<bool, DatabaseError> {
        let TopicLog { hub, metrics, topics, .. } = &self.log;
        // Subscribed before the checks, so that no tick is missed between the checks and the wait.
        let ticks = hub.ticks();
        let mut ahead = false;
        if let Some(after) = cursor.after.as_ref().filter(|after| after.seen.is_none()) {
            match hub.resume(&self.subscriber, topics, after.into()) {
                Joined::Live => {
                    let source = if cursor.from_log { &metrics.resumed_log } else { &metrics.resumed_memory };
                    source.add(1);
                    return Ok(true);
                }
                Joined::Partly(place) => {
                    cursor.after = Some(place.position());
                    return Ok(false);
                }
                Joined::TooOld => {}
                Joined::Ahead => ahead = true,
            }
        }
        // Usually a standby replays the position soon, and then the hub has it. If not, the log is asked, because the
        // standby may have the position, and only the hub be late.
        if ahead && self.log.may_come_soon(cursor) {
            next(ticks).await;
            return Ok(false);
        }
        if !cursor.located {
            if !self.log.locate(cursor, ticks).await? {
                self.subscriber.close(End::Finished);
            }
            return Ok(false);
        }
        if ahead {
            // The log has been read beyond the hub's place; the hub will get there soon.
            cursor.located = next(ticks).await;
            return Ok(false);
        }
        self.log.page(cursor, &*self.subscriber).await.map(|_| false)
    }

    /// Sends the client a reset and makes it live; false if the hub does not know the present yet.
    async fn reset(&self, why: Reset) -> bool {
        let TopicLog { hub, topics, .. } = &self.log;
        let ticks = hub.ticks();
        if hub.place().is_none() && !next(ticks).await {
            return false;
        }
        hub.join_with_reset(&self.subscriber, topics, why);
        true
    }
}

impl<L: ClientLog> TopicLog<L> {
    /// Passes on the events after a position, as long as they are wanted. Returns the position up to which it has: if
    /// nothing went wrong, the hub has the events from there on in memory. Also says whether that is because the
    /// position, or `None` for the beginning of the log, can't be served.
    pub async fn pass_on(&self, after: Option<Position>, out: &impl Outlet) -> (Option<Position>, Option<Reset>) {
        let mut cursor = Cursor::at(after);
        while out.room().await {
            let more = match cursor.located {
                true => self.page(&mut cursor, out).await,
                false => self.locate(&mut cursor, self.hub.ticks()).await,
            };
            match more {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if is_final(&error) => return (cursor.after, Some(reset_after(&error))),
                Err(error) => cursor.wait_for_database(&error).await,
            }
        }
        (cursor.after, None)
    }

    /// Waits until the hub knows everything that the position's snapshot saw. False if that can't be found out.
    pub async fn until_known(&self, position: Position) -> bool {
        let mut cursor = Cursor::at(Some(position));
        while !cursor.located {
            match self.locate(&mut cursor, self.hub.ticks()).await {
                Ok(true) => {}
                Ok(false) => return false,
                Err(error) if is_final(&error) => return false,
                Err(error) => cursor.wait_for_database(&error).await,
            }
        }
        true
    }

    /// Asks the log for the position to continue from, and waits until the hub knows everything that the log knew then.
    /// False if it seems that no server ever reaches the position.
    async fn locate(&self, cursor: &mut Cursor, mut ticks: Ticks) -> Result<bool, DatabaseError> {
        let text = cursor.after.as_ref().map_or("earliest".to_string(), Position::to_string);
        let (located, last) = self.reads.locate(&text).await?;
        match located {
            None => match self.reads.standby_patience() {
                Some(patience) => return self.wait_for_replay(cursor, ticks, patience).await,
                None => return Ok(wait_for_server(cursor, ticks).await),
            },
            // The log returns an earlier position, or one without the snapshot: the client may have seen lost events.
            Some(position) if cursor.after.as_ref().is_some_and(|after| *after != position) => {
                return Err(DatabaseError::Lost);
            }
            Some(position) => {
                let reached = timeout(PATIENCE, ticks.wait_for(|tick| tick.is_some_and(|tick| tick >= last))).await;
                cursor.located = reached.is_ok();
                cursor.after = Some(position);
                cursor.early = None;
            }
        }
        Ok(true)
    }

    /// Whether a standby may still replay, within its time, what the hub does not have yet.
    fn may_come_soon(&self, cursor: &mut Cursor) -> bool {
        let mut waited = || cursor.early.get_or_insert_with(Instant::now).elapsed();
        self.reads.standby_patience().is_some_and(|patience| waited() < patience)
    }

    /// Waits for the next tick, because a standby has not replayed what the client has from another server. After
    /// `patience` that counts as lost; or, if the standby is known to be behind, the result is false, and the client
    /// may try another proxy.
    async fn wait_for_replay(
        &self,
        cursor: &mut Cursor,
        ticks: Ticks,
        patience: Duration,
    ) -> Result<bool, DatabaseError> {
        let waited = cursor.early.get_or_insert_with(Instant::now).elapsed();
        if waited < patience {
            next(ticks).await;
            return Ok(true);
        }
        if self.reads.is_behind() { Ok(false) } else { Err(DatabaseError::Lost) }
    }

    async fn read(&self, after: Position, pace: Pace) -> Ahead {
        // Subscribed before the page is read, so that no tick is missed between the reading and the wait.
        let ticks = self.hub.ticks();
        let page = self.reads.page(&after, &self.topics, pace.page_bytes).await;
        Ahead { after, page, ticks }
    }

    /// Reads one page of the log; false if it was the last. Even if the next one fails, the client has advanced to the
    /// end of this one.
    async fn page(&self, cursor: &mut Cursor, out: &impl Outlet) -> Result<bool, DatabaseError> {
        let Some(after) = cursor.after.clone() else { return Ok(false) };
        if !cursor.from_log {
            // The log returns no rechecks up to the position, nor those that the position's snapshot saw. The hub knows
            // all of them by now. They may be newer than the right: the client may have the position from a server that
            // was ahead of this one.
            let until = if after.seen.is_some() { self.hub.place() } else { Some(Place::from(&after)) };
            until.into_iter().for_each(|until| out.hold_back(&self.hub, &self.topics, until));
        }
        let pace = out.pace();
        let Ahead { page, ticks, .. } = match cursor.ahead.take().filter(|ahead| ahead.after == after) {
            Some(ahead) => ahead,
            None => self.read(after.clone(), pace).await,
        };
        let page = page?;
        cursor.from_log = true;
        let reads_ahead = page.more && pace.reads_ahead;
        let ahead = async { if reads_ahead { Some(self.read(page.reached.clone(), pace).await) } else { None } };
        let (passed, ahead) =
            alongside(pass_on(&page, &self.topics, &mut cursor.after, out, &self.metrics), ahead).await?;
        let Some(count) = passed else { return Ok(false) };
        cursor.ahead = ahead;
        if page.more {
            if count == 0 {
                // A client that is cut off in a long part of the log without its events resumes here, not at the
                // beginning.
                out.feed(Frame::position(page.reached.clone()));
            }
            cursor.after = Some(page.reached);
        } else {
            // Everything that the client's snapshot saw is in ticks that the hub knew when the position was located, so
            // from here on the snapshot does not matter. The client is where the log ended, not at the hub's place: a
            // crash may have lost the hub's last tick.
            let reached = Place::from(&page.reached).position();
            if reached == after {
                // The hub's memory does not know the end of the log yet.
                next(ticks).await;
            }
            cursor.after = Some(reached);
        }
        Ok(page.more)
    }
}

/// Passes a page on while the next one is read, which is given up if the page fails or is not wanted any more.
async fn alongside(
    passing: impl Future<Output = Result<Option<usize>, DatabaseError>>,
    reading: impl Future<Output = Option<Ahead>>,
) -> Result<(Option<usize>, Option<Ahead>), DatabaseError> {
    let (mut passing, mut reading) = (pin!(passing), pin!(reading));
    // The reading first, because it has to ask the server.
    tokio::select! {
        biased;
        ahead = &mut reading => Ok((passing.await?, ahead)),
        passed = &mut passing => match passed? {
            None => Ok((None, None)),
            passed => Ok((passed, reading.await)),
        },
    }
}

/// Waits while the server has not reached the position: usually for the next tick. False after a long time.
async fn wait_for_server(cursor: &mut Cursor, ticks: Ticks) -> bool {
    let waited = cursor.early.get_or_insert_with(Instant::now).elapsed();
    if waited < PATIENCE {
        next(ticks).await;
    } else if waited < TOO_EARLY {
        sleep(PATIENCE).await;
    }
    waited < TOO_EARLY
}

#[cfg(test)]
mod tests;
