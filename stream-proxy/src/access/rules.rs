//! The rules in the database, for a client whose claims are known: before its stream opens, and again while it is open.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use tokio::sync::OwnedSemaphorePermit;

use crate::access::check::{Refusal, Unanswered, Verdict};
use crate::access::denied::Denied;
use crate::access::gate::{Gate, Who};
use crate::metrics::Metrics;

/// After this many checks in a row that found its rules waiting for a lock, a stream ends. A migration should not end
/// streams, but a rule's code can claim to wait for a lock, and must not keep a stream open forever that way.
const MAX_LOCKED: u32 = 5;

/// The reason that the database gives for a topic without a rule.
pub const NO_RULE: &str = "no rule matches";

/// Asks the database, and reports the outcome.
#[derive(Clone, Debug)]
pub struct Rules {
    gate: Gate,
    metrics: Arc<Metrics>,
}

impl Rules {
    /// Rules that `gate` asks about.
    pub fn new(gate: Gate, metrics: Arc<Metrics>) -> Self {
        Self { gate, metrics }
    }

    /// Whether `who` may subscribe to all of the topics.
    pub async fn authorize(&self, who: &Who, topics: &[Arc<str>]) -> Result<(), Denied> {
        let refused = self.gate.check(who, topics).await.inspect_err(|error| {
            self.metrics.auth_unanswered.add(1);
            tracing::warn!(%error, "subscription not checked");
        })?;
        if refused.is_empty() {
            self.metrics.auth_allowed.add(1);
            return Ok(());
        }
        self.metrics.auth_denied.add(1);
        for Refusal { topic, reason } in &refused {
            // In escaped form: a reason may contain a claim that a cast has put there, with a line break.
            let remedy =
                if &**reason == NO_RULE { "create one with tidings.allow()" } else { "look at the rule's query" };
            tracing::info!(topic = %topic, reason = ?reason, remedy, "subscription refused");
        }
        Err(Denied::Topics(refused.into_iter().map(|refusal| refusal.topic.to_string()).collect()))
    }

    /// Checks an open stream of `who`; says what ends it, if anything does. While the database is unavailable nothing
    /// does, because no new events arrive either.
    pub async fn check_again(
        &self,
        who: &Who,
        topics: &[Arc<str>],
        locked: &Locked,
        permit: OwnedSemaphorePermit,
    ) -> Option<Revoked> {
        let answer = self.gate.check_again(who, topics, permit).await;
        let is_stuck = locked.is_stuck(&answer);
        match answer {
            Ok(refused) if refused.is_empty() => None,
            Ok(refused) => Some(Revoked { refused, is_locked: false }),
            // Its own rules prevent the check. The client reconnects, and is admitted if it still has access.
            Err(error @ (Unanswered::Slow | Unanswered::Broken)) => Some(Revoked::all(topics, &error.to_string())),
            Err(error) if is_stuck => Some(Revoked { is_locked: true, ..Revoked::all(topics, &error.to_string()) }),
            Err(error) => {
                tracing::warn!(%error, "a subscription could not be checked again");
                None
            }
        }
    }
}

impl Rules {
    /// Checks an open stream of `who` that waits for the answer; says what ends it, if anything does.
    pub async fn check_held(
        &self,
        who: &Who,
        topics: &[Arc<str>],
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Option<Revoked>, Unanswered> {
        let refused = self.gate.check_held(who, topics, permit).await?;
        Ok((!refused.is_empty()).then_some(Revoked { refused, is_locked: false }))
    }
}

/// What an open stream may no longer have.
#[derive(Debug)]
pub struct Revoked {
    /// The topics, at least one.
    pub refused: Vec<Refusal>,
    /// Whether that is so because its rules have waited for a lock too often.
    pub is_locked: bool,
}

impl Revoked {
    /// All of these topics, for one reason.
    pub fn all<'t>(topics: impl IntoIterator<Item = &'t Arc<str>>, reason: &str) -> Self {
        let reason: Arc<str> = reason.into();
        let refuse = |topic: &Arc<str>| Refusal { topic: topic.clone(), reason: reason.clone() };
        Self { refused: topics.into_iter().map(refuse).collect(), is_locked: false }
    }

    /// Counts and logs it.
    pub fn report(&self, metrics: &Metrics) {
        if self.is_locked { &metrics.auth_locked } else { &metrics.auth_revoked }.add(1);
        self.log();
    }

    /// Logs it.
    pub fn log(&self) {
        for Refusal { topic, reason } in &self.refused {
            tracing::info!(%topic, reason = ?reason, "subscription revoked");
        }
    }
}

/// How many checks in a row found a stream's rules waiting for a lock.
#[derive(Debug, Default)]
pub struct Locked(AtomicU32);

impl Locked {
    /// Notes the result of a check. Returns whether too many in a row found a lock.
    fn is_stuck(&self, answer: &Verdict) -> bool {
        match answer {
            Ok(_) => self.0.store(0, Relaxed),
            Err(Unanswered::Locked) => return self.0.fetch_add(1, Relaxed) + 1 >= MAX_LOCKED,
            Err(_) => {}
        }
        false
    }
}
