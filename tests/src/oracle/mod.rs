//! Postgres as the oracle: random tables, watches and transactions, and clients that keep rows by applying events. In
//! the end each client must hold exactly what a query of the tables returns for its topics.
//!
//! - `kinds`: the types of columns, and values.
//! - `schema`: tables, partitions, foreign keys, and triggers that write.
//! - `watches`: watches with all their options, and as SQL what a client of each must hold.
//! - `statements`, `sessions`: what sessions execute, in turns.
//! - `clients`: clients of snapshots and of positions, which disconnect and resume.
//! - `judge`: comparing both.
//!
//! A watch that does not show every change (because of its operations, its condition, or TRUNCATE) has no query that
//! says what a client holds. For these, triggers of the oracle apply the same changes to a table in the same
//! transaction (`oracle.sql`), so that Postgres decides which of them count.

mod clients;
mod judge;
mod kinds;
mod run;
mod schema;
mod sessions;
mod statements;
mod watches;

use std::collections::BTreeSet;

pub use run::{World, run};

/// What went wrong.
#[derive(Clone, Debug)]
pub struct Fault(pub String);

/// What a run leaves out, to see that the oracle notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Clients ignore one event in twenty.
    Events,
    /// Clients ignore every DELETE: that of a row which moves to another topic, for instance.
    Deletes,
    /// Positions are those of the beginning, and not of the rows.
    Positions,
    /// After a disconnect, clients resume from now on.
    Resumption,
}

impl Sabotage {
    /// All of them, with their names.
    pub const ALL: [(&str, Self); 4] = [
        ("events", Self::Events),
        ("deletes", Self::Deletes),
        ("positions", Self::Positions),
        ("resumption", Self::Resumption),
    ];
}

/// One run: what a seed says, without the steps that are left out.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// How many steps there are.
    pub steps: usize,
    /// The steps that are left out.
    pub without: BTreeSet<usize>,
    /// What is left out on purpose.
    pub sabotage: Option<Sabotage>,
}

impl Plan {
    /// The usual length.
    const STEPS: usize = 70;

    /// All of a seed.
    pub fn new(seed: u64) -> Self {
        Self { seed, steps: Self::STEPS, without: BTreeSet::new(), sabotage: None }
    }

    /// A generator for one part of the run, which does not depend on the other parts.
    fn random(&self, part: u64) -> fastrand::Rng {
        // SplitMix64, so that neighbouring seeds and parts have nothing in common.
        let mut z =
            self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(part.wrapping_mul(0xd1b5_4a32_d192_ed03));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        fastrand::Rng::with_seed(z ^ (z >> 31))
    }
}

/// What a run has done, as a script for psql. Lines of the other sessions are to be run in those.
#[derive(Debug, Default)]
pub struct History {
    lines: Vec<String>,
    is_shown: bool,
}

impl History {
    /// One that also prints each line at once.
    pub fn shown() -> Self {
        Self { is_shown: true, ..Self::default() }
    }

    fn add(&mut self, line: String) {
        if self.is_shown {
            println!("{line}");
        }
        self.lines.push(line);
    }

    fn setup(&mut self, sql: &str) {
        self.add(format!("{sql};"));
    }

    fn session(&mut self, number: usize, sql: &str) {
        self.add(format!("/* session {number} */ {sql};"));
    }

    fn rows(&mut self, rows: &[u8]) {
        self.add(format!("{}\\.", String::from_utf8_lossy(rows)));
    }

    fn note(&mut self, text: &str) {
        self.add(format!("-- {}", text.replace('\n', "\n-- ")));
    }

    /// The script.
    pub fn script(&self) -> String {
        self.lines.join("\n")
    }
}

/// Runs a plan with fewer and fewer steps, as long as it fails; returns the smallest plan that failed, its fault and
/// its history. `tries` limits how often it runs.
pub fn shrink(world: &mut World, plan: &Plan, mut tries: usize) -> (Plan, Fault, History) {
    let fails = |plan: &Plan, world: &mut World| {
        let mut history = History::default();
        run(world, plan, &mut history).err().map(|fault| (plan.clone(), fault, history))
    };
    // It may depend on time, and not fail again at all.
    let Some(mut best) = (0..3).find_map(|_| fails(plan, world)) else {
        return (plan.clone(), Fault("it did not fail again".into()), History::default());
    };
    // First its end, then pieces that get smaller, then one step after the other.
    let mut size = best.0.steps / 2;
    while size > 0 {
        let mut start = best.0.steps;
        while start > 0 {
            start = start.saturating_sub(size);
            let mut fewer = best.0.clone();
            fewer.without.extend(start..start + size);
            if fewer.without == best.0.without {
                continue;
            }
            if tries == 0 {
                return best;
            }
            tries -= 1;
            if let Some(found) = fails(&fewer, world) {
                best = found;
            }
        }
        size /= 2;
    }
    best
}
