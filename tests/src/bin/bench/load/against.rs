//! What is measured of several servers, one function for each part.

use std::time::{Duration, Instant};

use tidings_tests::{Database, until};

use super::crowd::{Ask, Crowd, stamp};
use super::rails::MOST;
use super::rivals::{Rival, Turns, of};
use super::{HALL, Pace, Scale, Series, Server, cpu, each, names, open, resident, same, series};
use crate::report::{Report, Target};

/// Events of one burst.
const BURST: usize = 100;

/// From the write to one client, to a hundred, and to one among thousands that are idle.
pub fn clients(database: &Database<'_>, scale: Scale, report: &mut Report) {
    let idle = scale.of(10_000);
    let rivals = [Rival::Tidings, Rival::Node, Rival::NodeStoring, Rival::Rails];
    Turns::new(&rivals, database, idle + 100, &[]).run(
        scale,
        report,
        |server, rival, report| {
            let (who, hall) = (rival.name(), [HALL.to_owned()]);
            let medians = [(1, "1 client"), (100, "100 clients")].map(|(clients, label)| {
                let crowd = open(server, same(server, HALL, clients));
                let run = series(server, &crowd, &hall, clients, Pace::new(50.0, scale));
                run.report(report, &format!("write → {label}, 50 events/s"), who);
                run.times.quantile(0.5)
            });
            if rival == Rival::Rails {
                let why = format!("each stream takes a thread and a database connection, so there are at most {MOST}");
                report.leave_out(&format!("{who}, beside {idle} idle"), &why);
                return medians;
            }
            let _idle = open(server, each(server, &names("idle", idle)));
            let crowd = open(server, same(server, HALL, 1));
            let run = series(server, &crowd, &hall, 1, Pace::new(50.0, scale));
            run.report(report, &format!("write → 1 client beside {idle} idle, 50 events/s"), who);
            medians
        },
        |given, report| {
            let Some(ours) = of(given, Rival::Tidings) else { return };
            for (rival, name) in [(Rival::Node, "Node"), (Rival::NodeStoring, "Node, events stored")] {
                let Some(node) = of(given, rival) else { continue };
                for (n, clients, most) in [(0, "1 client", 1.0), (1, "100 clients", 0.6)] {
                    let label = format!("write → {clients}, p50: Tidings ÷ {name}");
                    report.add(label, ours[n] / node[n], "", Target::AtMost(most));
                }
            }
        },
    );
}

/// What a client costs that gets only heartbeats.
pub fn idle(database: &Database<'_>, scale: Scale, report: &mut Report) {
    let clients = scale.of(15_000);
    let heartbeat = format!("{}s", scale.seconds);
    let pause = Duration::from_secs(scale.seconds.into());
    let label = format!("{clients} idle clients");
    let rivals = [Rival::Tidings, Rival::Nchan, Rival::Node, Rival::Pushpin];
    Turns::new(&rivals, database, clients, &["--heartbeat", &heartbeat]).run(
        scale,
        report,
        |server, rival, report| {
            let (who, ours) = (rival.name(), rival == Rival::Tidings);
            let topics = names("idle", clients / 10 + 1);
            let asks = (0..clients).map(|i| Ask::live(server.path(&topics[i / 10]))).collect();
            // The first client pays for what all clients share.
            drop(open(server, same(server, HALL, 1)));
            let (before, start) = (resident(server), Instant::now());
            let _crowd = open(server, asks);
            report.compare(format!("{label}: accepted"), who, start.elapsed().as_secs_f64(), "s", Target::None);
            // After two rounds of heartbeats, memory that connecting took has been returned, if it ever is.
            std::thread::sleep(pause * 2);
            let used = (resident(server) - before) / clients as f64 / 1024.0;
            let target = if ours { Target::AtMost(1.1) } else { Target::None };
            report.compare(format!("{label}: resident memory of each"), who, used, "KiB", target);
            let (before, start) = (cpu(server), Instant::now());
            std::thread::sleep(pause);
            let share = (cpu(server) - before) / start.elapsed().as_secs_f64() * 100.0;
            report.compare(format!("{label}: CPU of all"), who, share, "% of a core", Target::None);
        },
        |_, _| (),
    );
}

/// One topic with thousands of subscribers, and thousands of topics with one.
pub fn fanout(database: &Database<'_>, scale: Scale, report: &mut Report) {
    let clients = scale.of(10_000);
    let rivals = [Rival::Nchan, Rival::Tidings, Rival::Node, Rival::Pushpin];
    Turns::new(&rivals, database, clients, &[]).run(
        scale,
        report,
        |server, rival, report| {
            let who = rival.name();
            let hall = [HALL.to_owned()];
            let mut rates = [0.0; 2];
            {
                let crowd = open(server, same(server, HALL, clients));
                let one = format!("1 topic × {clients} clients");
                let run = series(server, &crowd, &hall, clients, Pace::new(10.0, scale));
                run.report(report, &format!("{one}, 10 events/s"), who);
                rates[0] = delivered(&run, &format!("{one}, 10 events/s"), who, report);
                let run = bursts(server, &crowd, clients, scale);
                rates[1] = delivered(&run, &format!("{one}, {BURST} events at once"), who, report);
            }
            let topics = names("board", clients);
            let crowd = open(server, each(server, &topics));
            let run = series(server, &crowd, &topics, 1, Pace::new(500.0, scale));
            let many = format!("{clients} topics × 1 client, 500 events/s");
            let targets =
                if rival == Rival::Tidings { [Target::AtMost(0.4), Target::AtMost(1.0)] } else { [Target::None; 2] };
            run.report_with(targets, report, &many, who);
            delivered(&run, &many, who, report);
            rates
        },
        |given, report| {
            let (Some(nchan), Some(ours)) = (of(given, Rival::Nchan), of(given, Rival::Tidings)) else { return };
            report.add("Tidings ÷ Nchan, 10 events/s", ours[0] / nchan[0], "", Target::AtLeast(1.4));
            report.add(
                format!("Tidings ÷ Nchan, {BURST} events at once"),
                ours[1] / nchan[1],
                "",
                // What it was when each client's own task wrote its queue.
                Target::AtLeast(36.0),
            );
        },
    );
}

/// Reports the deliveries for each CPU second of the server's processes, and returns them.
fn delivered(run: &Series, label: &str, who: &str, report: &mut Report) -> f64 {
    let rate = run.deliveries_per_cpu_second();
    report.compare(format!("{label}: deliveries for each CPU second"), who, rate, "", Target::None);
    rate
}

/// Events in a burst, so that clients have several to read.
fn bursts(server: &dyn Server, crowd: &Crowd, clients: usize, scale: Scale) -> Series {
    crowd.forget();
    let before = cpu(server);
    let mut publish = server.publisher();
    let rounds = (scale.seconds / 2).max(1);
    for round in 1..=rounds {
        publish(&[HALL; BURST], &stamp(100));
        let goal = (BURST * clients) as u64 * u64::from(round);
        until("the burst has arrived", || crowd.arrivals() >= goal);
    }
    Series { cpu: cpu(server) - before, arrivals: crowd.arrivals(), times: crowd.times() }
}
