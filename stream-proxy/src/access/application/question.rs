//! A question to the application: its URL with the names that a client asks for, and the client's own headers. If
//! several requests have the same question at the same time, it is asked once for all of them.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{Shared, WeakShared};
use hyper::Uri;
use parking_lot::Mutex;
use url::Url;

use crate::access::application::answer::Answer;
use crate::access::check::Unanswered;
use crate::access::credentials::Forwarded;

/// What is asked, and for whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// The URL, with its query.
    pub target: Uri,
    /// The client's headers.
    pub headers: Forwarded,
    /// The newest recheck that is known. The answer must be given after it, so an earlier question
    /// can't be shared.
    pub since: u64,
}

impl Question {
    /// Asks `url` about each of `names`; `kind` is `topic` or `channel`. The URL keeps its own query.
    pub fn new(url: &Url, kind: &str, names: &[Arc<str>], headers: &Forwarded, since: u64) -> Result<Self, Unanswered> {
        let mut url = url.clone();
        url.query_pairs_mut().extend_pairs(names.iter().map(|name| (kind, name)));
        let target = Uri::try_from(url.as_str());
        let target = target.map_err(|_| Unanswered::Application("can't be asked: the URL is too long".into()))?;
        Ok(Self { target, headers: headers.clone(), since })
    }
}

/// The application's answer.
pub type Verdict = Result<Answer, Unanswered>;

type Asking = Pin<Box<dyn Future<Output = Verdict> + Send>>;

/// The questions without an answer so far, each with its own number.
#[derive(Clone, Debug, Default)]
pub struct Pending(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    questions: HashMap<Question, (u64, WeakShared<Asking>)>,
    count: u64,
}

impl Pending {
    /// How many questions have no answer so far.
    pub fn count(&self) -> usize {
        self.0.lock().questions.len()
    }

    /// The answer to a question. If the same question is already being asked, this waits for its answer; otherwise
    /// `ask` is called. When nobody waits any more, the question is withdrawn.
    pub fn join<F>(&self, question: &Question, ask: impl FnOnce() -> F) -> Shared<Asking>
    where
        F: Future<Output = Verdict> + Send + 'static,
    {
        let mut open = self.0.lock();
        if let Some(shared) = open.questions.get(question).and_then(|(_, weak)| weak.upgrade()) {
            return shared;
        }
        open.count += 1;
        let number = open.count;
        let (entry, asking) = (Entry { pending: self.clone(), question: question.clone(), number }, ask());
        let asking: Asking = Box::pin(async move {
            let _entry = entry;
            asking.await
        });
        let shared = asking.shared();
        if let Some(weak) = shared.downgrade() {
            open.questions.insert(question.clone(), (number, weak));
        }
        shared
    }
}

/// Removes a question when it has been answered or withdrawn.
struct Entry {
    pending: Pending,
    question: Question,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut open = self.pending.0.lock();
        // It may have been asked again in the meantime.
        if open.questions.get(&self.question).is_some_and(|(number, _)| *number == self.number) {
            open.questions.remove(&self.question);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::StatusCode;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use tokio::sync::Notify;

    fn question(url: &str, names: &[&str]) -> Question {
        let names: Vec<Arc<str>> = names.iter().map(|name| (*name).into()).collect();
        Question::new(&Url::parse(url).unwrap(), "topic", &names, &Arc::default(), 0).unwrap()
    }

    #[test]
    fn names_are_added_to_the_urls_own_query() {
        let target = |url, names: &[&str]| question(url, names).target.to_string();
        assert_eq!(target("http://app/may", &["a", "b c"]), "http://app/may?topic=a&topic=b+c");
        assert_eq!(target("http://app/may?key=%2F&x", &["a&b=c"]), "http://app/may?key=%2F&x&topic=a%26b%3Dc");
        assert_eq!(target("http://app", &["ü#?"]), "http://app/?topic=%C3%BC%23%3F");
    }

    #[tokio::test]
    async fn a_question_that_was_asked_before_a_recheck_does_not_answer_one_after_it() {
        let (pending, before) = (Pending::default(), question("http://app", &["a"]));
        let _before = pending.join(&before, std::future::pending);
        let after = Question { since: 7, ..before };
        let answer = pending.join(&after, || async { Ok(Answer::No(StatusCode::FORBIDDEN)) });
        assert_eq!(answer.await, Ok(Answer::No(StatusCode::FORBIDDEN)));
    }

    #[tokio::test]
    async fn the_same_question_is_asked_once_and_withdrawn_when_nobody_waits() {
        let (pending, asked, go) = (Pending::default(), Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let ask = |name: &str| {
            let (asked, go) = (asked.clone(), go.clone());
            pending.join(&question("http://app", &[name]), || async move {
                asked.fetch_add(1, Relaxed);
                go.notified().await;
                Ok(Answer::No(StatusCode::FORBIDDEN))
            })
        };
        let (one, same, other) = (ask("a"), ask("a"), ask("b"));
        assert_eq!(pending.count(), 2);
        drop(other);
        assert_eq!(pending.count(), 1);
        go.notify_one();
        let (one, same) = tokio::join!(one, same);
        assert_eq!((&one, pending.count(), asked.load(Relaxed)), (&same, 0, 1));
        go.notify_one();
        assert!(ask("a").await.is_ok());
        assert_eq!((pending.count(), asked.load(Relaxed)), (0, 2));
    }
}
