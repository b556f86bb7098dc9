//! `make chaos`: writers whose commits are recorded, clients that connect and disconnect, and faults drawn from a seed.
//! At the end every client must have received exactly what was committed, and pages that keep rows must have those of
//! the tables.
//!
//! `--seed N` repeats a run, `--seeds K` runs K seeds starting with it, and `--minutes M` sets how long faults strike
//! in each. `--soak M` runs without faults for M minutes and watches memory, open files and the log. `--sabotage RULE`
//! leaves out a rule of the product: such a run must fail.

mod check;
mod clients;
mod gate;
mod homes;
mod lost;
mod members;
mod network;
mod pages;
mod plan;
mod plot;
mod reference;
mod report;
mod run;
mod sabotage;
mod server;
mod sizes;
mod soak;
mod strike;
mod window;
mod writers;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tidings_tests::cluster::free_port;

use network::Filter;
use plan::{Means, Plan};
use report::Report;
use sabotage::Sabotage;

struct Options {
    seed: u64,
    seeds: u64,
    minutes: f64,
    is_soak: bool,
    sabotage: Option<Sabotage>,
}

fn options() -> Result<Options, String> {
    let mut options =
        Options { seed: fastrand::u64(..1_000_000), seeds: 1, minutes: 3.0, is_soak: false, sabotage: None };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let (name, value) = match arg.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (arg, args.next()),
        };
        let value = value.ok_or_else(|| format!("{name} needs a value"))?;
        let bad = |_| format!("{name}: {value} is no number");
        match name.as_str() {
            "--seed" => options.seed = value.parse().map_err(bad)?,
            "--seeds" => options.seeds = value.parse().map_err(bad)?,
            "--minutes" | "--soak" => {
                options.minutes = value.parse().map_err(|_| format!("{value} is no number"))?;
                options.is_soak = name == "--soak";
            }
            "--sabotage" => {
                let sabotage = Sabotage::parse(&value).ok_or("there are --sabotage count and --sabotage place")?;
                options.sabotage = Some(sabotage);
            }
            _ => {
                let known = "--seed, --seeds, --minutes, --soak and --sabotage";
                return Err(format!("unknown option {name}; there are {known}"));
            }
        }
    }
    Ok(options)
}

fn main() {
    let options = options().unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(2);
    });
    let means = Means { namespaces: network::enter(), clock: tidings_tests::clock::Clock::can_jump() };
    if !means.namespaces {
        println!("without root: no faults of the network but those of the relay, and no full disk");
    }
    if !means.clock {
        println!("without libfaketime: the clock does not jump");
    }
    let mut failed = Vec::new();
    for seed in options.seed..options.seed + options.seeds {
        let time = Duration::from_secs_f64(options.minutes * 60.0);
        let plan = if options.is_soak { Plan::soak(seed, time) } else { Plan::draw(seed, time, means) };
        let report = Report::open(seed);
        println!("==> seed {seed}; everything is kept in {}", report.dir().display());
        report.write("plan", &plan.to_string());
        println!("{:?}", plan.world);
        // A seed that failed may leave its servers running.
        let ports = [free_port(), free_port(), free_port()];
        let filter = means.namespaces.then(|| Filter::new(ports));
        let faults =
            catch_unwind(AssertUnwindSafe(|| run::run(&plan, ports, filter.as_ref(), options.sabotage, &report)))
                .unwrap_or_else(|panic| vec![why(&*panic)]);
        if let Some(filter) = &filter {
            filter.heal();
        }
        if faults.is_empty() {
            report.say("passed");
        } else {
            report.write("faults", &faults.join("\n"));
            println!("\n{}\nwhat happened:\n{}", plan, report.history());
            println!("==> seed {seed} FAILED:\n{}", faults.join("\n"));
            println!("again: make chaos ARGS='--seed {seed} --minutes {}'", options.minutes);
            println!("logs: {}", report.dir().display());
            failed.push(seed);
        }
    }
    println!(
        "==> {} of {} seeds passed, {} minutes each",
        options.seeds - failed.len() as u64,
        options.seeds,
        options.minutes
    );
    if !failed.is_empty() {
        println!("failed: {failed:?}");
        std::process::exit(1);
    }
}

fn why(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic").to_owned()
}
