//! `make oracle`: random tables, watches, transactions and clients, and Postgres as the judge of what clients hold.
//!
//! `--seed N` repeats a seed, `--seeds K` runs K seeds starting with it, `--jobs J` at the same time, and
//! `--break WHAT` leaves something out, to see that it is noticed. `--show yes` prints what is done at once.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tidings_tests::Cluster;
use tidings_tests::oracle::{Fault, History, Plan, Sabotage, World, run, shrink};

/// How often a seed that fails is run again with fewer steps.
const TRIES: usize = 150;

/// After this many failing seeds it ends.
const ENOUGH: usize = 5;

struct Options {
    seed: u64,
    seeds: u64,
    jobs: usize,
    sabotage: Option<Sabotage>,
    is_shown: bool,
}

fn options() -> Result<Options, String> {
    let mut options =
        Options { seed: fastrand::u64(..1_000_000), seeds: 100, jobs: 2, sabotage: None, is_shown: false };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        let bad = |_| format!("{name}: {value} is no number");
        match name.as_str() {
            "--seed" => options.seed = value.parse().map_err(bad)?,
            "--seeds" => options.seeds = value.parse().map_err(bad)?,
            "--jobs" => options.jobs = value.parse().map_err(bad)?,
            "--show" => options.is_shown = value == "yes",
            "--break" => {
                let named = Sabotage::ALL.into_iter().find(|(name, _)| *name == value);
                let names = Sabotage::ALL.map(|(name, _)| name).join(", ");
                options.sabotage = Some(named.ok_or_else(|| format!("--break: one of {names}"))?.1);
            }
            _ => return Err(format!("unknown option {name}; there are --seed, --seeds, --jobs, --break and --show")),
        }
    }
    Ok(options)
}

/// A seed that failed: what went wrong at first, and the smallest run that fails.
struct Failed {
    fault: Fault,
    smallest: (Plan, Fault, History),
}

fn main() {
    let options = options().unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(2);
    });
    // A panic is a fault of its run, which is reported with the rest.
    std::panic::set_hook(Box::new(|info| eprintln!("{info}")));
    let start = Instant::now();
    println!("==> {} seeds from {}", options.seeds, options.seed);
    let cluster = Cluster::start(&[]);
    let (next, done) = (AtomicU64::new(options.seed), AtomicU64::new(0));
    let end = options.seed + options.seeds;
    let failed: Mutex<BTreeMap<u64, Failed>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| {
                let mut world = World::new(&cluster);
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || failed.lock().expect("no panic").len() >= ENOUGH {
                        return;
                    }
                    let plan = Plan { sabotage: options.sabotage, ..Plan::new(seed) };
                    let mut history = if options.is_shown { History::shown() } else { History::default() };
                    if let Err(fault) = run(&mut world, &plan, &mut history) {
                        println!("seed {seed} fails: {}\nlooking for the smallest run that fails", fault.0);
                        let smallest = shrink(&mut world, &plan, TRIES);
                        failed.lock().expect("no panic").insert(seed, Failed { fault, smallest });
                    }
                    let n = done.fetch_add(1, Ordering::Relaxed) + 1;
                    if n.is_multiple_of(100) {
                        println!("{n} seeds after {} s", start.elapsed().as_secs());
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic");
    for (seed, Failed { fault, smallest: (plan, smallest, history) }) in &failed {
        let left = plan.steps - plan.without.iter().filter(|step| **step < plan.steps).count();
        println!("\n==> seed {seed} FAILED: {}", fault.0);
        println!("with {left} of {} steps: {}\n\n{}\n", plan.steps, smallest.0, history.script());
        println!("again: make oracle ARGS='--seed {seed} --seeds 1'");
    }
    let done = done.into_inner();
    println!("==> {} of {done} seeds passed, in {} s", done - failed.len() as u64, start.elapsed().as_secs());
    if !failed.is_empty() {
        println!("failed: {:?}", failed.keys().collect::<Vec<_>>());
        std::process::exit(1);
    }
}
