//! What clients hold is what Postgres says: some seeds of `make oracle`.

use tidings_tests::oracle::{History, Plan, Sabotage, World, run};
use tidings_tests::shared;

use crate::seed;

/// How many seeds are tried.
const SEEDS: u64 = 8;

#[test]
fn what_a_client_holds_is_what_a_query_of_the_tables_returns() {
    let mut world = World::new(shared());
    let first = seed();
    for seed in first..first + SEEDS {
        let mut history = History::default();
        if let Err(fault) = run(&mut world, &Plan::new(seed), &mut history) {
            panic!(
                "{}\nmake oracle ARGS='--seed {seed} --seeds 1' finds a shorter script than\n{}",
                fault.0,
                history.script()
            );
        }
    }
}

#[test]
fn the_oracle_notices_a_client_that_does_something_wrong() {
    let mut world = World::new(shared());
    for (name, sabotage) in Sabotage::ALL {
        let fails = |seed| {
            let plan = Plan { sabotage: Some(sabotage), ..Plan::new(seed) };
            run(&mut world, &plan, &mut History::default()).is_err()
        };
        assert!((0..20).any(fails), "nothing fails if clients are wrong about {name}");
    }
}
