//! Whose question is next: identities take turns, and each has one statement at a time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::access::check::{Check, Question};

/// The questions of one pace, and the order of their identities.
#[derive(Debug, Default)]
pub struct Turns {
    /// The questions that wait.
    pub checks: HashMap<Question, Check>,
    /// The turn of each identity that has one.
    pub identities: HashMap<Arc<str>, Turn>,
    /// Identities that have a question and no statement that runs.
    pub order: VecDeque<Arc<str>>,
    /// How many askers wait.
    pub askers: usize,
}

/// The questions of one identity.
#[derive(Debug, Default)]
pub struct Turn {
    /// In order. A question that is no longer among the checks is skipped: it was asked in another identity's turn.
    waiting: VecDeque<Question>,
    /// Whether a statement with its questions is running.
    is_asking: bool,
}

impl Turns {
    /// Adds a question, or its askers to the same question.
    pub fn add(&mut self, check: Check) {
        self.askers += check.askers.len();
        let question = check.question.clone();
        let identities = match self.checks.get_mut(&question) {
            Some(same) => same.join(check),
            None => {
                let identities = check.identities.clone();
                self.checks.insert(question.clone(), check);
                identities
            }
        };
        for identity in identities {
            let turn = self.identities.entry(identity.clone()).or_default();
            if turn.waiting.is_empty() && !turn.is_asking {
                self.order.push_back(identity);
            }
            turn.waiting.push_back(question.clone());
        }
    }

    /// Takes up to `most` questions: one of each identity, then another of each, and so on. Also returns how many were
    /// skipped because nobody waits for them any more.
    pub fn take(&mut self, most: usize) -> (Vec<Check>, u64) {
        let (mut taken, mut gone) = (Vec::new(), 0);
        let mut again = VecDeque::new();
        let mut is_first_round = true;
        while taken.len() < most {
            let Some(identity) = self.order.pop_front() else {
                if again.is_empty() {
                    break;
                }
                std::mem::swap(&mut self.order, &mut again);
                is_first_round = false;
                continue;
            };
            let Some(turn) = self.identities.get_mut(&identity) else { continue };
            let Some(question) = turn.waiting.pop_front() else {
                if !turn.is_asking {
                    self.identities.remove(&identity);
                }
                continue;
            };
            again.push_back(identity.clone());
            let Some(mut check) = self.checks.remove(&question) else { continue };
            self.askers -= check.askers.len();
            if check.is_wanted() {
                turn.is_asking = true;
                check.identities.retain(|other| *other != identity);
                check.identities.insert(0, identity);
                taken.push(check);
            } else {
                gone += 1;
            }
        }
        // An identity whose statement is running waits; one whose questions were only skipped stays in the order.
        let rest = if is_first_round { Vec::new() } else { std::mem::take(&mut self.order).into() };
        for identity in again.into_iter().chain(rest) {
            match self.identities.get(&identity) {
                Some(turn) if turn.is_asking => {}
                Some(turn) if turn.waiting.is_empty() => drop(self.identities.remove(&identity)),
                Some(_) => self.order.push_back(identity),
                None => {}
            }
        }
        (taken, gone)
    }

    /// Ends the turn of the identities `taken`, and puts the questions `again` at the front.
    pub fn settle(&mut self, taken: &[Arc<str>], again: Vec<Check>) {
        let first: HashSet<Arc<str>> = again.iter().map(Check::identity).collect();
        for check in again.into_iter().rev() {
            self.askers += check.askers.len();
            let (question, identity) = (check.question.clone(), check.identity());
            match self.checks.get_mut(&question) {
                // Someone else has asked the same question in the meantime.
                Some(same) => drop(same.join(check)),
                None => drop(self.checks.insert(question.clone(), check)),
            }
            self.identities.entry(identity).or_default().waiting.push_front(question);
        }
        let mut ahead = Vec::new();
        for identity in taken {
            let Some(turn) = self.identities.get_mut(identity).filter(|turn| turn.is_asking) else { continue };
            turn.is_asking = false;
            if turn.waiting.is_empty() {
                self.identities.remove(identity);
            } else if first.contains(identity) {
                ahead.push(identity.clone());
            } else {
                self.order.push_back(identity.clone());
            }
        }
        for identity in ahead.into_iter().rev() {
            self.order.push_front(identity);
        }
    }

    /// Removes askers that have left.
    pub fn sweep(&mut self) {
        self.checks.retain(|_, check| check.is_wanted());
        self.askers = self.checks.values().map(|check| check.askers.len()).sum();
        for turn in self.identities.values_mut() {
            turn.waiting.retain(|question| self.checks.contains_key(question));
        }
        self.identities.retain(|_, turn| turn.is_asking || !turn.waiting.is_empty());
        self.order.retain(|identity| self.identities.contains_key(identity));
    }
}
