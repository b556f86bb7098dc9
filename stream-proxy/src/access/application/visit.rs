//! A client about which the application decides: before its stream is open (a visitor), and while it is (a visit).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::access::application::question::Question;
use crate::access::credentials::{Credentials, Forwarded};
use crate::access::gate::Who;
use crate::stream::hub::Seen;

/// How soon to ask again after a question without an answer.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// When to ask, and how long a stream may stay without an answer.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How often to ask again for an open stream.
    pub reauthorize: Duration,
    /// How long an open stream stays although the application gives no answer.
    pub grace: Duration,
    /// How long the application has for an answer.
    pub answer: Duration,
    /// How long a client waits before it reconnects, on average.
    pub retry: Duration,
}

/// A client before its stream is open.
#[derive(Clone, Debug)]
pub struct Visitor {
    /// The headers that are passed on to the application.
    pub headers: Forwarded,
    /// The question to which the application said yes.
    pub question: Option<Question>,
    /// The channel that it was allowed to listen to.
    pub channel: Option<Arc<str>>,
    /// Who it is, if the application has said so.
    pub who: Option<Who>,
    /// How long the yes is valid.
    pub expires_in: Option<Duration>,
    /// What the hub had published when it came.
    pub seen: Seen,
}

impl Visitor {
    /// The sender of a request with these credentials.
    pub fn new(credentials: &Credentials<'_>) -> Self {
        let (headers, seen) = (credentials.forwarded(), credentials.seen);
        Self { headers, question: None, channel: None, who: None, expires_in: None, seen }
    }
}

/// The right by which an open stream was admitted.
#[derive(Debug)]
pub struct Visit {
    /// The question to ask again.
    pub question: Question,
    /// Its channel, if it is not a stream of topics.
    pub channel: Option<Arc<str>>,
    times: Mutex<Times>,
}

#[derive(Debug)]
struct Times {
    /// When to ask again.
    due: Instant,
    /// Since when there has been no answer.
    unanswered: Option<Instant>,
}

impl Visit {
    /// The visit of an admitted stream. The application is asked again after `reauthorize`, or when its yes expires.
    pub fn begin(question: Question, visitor: Visitor, reauthorize: Duration) -> Self {
        let due = Instant::now() + next(visitor.expires_in, reauthorize);
        Self { question, channel: visitor.channel, times: Mutex::new(Times { due, unanswered: None }) }
    }

    /// Whether it is time to ask.
    pub fn is_due(&self, now: Instant) -> bool {
        self.times.lock().due <= now
    }

    /// Notes a yes.
    pub fn confirm(&self, expires_in: Option<Duration>, reauthorize: Duration) {
        *self.times.lock() = Times { due: Instant::now() + next(expires_in, reauthorize), unanswered: None };
    }

    /// Begins a question, and the grace if it has not begun. Returns until when to wait for the answer: a question may
    /// otherwise wait for its turn for longer than the grace.
    pub fn ask(&self, timing: Timing) -> Instant {
        let now = Instant::now();
        let since = *self.times.lock().unanswered.get_or_insert(now);
        (since + timing.grace).max(now + timing.answer)
    }

    /// Notes that there was no answer. True if that has been so for longer than the grace.
    pub fn postpone(&self, timing: Timing) -> bool {
        let now = Instant::now();
        let mut times = self.times.lock();
        let since = *times.unanswered.get_or_insert(now);
        let end = since + timing.grace;
        times.due = end.max(now).min(now + timing.reauthorize.min(ASK_AGAIN));
        now >= end
    }
}

/// The time until the next question. It varies, so that streams that were opened together are not all asked for
/// together; but an answer is never used after it has expired.
fn next(expires_in: Option<Duration>, reauthorize: Duration) -> Duration {
    let usual = reauthorize.mul_f64(0.75 + fastrand::f64() / 4.0);
    expires_in.map_or(usual, |expires_in| usual.min(expires_in))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Uri;

    const TIMING: Timing = Timing {
        reauthorize: Duration::from_secs(60),
        grace: Duration::from_secs(25),
        answer: Duration::from_secs(5),
        retry: Duration::from_secs(2),
    };

    fn visit(expires_in: Option<Duration>) -> Visit {
        let question = Question { target: Uri::from_static("http://app"), headers: Arc::default(), since: 0 };
        let (headers, seen) = (Arc::default(), Seen::default());
        let visitor = Visitor { headers, question: None, channel: None, who: None, expires_in, seen };
        Visit::begin(question, visitor, TIMING.reauthorize)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_asked_for_again_before_it_expires() {
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        assert!(!visit(None).is_due(after(44)) && visit(None).is_due(after(60)));
        let short = visit(Some(Duration::from_secs(5)));
        assert!(!short.is_due(after(4)) && short.is_due(after(5)));
        assert!(visit(Some(Duration::from_secs(500))).is_due(after(60)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_waits_until_the_grace_is_over_but_has_its_own_time() {
        let visit = visit(None);
        let (start, after) = (Instant::now(), |seconds| Instant::now() + Duration::from_secs(seconds));
        assert_eq!(visit.ask(TIMING), after(25));
        tokio::time::advance(Duration::from_secs(15)).await;
        assert_eq!(visit.ask(TIMING), start + TIMING.grace, "the grace goes on");
        tokio::time::advance(Duration::from_secs(8)).await;
        assert_eq!(visit.ask(TIMING), after(5));
        assert!(!visit.postpone(TIMING));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(visit.postpone(TIMING), "it counts from the first question");
        visit.confirm(None, TIMING.reauthorize);
        assert_eq!(visit.ask(Timing { grace: Duration::ZERO, ..TIMING }), after(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_stays_for_the_grace_and_a_yes_begins_it_anew() {
        let visit = visit(None);
        let mut answers = Vec::new();
        for step in 0..4 {
            if step > 0 {
                tokio::time::advance(Duration::from_secs(10).min(TIMING.grace - Duration::from_secs(10 * (step - 1))))
                    .await;
            }
            assert!(step == 0 || visit.is_due(Instant::now()));
            answers.push(visit.postpone(TIMING));
        }
        assert_eq!(answers, [false, false, false, true]);
        visit.confirm(None, TIMING.reauthorize);
        assert!(!visit.postpone(TIMING));
    }
}
