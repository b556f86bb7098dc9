//! A question about access, the clients that wait for its answer, and the answer.

use std::sync::{Arc, OnceLock};

use futures_util::future::join_all;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// In the turns of how many identities one question may wait. The askers of further identities wait for the same
/// answer, without a turn of their own.
const MAX_IDENTITIES: usize = 100;

/// A topic that the claims may not subscribe to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The topic.
    pub topic: Arc<str>,
    /// The reason, which is for the log and not for the client.
    pub reason: Arc<str>,
}

/// The database's answer: the refused topics; none if all are allowed.
pub type Verdict = Result<Vec<Refusal>, Unanswered>;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// Too many are already waiting.
    #[error("access can't be checked: too many requests are waiting")]
    Full,
    /// Other questions took too long.
    #[error("access can't be checked: no answer in time")]
    Late,
    /// The question has to be asked alone, because its rules are slow, and got no answer in time.
    #[error("access can't be checked: its rules are slow, and there was no answer in time")]
    Slow,
    /// Its rules wait for a lock, such as one that a migration holds.
    #[error("access can't be checked: its rules wait for a lock")]
    Locked,
    /// Connections break again and again during the question.
    #[error("access can't be checked: its rules end the connection")]
    Broken,
    /// The database can't be asked.
    #[error("access can't be checked: {0}")]
    Database(Arc<str>),
    /// The application gave no clear answer.
    #[error("access can't be checked: the application {0}")]
    Application(Arc<str>),
    /// The keys for tokens have not been fetched yet.
    #[error("access can't be checked: the keys for tokens have not been fetched yet")]
    Keys,
    /// The proxy is shutting down.
    #[error("access can't be checked: the proxy is shutting down")]
    ShuttingDown,
}

/// Claims, as JSON, and topics.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// The claims.
    pub claims: Arc<str>,
    /// The topics to subscribe to.
    pub topics: Arc<[Arc<str>]>,
}

/// A request that waits for an answer. Dropping its receiver withdraws the question.
#[derive(Debug)]
pub struct Asker {
    /// Where the answer is sent.
    pub reply: oneshot::Sender<Verdict>,
    /// Released when the question is answered, or has to be asked alone.
    pub permit: Option<OwnedSemaphorePermit>,
    /// Set when the question has to be asked alone.
    pub alone: Arc<OnceLock<Alone>>,
}

/// Why a question is asked alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alone {
    /// Its rules take long.
    Slow,
    /// Its rules waited for a lock, or their code raised the same error.
    Locked,
    /// The connection broke during it.
    Broken,
}

/// A question and everyone that waits for its answer.
#[derive(Debug)]
pub struct Check {
    /// The question.
    pub question: Question,
    /// The requests that wait.
    pub askers: Vec<Asker>,
    /// The identities in whose turns it waits; the first turn decides. Once the question has been taken, the identity
    /// of that turn comes first.
    pub identities: Vec<Arc<str>>,
    /// How many connections broke during this question.
    pub breaks: u8,
}

impl Check {
    /// Sends the answer to everyone who waits.
    pub fn answer(self, verdict: &Verdict) {
        for asker in self.askers {
            // An asker that has left in the meantime needs no answer.
            let _ = asker.reply.send(verdict.clone());
        }
    }

    /// The identity in whose turn it was taken.
    pub fn identity(&self) -> Arc<str> {
        self.identities[0].clone()
    }

    /// Adds the askers of the same question; returns the identities that did not ask it before.
    pub fn join(&mut self, same: Self) -> Vec<Arc<str>> {
        self.breaks = self.breaks.max(same.breaks);
        self.askers.extend(same.askers);
        let is_new = |identity: &Arc<str>| !self.identities.contains(identity);
        let room = MAX_IDENTITIES.saturating_sub(self.identities.len());
        let new: Vec<_> = same.identities.into_iter().filter(is_new).take(room).collect();
        self.identities.extend(new.iter().cloned());
        new
    }

    /// Removes askers that have left; false if nobody is left.
    pub fn is_wanted(&mut self) -> bool {
        self.askers.retain(|asker| !asker.reply.is_closed());
        !self.askers.is_empty()
    }

    /// Waits until all askers have left.
    pub async fn abandoned(&mut self) {
        join_all(self.askers.iter_mut().map(|asker| asker.reply.closed())).await;
    }
}
