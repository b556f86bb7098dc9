//! A long run at moderate load without faults: memory, open files and the log must not grow without end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidings_tests::Proxy;

use crate::plot::{Panel, draw};
use crate::report::Report;
use crate::run::locked;
use crate::server::Server;
use crate::sizes::{Size, size};

/// How many samples are taken.
const SAMPLES: u32 = 720;

/// The shortest time between two of them.
const PAUSE: Duration = Duration::from_secs(1);

/// The greatest figure of the last quarter may be this much higher than that of the second quarter, in percent: the log
/// grows until a partition is emptied, and a run of a few minutes has few of these cycles.
const MORE: f64 = 25.0;

/// In addition: bytes of memory, open files, bytes of the log. An allocator and Postgres's caches grow in steps.
const SLACK: [f64; 3] = [4e6, 10.0, 8e6];

/// The figures at one time.
#[derive(Clone, Debug)]
struct Sample {
    /// Seconds since the start.
    at: f64,
    /// Of the relay and of the proxies.
    sizes: Vec<Size>,
    /// The bytes of the log.
    log: f64,
}

/// Takes samples from a thread.
#[derive(Debug)]
pub struct Soak {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Sample>>,
}

impl Soak {
    /// Starts to take samples for that time.
    pub fn start(server: &Arc<Server>, proxies: &[Mutex<Proxy>], time: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (server, stopped) = (server.clone(), stop.clone());
        let proxies: Vec<u32> = proxies.iter().map(|proxy| locked(proxy).pid()).collect();
        let pause = (time / SAMPLES).max(PAUSE);
        let thread = std::thread::spawn(move || {
            let (start, mut samples) = (Instant::now(), Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                samples.extend(take(&server, &proxies, start));
                std::thread::sleep(pause);
            }
            samples
        });
        Self { stop, thread }
    }

    /// Writes the samples and a picture of them into the folder of the run; returns what has grown.
    pub fn finish(self, report: &Report) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let samples = self.thread.join().expect("the samples");
        let Some(first) = samples.first() else { return vec!["no samples".to_owned()] };
        let names: Vec<String> = (0..first.sizes.len())
            .map(|i| if i == 0 { "relay".to_owned() } else { format!("proxy {}", i - 1) })
            .collect();
        let line = |figure: &dyn Fn(&Sample) -> f64| samples.iter().map(figure).collect::<Vec<f64>>();
        let each = |figure: &dyn Fn(&Size) -> f64| {
            let lines = names.iter().enumerate();
            lines.map(|(i, name)| (name.clone(), line(&|sample| figure(&sample.sizes[i])))).collect::<Vec<_>>()
        };
        let panels = [
            Panel { title: "memory, bytes".to_owned(), lines: each(&|size| size.1 as f64) },
            Panel { title: "open files".to_owned(), lines: each(&|size| size.0 as f64) },
            Panel { title: "size, bytes".to_owned(), lines: vec![("the log".to_owned(), line(&|sample| sample.log))] },
        ];
        report.write("soak.svg", &draw(&line(&|sample| sample.at), &panels));
        report.write("samples", &samples.iter().map(|sample| format!("{sample:?}\n")).collect::<String>());
        let mut faults = Vec::new();
        for (panel, slack) in panels.iter().zip(SLACK) {
            for (name, line) in &panel.lines {
                let [second, last] = quarters(line);
                report.say(format_args!(
                    "{name}, {}: {:.0} at first, at most {second:.0} in the second quarter and {last:.0} in the last",
                    panel.title, line[0]
                ));
                if has_grown(second, last, slack) {
                    faults.push(format!("{name}, {} grow: {second:.0}, then {last:.0}", panel.title));
                }
            }
        }
        faults
    }
}

fn take(server: &Server, proxies: &[u32], start: Instant) -> Option<Sample> {
    let relay = server.database(|database| database.relay())?;
    let sizes = [&[relay], proxies].concat().into_iter().map(size).collect::<Option<Vec<_>>>()?;
    let log: i64 = server.connect()?.query_one("SELECT log_bytes FROM tidings.status", &[]).ok()?.get(0);
    Some(Sample { at: start.elapsed().as_secs_f64(), sizes, log: log as f64 })
}

/// The greatest figures of the second and of the last quarter.
fn quarters(line: &[f64]) -> [f64; 2] {
    let quarter = line.len() / 4;
    let greatest = |part: &[f64]| part.iter().copied().fold(0.0, f64::max);
    [greatest(&line[quarter..2 * quarter]), greatest(&line[line.len() - quarter..])]
}

fn has_grown(second: f64, last: f64, slack: f64) -> bool {
    last > second * (1.0 + MORE / 100.0) + slack
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_all_the_time_is_found_and_a_saw_is_not() {
        let grows: Vec<f64> = (0..400).map(f64::from).collect();
        let saw: Vec<f64> = (0..400).map(|i| f64::from(i % 50)).collect();
        let judge = |line: &[f64]| {
            let [second, last] = quarters(line);
            has_grown(second, last, 10.0)
        };
        assert_eq!((judge(&grows), judge(&saw)), (true, false));
    }
}
