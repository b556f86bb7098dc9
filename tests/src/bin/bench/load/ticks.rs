//! What a tick of one event costs the relay: the processor time of its process, user and kernel.

use tidings_tests::process::cpu_nanoseconds;
use tidings_tests::{Database, until};

use super::{Pace, Scale, Server, Tidings, each, open, stamp};
use crate::report::{Report, Target};

/// Slow enough that each event has a tick of its own, and that nothing is busy when it comes.
const RATE: f64 = 200.0;

/// Publishes single events to one client.
pub fn measure(database: &Database<'_>, scale: Scale, report: &mut Report) {
    let server = Tidings::start(database, &[]);
    let one = ["one".to_owned()];
    let crowd = open(&server, each(&server, &one));
    let relay = database.wait_relay();
    let ticks = || database.session().one::<i64>("SELECT count(*) FROM tidings.tick");
    let mut publish = server.publisher();
    let pace = Pace::new(RATE, scale);
    // The first ones are for warming up.
    let mut go = |pace: Pace| {
        crowd.forget();
        pace.run(|_| publish(&["one"], &stamp(pace.size)));
        until("every event has arrived", || crowd.arrivals() >= u64::from(pace.events));
    };
    go(Pace { events: 50, ..pace });
    let cpu = || cpu_nanoseconds(relay).expect("the relay runs");
    let before = (ticks(), cpu());
    go(pace);
    let used = (cpu() - before.1) as f64 / 1000.0;
    let count = (ticks() - before.0) as f64;
    report.add("CPU of the relay for a tick of one event", used / count, "µs", Target::AtMost(60.0));
    report.add("… ticks for each event", count / f64::from(pace.events), "", Target::None);
}
