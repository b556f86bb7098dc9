//! The queue of access checks. Identities take turns (`turns`), and each has one statement at a time, so an identity
//! that asks a lot does not make the others wait. The same question is asked once for all requests that wait for it,
//! and is dropped when they have all disconnected. A question that delayed others is asked alone from then on. `worker`
//! asks the database.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::access::check::{Alone, Asker, Check, Question, Unanswered};
use crate::access::turns::Turns;
use crate::metrics::Metrics;

/// How many askers may wait; further ones get 503.
const WAITING: usize = 20_000;

/// How long a question is asked alone after it delayed others.
const SUSPICION: Duration = Duration::from_secs(60);

/// How many such questions are remembered: enough for those of an attack, or for all rules of a slow database.
const SUSPECTS: usize = 1_000;

/// How questions are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Many in one statement, which must be short.
    Together,
    /// One at a time, for questions that delayed others.
    Alone,
}

/// A queue of questions, shared with its workers.
#[derive(Debug)]
pub struct Line {
    queues: Mutex<Queues>,
    /// One for each pace. Notified when there may be something to ask.
    wakes: [Notify; 2],
    /// Workers of each pace that have a connection.
    connected: [AtomicUsize; 2],
    /// Workers of each pace that are making one.
    connecting: [AtomicUsize; 2],
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Queues {
    turns: [Turns; 2],
    /// The topics of questions that are asked alone, why, and until when.
    suspects: HashMap<Arc<[Arc<str>]>, (Alone, Instant)>,
    /// How many more askers may join before those that have left are counted again.
    until_sweep: usize,
}

impl Line {
    /// An empty queue.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let (connected, connecting) = Default::default();
        Self { queues: Mutex::default(), wakes: Default::default(), connected, connecting, metrics }
    }

    /// Adds an asker at the end of its identity's turn, unless too many are waiting. Askers of the same question share
    /// the answer, which comes in the first of their turns, so nobody waits longer because others ask too.
    pub fn join(&self, question: Question, identity: Arc<str>, asker: Asker) -> Result<(), Unanswered> {
        let mut queues = self.queues.lock();
        if !queues.has_room() {
            return Err(Unanswered::Full);
        }
        let alone = queues.suspicion(&question);
        let pace = queues.add(Check { question, askers: vec![asker], identities: vec![identity], breaks: 0 }, alone);
        drop(queues);
        self.wakes[pace as usize].notify_one();
        Ok(())
    }

    /// Waits until there may be something to ask.
    pub async fn wait(&self, pace: Pace) {
        loop {
            let wake = self.wakes[pace as usize].notified();
            if !self.queues.lock().turns[pace as usize].order.is_empty() {
                return;
            }
            wake.await;
        }
    }

    /// Takes up to `most` questions, in turn. Their identities get no other turn until [`Self::settle`].
    pub fn take(&self, pace: Pace, most: usize) -> Vec<Check> {
        let mut queues = self.queues.lock();
        let turns = &mut queues.turns[pace as usize];
        let (checks, gone) = turns.take(most);
        let more = !turns.order.is_empty();
        drop(queues);
        self.metrics.checks_gone.add(gone);
        if more {
            self.wakes[pace as usize].notify_one();
        }
        checks
    }

    /// Ends the turn of these identities. Questions that must be asked again go to the front; one may have to be asked
    /// alone.
    pub fn settle(&self, pace: Pace, taken: &[Arc<str>], again: Vec<Check>, alone: Option<(Check, Alone)>) {
        let mut queues = self.queues.lock();
        queues.turns[pace as usize].settle(taken, again);
        if let Some((check, why)) = alone {
            queues.suspect(&check.question, why);
            queues.add(check, Some(why));
        }
        drop(queues);
        for wake in &self.wakes {
            wake.notify_one();
        }
    }

    /// Notes that a question that was asked alone was fast, so that it need not be any more.
    pub fn acquit(&self, question: &Question) {
        self.queues.lock().suspects.remove(&question.topics);
    }

    /// Notes that a worker has a connection, until the result is dropped.
    pub fn connected(self: &Arc<Self>, pace: Pace) -> Connected {
        self.connected[pace as usize].fetch_add(1, Relaxed);
        Connected { line: self.clone(), pace }
    }

    /// Notes that a worker is connecting, until the result is dropped.
    pub fn connecting(self: &Arc<Self>, pace: Pace) -> Connecting {
        self.connecting[pace as usize].fetch_add(1, Relaxed);
        Connecting { line: self.clone(), pace }
    }

    /// Whether a worker is connecting.
    pub fn is_connecting(&self, pace: Pace) -> bool {
        self.connecting[pace as usize].load(Relaxed) > 0
    }

    /// Whether a worker has a connection. If so, wakes one, because it may not have noticed yet that its connection
    /// broke.
    pub fn has_connection(&self, pace: Pace) -> bool {
        self.wake(pace);
        self.connected[pace as usize].load(Relaxed) > 0
    }

    /// Wakes one more worker.
    pub fn wake(&self, pace: Pace) {
        self.wakes[pace as usize].notify_one();
    }
}

/// A worker's connection, as the other workers see it.
#[derive(Debug)]
pub struct Connected {
    line: Arc<Line>,
    pace: Pace,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.line.connected[self.pace as usize].fetch_sub(1, Relaxed);
    }
}

/// A worker's attempt to connect, as the other workers see it.
#[derive(Debug)]
pub struct Connecting {
    line: Arc<Line>,
    pace: Pace,
}

impl Drop for Connecting {
    fn drop(&mut self) {
        self.line.connecting[self.pace as usize].fetch_sub(1, Relaxed);
    }
}

impl Queues {
    /// Whether one more asker may wait. Those that have left are counted only from time to time, because that takes a
    /// pass over all askers.
    fn has_room(&mut self) -> bool {
        let waiting = |turns: &[Turns; 2]| turns.iter().map(|turns| turns.askers).sum::<usize>();
        if waiting(&self.turns) < WAITING {
            return true;
        }
        self.until_sweep = self.until_sweep.saturating_sub(1);
        if self.until_sweep == 0 {
            self.until_sweep = WAITING / 20;
            self.turns.iter_mut().for_each(Turns::sweep);
        }
        waiting(&self.turns) < WAITING
    }

    /// Adds a question to the queue of its pace.
    fn add(&mut self, mut check: Check, alone: Option<Alone>) -> Pace {
        let pace = if alone.is_some() { Pace::Alone } else { Pace::Together };
        if let Some(why) = alone {
            for asker in &mut check.askers {
                asker.alone.get_or_init(|| why);
                asker.permit = None;
            }
        }
        self.turns[pace as usize].add(check);
        pace
    }

    fn suspect(&mut self, question: &Question, why: Alone) {
        let now = Instant::now();
        self.suspects.retain(|_, (_, until)| *until > now);
        if self.suspects.len() < SUSPECTS {
            // A connection may also break once for another reason. Clients that ask later learn that the rules are
            // slow.
            let why = if why == Alone::Broken { Alone::Slow } else { why };
            self.suspects.insert(question.topics.clone(), (why, now + SUSPICION));
        }
    }

    fn suspicion(&self, question: &Question) -> Option<Alone> {
        let (why, until) = self.suspects.get(&question.topics)?;
        (*until > Instant::now()).then_some(*why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::check::Verdict;
    use tokio::sync::oneshot;

    type Reply = oneshot::Receiver<Verdict>;

    fn question(text: &str) -> Question {
        let (claims, topic) = text.split_once(':').unwrap();
        Question { claims: claims.into(), topics: [Arc::from(topic)].into() }
    }

    fn join(line: &Line, text: &str) -> Reply {
        join_as(line, text, text.split_once(':').unwrap().0)
    }

    fn join_as(line: &Line, text: &str, identity: &str) -> Reply {
        let (reply, answer) = oneshot::channel();
        line.join(question(text), identity.into(), Asker { reply, permit: None, alone: Arc::default() }).unwrap();
        answer
    }

    fn names(checks: &[Check]) -> Vec<String> {
        let name = |check: &Check| format!("{}:{}", check.question.claims, check.question.topics[0]);
        checks.iter().map(name).collect()
    }

    fn identities(checks: &[Check]) -> Vec<Arc<str>> {
        checks.iter().map(Check::identity).collect()
    }

    #[test]
    fn identities_take_turns_and_have_one_statement_at_a_time() {
        let line = Line::new(Arc::default());
        let _replies = ["a:1", "a:2", "a:3", "b:1", "a:1", "c:1"].map(|text| join(&line, text));
        let first = line.take(Pace::Together, 4);
        assert_eq!(names(&first), ["a:1", "b:1", "c:1", "a:2"]);
        assert_eq!(first[0].askers.len(), 2, "the same question is asked once");
        let _more = ["b:2", "d:1"].map(|text| join(&line, text));
        assert_eq!(names(&line.take(Pace::Together, 4)), ["d:1"], "the others have one under way");
        line.settle(Pace::Together, &identities(&first), Vec::new(), None);
        assert_eq!(names(&line.take(Pace::Together, 4)), ["a:3", "b:2"]);
        assert_eq!(names(&line.take(Pace::Together, 4)), [""; 0]);
    }

    #[test]
    fn clients_with_the_same_claims_have_turns_of_their_own_and_share_answers() {
        let line = Line::new(Arc::default());
        let mut replies: Vec<Reply> = (0..50).map(|n| join_as(&line, &format!("guest:{n}"), "here")).collect();
        // Another identity asks a question of its own, and one that waits far back in the first identity's turn.
        replies.extend(["guest:news", "guest:49"].map(|text| join_as(&line, text, "there")));
        let taken = line.take(Pace::Together, 3);
        assert_eq!(names(&taken), ["guest:0", "guest:news", "guest:1"]);
        line.settle(Pace::Together, &identities(&taken), Vec::new(), None);
        let taken = line.take(Pace::Together, 2);
        assert_eq!(names(&taken), ["guest:2", "guest:49"]);
        assert_eq!(taken[1].askers.len(), 2, "the same question is asked once");
        line.settle(Pace::Together, &identities(&taken), Vec::new(), None);
        assert_eq!(line.take(Pace::Together, 99).len(), 46);
        let queues = line.queues.lock();
        assert!(queues.turns[0].checks.is_empty() && !queues.turns[0].identities.contains_key("there"));
    }

    #[test]
    fn a_question_whose_askers_have_left_is_not_asked() {
        let line = Line::new(Arc::default());
        let mut replies = ["a:1", "a:2", "b:1", "b:1", "c:1"].map(|text| Some(join(&line, text)));
        for gone in [0, 2, 4] {
            replies[gone] = None;
        }
        let taken = line.take(Pace::Together, 1);
        assert_eq!(names(&taken), ["b:1"]);
        assert_eq!(names(&line.take(Pace::Together, 9)), ["a:2"]);
        assert_eq!(line.metrics.checks_gone.get(), 2);
        line.settle(Pace::Together, &identities(&taken), Vec::new(), None);
        let queues = line.queues.lock();
        assert_eq!((queues.turns[0].askers, queues.turns[0].checks.len()), (0, 0));
        assert!(!queues.turns[0].identities.contains_key("b") && !queues.turns[0].identities.contains_key("c"));
    }

    #[test]
    fn the_rest_of_a_statement_comes_first_and_the_question_that_delayed_it_is_asked_alone() {
        let line = Line::new(Arc::default());
        let _replies = ["a:1", "b:1", "c:1", "d:1"].map(|text| join(&line, text));
        let mut taken = line.take(Pace::Together, 3);
        let asked = identities(&taken);
        let (left, slow) = (taken.split_off(2), taken.pop());
        line.settle(Pace::Together, &asked, left, slow.map(|slow| (slow, Alone::Slow)));
        assert_eq!(names(&line.take(Pace::Together, 9)), ["c:1", "d:1"]);
        let alone = line.take(Pace::Alone, 9);
        assert_eq!(names(&alone), ["b:1"]);
        assert_eq!(alone[0].askers[0].alone.get(), Some(&Alone::Slow));
        // From now on the question is asked alone, for any asker, until it turns out to be fast.
        let _more = join(&line, "e:1");
        assert_eq!(names(&line.take(Pace::Alone, 9)), ["e:1"]);
        line.acquit(&question("f:1"));
        let _more = join(&line, "g:1");
        assert_eq!(names(&line.take(Pace::Together, 9)), ["g:1"]);
    }

    #[test]
    fn later_askers_learn_why_a_question_is_asked_alone() {
        for (why, later) in [(Alone::Slow, Alone::Slow), (Alone::Locked, Alone::Locked), (Alone::Broken, Alone::Slow)] {
            let line = Line::new(Arc::default());
            let _first = join(&line, "a:1");
            let check = line.take(Pace::Together, 1).remove(0);
            line.settle(Pace::Together, &[check.identity()], Vec::new(), Some((check, why)));
            let _second = join(&line, "b:1");
            let alone = line.take(Pace::Alone, 9);
            let known: Vec<_> = alone.iter().map(|check| check.askers[0].alone.get().copied()).collect();
            assert_eq!(known, [Some(why), Some(later)]);
        }
    }

    #[test]
    fn the_queue_is_bounded_and_askers_that_have_left_do_not_count() {
        let line = Line::new(Arc::default());
        let mut replies: Vec<Reply> = (0..WAITING).map(|n| join(&line, &format!("a:{n}"))).collect();
        let (reply, _answer) = oneshot::channel();
        let asker = Asker { reply, permit: None, alone: Arc::default() };
        assert_eq!(line.join(question("b:1"), "b".into(), asker), Err(Unanswered::Full));
        replies.clear();
        let came = (0..WAITING).filter(|n| {
            let (reply, answer) = oneshot::channel();
            replies.push(answer);
            line.join(question(&format!("b:{n}")), "b".into(), Asker { reply, permit: None, alone: Arc::default() })
                .is_ok()
        });
        assert!(came.count() >= WAITING - WAITING / 20);
        assert_eq!(line.take(Pace::Together, 3).len(), 3);
    }
}
