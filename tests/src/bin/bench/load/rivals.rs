//! The compared servers, and how they take turns.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tidings_tests::Database;

use super::nchan::Nchan;
use super::node::Node;
use super::pushpin::Pushpin;
use super::rails::Rails;
use super::{Scale, Server, Tidings};
use crate::report::Report;

/// A server of streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rival {
    /// Ours.
    Tidings,
    /// nginx with Nchan.
    Nchan,
    /// Node with `pg` and `better-sse`. Its writer only notifies.
    Node,
    /// The same, but its writer also stores the event, as ours does.
    NodeStoring,
    /// Pushpin.
    Pushpin,
    /// The article's design.
    Rails,
}

impl Rival {
    /// Its name in the reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tidings => "Tidings",
            Self::Nchan => "Nchan",
            Self::Node => "Node, better-sse",
            Self::NodeStoring => "Node, better-sse, events stored",
            Self::Pushpin => "Pushpin",
            Self::Rails => "Rails, as in the article",
        }
    }

    /// Starts it for up to `clients` streams; `args` are for our proxy. Says why if it can't be started.
    fn start<'a>(
        self,
        database: &'a Database<'_>,
        clients: usize,
        args: &[&str],
    ) -> Result<Box<dyn Server + 'a>, String> {
        Ok(match self {
            Self::Tidings => Box::new(Tidings::start(database, args)),
            Self::Nchan => Box::new(Nchan::start(clients)?),
            Self::Node => Box::new(Node::start(database, false)?),
            Self::NodeStoring => Box::new(Node::start(database, true)?),
            Self::Pushpin => Box::new(Pushpin::start(clients)?),
            Self::Rails => Box::new(Rails::start(database)?),
        })
    }
}

/// The servers that take part, and the figures of each.
pub struct Turns<'a> {
    /// The servers that have not failed.
    rivals: Vec<Rival>,
    database: &'a Database<'a>,
    clients: usize,
    args: Vec<&'a str>,
}

impl<'a> Turns<'a> {
    /// A comparison of these servers with up to `clients` streams, with these arguments for our proxy.
    pub fn new(rivals: &[Rival], database: &'a Database<'a>, clients: usize, args: &[&'a str]) -> Self {
        Self { rivals: rivals.to_vec(), database, clients, args: args.to_vec() }
    }

    /// Measures every server alone, in an order that rotates from round to round; then calls `compare` with the results
    /// of this round.
    ///
    /// A server that can't be started, or fails, is left out from then on, and the report says so.
    pub fn run<T>(
        &mut self,
        scale: Scale,
        report: &mut Report,
        mut measure: impl FnMut(&dyn Server, Rival, &mut Report) -> T,
        mut compare: impl FnMut(&[(Rival, T)], &mut Report),
    ) {
        for round in 0..scale.rounds {
            let mut order = self.rivals.clone();
            let first = round % order.len();
            order.rotate_left(first);
            let mut given = Vec::new();
            for rival in order {
                match self.turn(rival, report, &mut measure) {
                    Ok(figures) => given.push((rival, figures)),
                    Err(why) => {
                        self.rivals.retain(|other| *other != rival);
                        report.leave_out(rival.name(), &why);
                    }
                }
            }
            compare(&given, report);
        }
    }

    fn turn<T>(
        &self,
        rival: Rival,
        report: &mut Report,
        measure: &mut impl FnMut(&dyn Server, Rival, &mut Report) -> T,
    ) -> Result<T, String> {
        let server = rival.start(self.database, self.clients, &self.args)?;
        if let Some(version) = server.version() {
            report.version(&version);
        }
        if rival == Rival::Tidings {
            // If ours fails, that is an error.
            return Ok(measure(server.as_ref(), rival, report));
        }
        catch_unwind(AssertUnwindSafe(|| measure(server.as_ref(), rival, report)))
            .map_err(|fault| reason(fault.as_ref()))
    }
}

/// The result of a server in a round.
pub fn of<T: Copy>(given: &[(Rival, T)], rival: Rival) -> Option<T> {
    given.iter().find(|(other, _)| *other == rival).map(|(_, figures)| *figures)
}

fn reason(fault: &(dyn Any + Send)) -> String {
    let text = fault.downcast_ref::<String>().cloned();
    text.or_else(|| fault.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
