//! Brings one client from its position to the live stream when memory can't do it in one step: from the log, page by
//! page, or from memory, part by part, always at the client's own pace.

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
use crate::upstream::reads::{ClientLog, Reads};

/// Rows of the first page: events may be large, so it starts small.
const FIRST_PAGE: i32 = 64;

/// Rows of a page at most.
const MAX_PAGE: i32 = 1000;

/// What a page should hold, in bytes.
const PAGE_BYTES: usize = 512 * 1024;

/// The longest wait for the hub's next tick before checking again.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long to wait until a server has reached a position; a relay that was down has started again by then. A position
/// that no server ever reaches must not be asked for forever: its stream ends, and the client may try another proxy.
const TOO_EARLY: Duration = Duration::from_secs(20);

/// A client that is catching up.
#[derive(Debug)]
pub struct Replay<L = Reads> {
    /// The hub that it joins at the end.
    pub hub: Arc<Hub>,
    /// Where the log is read.
    pub reads: Arc<L>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The client.
    pub subscriber: Arc<Subscriber>,
    /// Its topics.
    pub topics: Vec<Arc<str>>,
}

/// How far a replay has come.
struct Cursor {
    /// Everything up to here has been queued; `None` for the beginning of the log.
    after: Option<Position>,
    /// Whether the log has confirmed the position.
    located: bool,
    rows: i32,
    from_log: bool,
    /// Since when the server has been known not to have reached the position.
    early: Option<Instant>,
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

impl<L: ClientLog> Replay<L> {
    /// Serves the client everything after `after`, or everything that is retained, until it is live or has
    /// disconnected.
    pub async fn run(self, after: Option<Position>) {
        self.metrics.replaying.rise();
        let mut cursor = Cursor { after, located: false, rows: FIRST_PAGE, from_log: false, early: None };
        while self.subscriber.room().await {
            match self.step(&mut cursor).await {
                Ok(false) => {}
                Ok(true) => break,
                Err(error) if is_final(&error) => {
                    let why = if matches!(error, DatabaseError::Lost) { Reset::Lost } else { Reset::Expired };
                    if self.reset(why).await {
                        break;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "replay waits for the database");
                    cursor.located = false;
                    sleep(PATIENCE.mul_f64(0.2 + 0.8 * fastrand::f64())).await;
                }
            }
        }
        self.metrics.replaying.fall();
    }

    /// One step; true when the client is live.
    async fn step(&self, cursor: &mut Cursor) -> Result<bool, DatabaseError> {
        // Subscribed before the checks, so that no tick is missed between the checks and the wait.
        let ticks = self.hub.ticks();
        let mut ahead = false;
        if let Some(after) = cursor.after.as_ref().filter(|after| after.seen.is_none()) {
            match self.hub.resume(&self.subscriber, &self.topics, after.into()) {
                Joined::Live => {
                    let source = if cursor.from_log { &self.metrics.resumed_log } else { &self.metrics.resumed_memory };
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
        if !cursor.located {
            return self.locate(cursor, ticks).await.map(|()| false);
        }
        if ahead {
            // The log has been read beyond the hub's place; the hub will get there soon.
            cursor.located = next(ticks).await;
            return Ok(false);
        }
        self.page(cursor).await.map(|()| false)
    }

    /// Asks the log for the position to continue from, and waits until the hub knows everything that the log knew then.
    async fn locate(&self, cursor: &mut Cursor, mut ticks: Ticks) -> Result<(), DatabaseError> {
        let text = cursor.after.as_ref().map_or("earliest".to_string(), Position::to_string);
        let (located, last) = self.reads.locate(&text).await?;
        match located {
            None => self.wait_for_server(cursor, ticks).await,
            // The log returns an earlier position, or one without the snapshot: the client may have seen lost events.
            Some(position) if cursor.after.as_ref().is_some_and(|after| *after != position) => {
                return Err(DatabaseError::Lost);
            }
            Some(position) => {
                let reached = timeout(PATIENCE, ticks.wait_for(|tick| tick.is_some_and(|tick| tick >= last))).await;
                cursor.located = reached.is_ok();
                cursor.after = Some(position);
            }
        }
        Ok(())
    }

    /// Waits while the server has not reached the position: usually for the next tick.
    async fn wait_for_server(&self, cursor: &mut Cursor, ticks: Ticks) {
        let waited = cursor.early.get_or_insert_with(Instant::now).elapsed();
        if waited < PATIENCE {
            next(ticks).await;
        } else if waited < TOO_EARLY {
            sleep(PATIENCE).await;
        } else {
            self.subscriber.close(End::Finished);
        }
    }

    /// Reads one page of the log. Even if the next one fails, the client has advanced to the end of this one.
    async fn page(&self, cursor: &mut Cursor) -> Result<(), DatabaseError> {
        let Some(after) = cursor.after.clone() else { return Ok(()) };
        // Taken before the page is read, so the last page has everything up to here.
        let known = *self.hub.ticks().borrow();
        let page = self.reads.page(&after, &self.topics, cursor.rows).await?;
        cursor.from_log = true;
        let (rows, bytes) = (page.events.len(), page.events.iter().map(|event| event.frame.len()).sum::<usize>());
        for event in page.events {
            self.metrics.log_events.add(1);
            if !self.subscriber.room().await || !self.subscriber.feed(event.frame) {
                return Ok(());
            }
            cursor.after = Some(event.position);
        }
        if page.more {
            if rows == 0 {
                // A client that is cut off in a long part of the log without its events resumes here, not at the
                // beginning.
                self.subscriber.feed(Frame::position(page.reached.clone()));
            }
            cursor.after = Some(page.reached);
            if rows == cursor.rows as usize {
                let fitting = rows * PAGE_BYTES / bytes.max(1);
                cursor.rows = i32::try_from(fitting).unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE);
            }
        } else {
            // Everything that the client's snapshot saw is in ticks that the hub knew when the position was located, so
            // from here on the snapshot does not matter.
            let reached = Place::from(&page.reached);
            let known = known.map_or(reached, Place::after_tick);
            cursor.after = Some(known.max(reached).position());
        }
        Ok(())
    }

    /// Sends the client a reset and makes it live; false if the hub does not know the present yet.
    async fn reset(&self, why: Reset) -> bool {
        let ticks = self.hub.ticks();
        if self.hub.place().is_none() && !next(ticks).await {
            return false;
        }
        self.hub.join_with_reset(&self.subscriber, &self.topics, why);
        true
    }
}

#[cfg(test)]
mod tests;
