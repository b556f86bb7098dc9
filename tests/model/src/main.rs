//! `make model`: explores the large scenarios, one after the other, and says what was found.

use std::process::ExitCode;
use std::thread::available_parallelism;

use tidings_model::run::explore;
use tidings_model::scenario::large;

fn main() -> ExitCode {
    let only = std::env::args().nth(1).unwrap_or_default();
    let threads = available_parallelism().map_or(1, usize::from);
    let mut code = ExitCode::SUCCESS;
    println!("{:<28} {:>12} {:>7} {:>9}", "scenario", "states", "steps", "seconds");
    for scenario in large().into_iter().filter(|scenario| scenario.name.contains(&only)) {
        let name = scenario.name;
        let outcome = explore(scenario, &[], threads);
        println!("{name:<28} {:>12} {:>7} {:>9.1}", outcome.states, outcome.depth, outcome.took.as_secs_f64());
        if let Some(found) = outcome.counterexample {
            println!("NOT {}:\n{}", found.property, found.story);
            code = ExitCode::FAILURE;
        }
    }
    code
}
