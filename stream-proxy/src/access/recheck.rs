//! Checks the right to open streams again at the event of a guard, before they get anything that comes after it.
//! Streams with the same question share it.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::access::check::Unanswered;
use crate::access::open_streams::{Held, OpenStream};
use crate::access::rules::Revoked;
use crate::metrics::{Counter, Metrics};
use crate::stream::frame::{Frame, Unauthorized};
use crate::stream::subscriber::End;

/// The longest time for which a stream holds back what it has been sent. A check usually takes milliseconds; with
/// 10,000 streams at once, seconds.
const WAIT: Duration = Duration::from_secs(20);

/// How long to wait before the question is asked again, if there was no answer.
const PAUSE: Duration = Duration::from_millis(500);

/// Whom to ask about a group of streams.
pub trait Ask: Sync {
    /// What ends the streams, if anything does. It is asked after this call.
    fn ask(&self) -> impl Future<Output = Result<Option<Revoked>, Unanswered>> + Send;
}

/// What becomes of streams that hold something back.
#[derive(Clone, Debug)]
pub struct Rechecks {
    /// How long a client waits before it reconnects, on average.
    retry: Duration,
    metrics: Arc<Metrics>,
}

/// The streams in groups with the same question.
pub fn groups<R, Q: Eq + Hash>(held: Vec<Held<R>>, question: impl Fn(&OpenStream<R>) -> Q) -> Vec<Vec<Held<R>>> {
    let mut groups: HashMap<Q, Vec<Held<R>>> = HashMap::new();
    for held in held {
        groups.entry(question(&held.stream)).or_default().push(held);
    }
    groups.into_values().collect()
}

impl Rechecks {
    /// A client whose stream ends because of a missing answer reconnects after about `retry`.
    pub fn new(retry: Duration, metrics: Arc<Metrics>) -> Self {
        Self { retry, metrics }
    }

    /// Asks until there is an answer, which says what ends the streams, if anything does. The others continue. Without
    /// an answer in time they end, and their clients reconnect.
    pub async fn settle<R>(&self, group: &[Held<R>], whom: &impl Ask) {
        let begun = Instant::now();
        let deadline = begun + WAIT;
        let answer = loop {
            match timeout_at(deadline, whom.ask()).await.unwrap_or(Err(Unanswered::Late)) {
                Err(error) if may_pass(&error) && Instant::now() + PAUSE < deadline => sleep(PAUSE).await,
                answer => break answer,
            }
        };
        let (topics, streams) = (&group[0].stream.topics, group.len());
        match answer {
            Ok(None) => {
                group.iter().for_each(|held| held.stream.subscriber.release(held.tick));
                self.metrics.rechecks_allowed.add(streams as u64);
                tracing::debug!(?topics, streams, time = ?begun.elapsed(), "access confirmed after the event of a guard");
            }
            Ok(Some(revoked)) => {
                let last = || Frame::unauthorized(Unauthorized::Revoked);
                let ended = end(group, last, &self.metrics.rechecks_refused);
                self.metrics.auth_revoked.add(ended);
                revoked.log();
                tracing::info!(?topics, streams = ended, "access ended at the event of a guard");
            }
            Err(error) => {
                let last = || Frame::retry(self.retry.mul_f64(0.5 + fastrand::f64()));
                let ended = end(group, last, &self.metrics.rechecks_unanswered);
                tracing::warn!(%error, ?topics, streams = ended, "streams ended because access could not be checked after the event of a guard");
            }
        }
    }
}

/// Whether the same question may have an answer soon.
fn may_pass(error: &Unanswered) -> bool {
    !matches!(error, Unanswered::Slow | Unanswered::Broken | Unanswered::ShuttingDown)
}

/// Ends the streams, each with a last frame after what was before the event. Returns how many had not ended before.
fn end<R>(group: &[Held<R>], last: impl Fn() -> Frame, counter: &Counter) -> u64 {
    let ended = group.iter().filter(|held| held.stream.subscriber.conclude(last(), End::Revoked)).count() as u64;
    counter.add(ended);
    ended
}
