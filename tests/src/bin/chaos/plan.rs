//! What happens in a run: all of it is drawn from the seed before anything starts, so that a seed can be repeated.
//!
//! Three lanes run at the same time (one breaks the database, one the proxies, one the network), so that faults of
//! different kinds overlap and those of one kind do not. When exactly a fault hits a transaction depends on the
//! machine.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;

/// How a standby follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standby {
    /// A commit does not wait for it: a failover may lose the last ticks.
    Asynchronous,
    /// A commit waits for it: a failover loses nothing.
    Synchronous,
}

/// The environment of a run.
#[derive(Clone, Debug)]
pub struct World {
    /// The proxies of the primary and of its standby; the last one reaches the database through a
    /// [`crate::network::Wire`]. There may be another one at the far standby.
    pub proxies: usize,
    /// The writers.
    pub writers: usize,
    /// The numbers of the topics.
    pub topics: Range<usize>,
    /// `tidings.retention` in seconds, if it is shorter than the run.
    pub retention: Option<u64>,
    /// `--history-bytes`.
    pub history: &'static str,
    /// `--client-queue-bytes`.
    pub queue: &'static str,
    /// `--heartbeat`.
    pub heartbeat: &'static str,
    /// Whether commits wait for the disk.
    pub synchronous_commit: bool,
    /// Whether some transactions are prepared. While one is, ticks are flushed before they are announced.
    pub prepares: bool,
    /// Whether the relay leaves it to others to flush what it has announced (`tidings.hold_flush`).
    pub holds_flush: bool,
    /// The standby for failovers.
    pub standby: Option<Standby>,
    /// Whether the standby has a standby of its own.
    pub has_far_standby: bool,
    /// Whether there are clients whose rights are revoked, and two proxies that know rights.
    pub has_members: bool,
    /// Whether the cluster is on a disk that is small enough to be filled.
    pub small_disk: bool,
    /// Whether the server's clock can be changed.
    pub clock: bool,
}

/// Which proxies survive a crash of the server, of those that have heard the last tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alive {
    /// All of them.
    All,
    /// Only this one, or another one if this one is at a standby.
    One(usize),
    /// None of them.
    Nobody,
}

/// What can be broken on this machine.
#[derive(Clone, Copy, Debug)]
pub struct Means {
    /// Its own network and mounts are available.
    pub namespaces: bool,
    /// libfaketime is available.
    pub clock: bool,
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The relay is terminated properly.
    TerminateRelay,
    /// The relay is killed, so Postgres restarts all its processes.
    KillRelay,
    /// The relay is stopped for a while.
    FreezeRelay,
    /// One backend of a proxy is killed, the one that listens or the one that reads.
    KillListener,
    /// All processes of the server are killed at once.
    KillServer,
    /// All processes of the server are killed after a tick was announced and before it is flushed, and with them some of
    /// the proxies.
    CrashInWindow(Alive),
    /// The same, but the standby is promoted, which does not have the tick. A synchronous one has the tick's events, an
    /// asynchronous one does not.
    PromoteInWindow(Alive),
    /// The standby crashes, or the far one.
    CrashStandby { far: bool },
    /// The replay of the standby, or of the far one, stops for a while.
    PauseReplay { far: bool },
    /// The postmaster is killed, and a new one is started as soon as possible.
    KillPostmaster,
    /// The postmaster is stopped for a while.
    FreezePostmaster,
    /// The server is restarted properly.
    RestartServer,
    /// Every backend and the relay are terminated by `pg_terminate_backend`.
    TerminateAll,
    /// A session listens and does not read, and the notification queue fills to this percentage.
    CrowdQueue(u8),
    /// The disk is full.
    FillDisk,
    /// The server's clock jumps by this many seconds, and stays there.
    JumpClock(i32),
    /// The primary is lost, and the standby is promoted; it may have been stopped for some time before.
    Failover,
    /// A proxy is killed.
    KillProxy(usize),
    /// A proxy is terminated by SIGTERM.
    TerminateProxy(usize),
    /// A proxy is stopped for a while.
    FreezeProxy(usize),
    /// No packet between proxies and database arrives.
    Cut,
    /// This percentage of the packets between proxies and database is lost.
    Loss(u8),
    /// The bandwidth between proxies and database is this many kilobytes a second, with a short queue.
    Narrow(u16),
    /// Connections between proxies and database are reset.
    Refuse,
    /// Everything between the last proxy and the database arrives this many milliseconds later, in both directions.
    Delay(u16),
    /// What the last proxy and the database send each other is accepted, and not forwarded.
    Stall,
    /// The connections of the last proxy to the database are closed.
    HangUp,
    /// The proxies' backends are terminated by `pg_terminate_backend`.
    TerminateListeners,
}

/// A fault in its lane.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The quiet time before it.
    pub after: Duration,
    /// The fault.
    pub fault: Fault,
    /// How long it lasts, if that makes sense.
    pub hold: Duration,
}

/// Everything that follows from a seed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// How long the lanes are drawn for.
    pub time: Duration,
    /// Whether it is a long run without faults.
    pub is_soak: bool,
    /// The environment.
    pub world: World,
    /// The faults of each lane: database, proxies, network.
    pub lanes: [Vec<Step>; 3],
}

impl Plan {
    /// Draws the plan of a seed.
    pub fn draw(seed: u64, time: Duration, means: Means) -> Self {
        let mut random = Rng::with_seed(seed);
        let world = World::draw(&mut random, time, means);
        let lanes = [
            database_faults(&mut random, &world),
            proxy_faults(&mut random, &world),
            network_faults(&mut random, means),
        ];
        // The database takes longest to recover, so it gets the longest quiet time. A cut network has an effect only if
        // it lasts.
        let peace = [(1.0, 5.0), (2.0, 8.0), (0.5, 5.0)];
        let holds = [(0.2, 4.0), (0.1, 5.0), (0.5, 9.0)];
        let mut lanes: [Vec<Step>; 3] =
            std::array::from_fn(|i| steps(&mut random, time, &lanes[i], peace[i], holds[i]));
        // Every third one, so that also a run of a minute has some.
        let windows = window_faults(&mut random, &world);
        for (step, fault) in lanes[0].iter_mut().skip(1).step_by(3).zip(windows.iter().cycle()) {
            step.fault = *fault;
        }
        Self { seed, time, is_soak: false, world, lanes }
    }

    /// A long run at moderate load without faults. It goes through the retention a dozen times.
    pub fn soak(seed: u64, time: Duration) -> Self {
        let world = World {
            proxies: 2,
            writers: 6,
            topics: 0..4,
            retention: Some((time.as_secs() / 12).max(30)),
            history: "4MiB",
            queue: "1MiB",
            heartbeat: "3s",
            synchronous_commit: true,
            prepares: true,
            holds_flush: false,
            standby: None,
            has_far_standby: false,
            has_members: false,
            small_disk: false,
            clock: false,
        };
        Self { seed, time, is_soak: true, world, lanes: Default::default() }
    }

    /// A part of a long run, with topics of its own.
    pub fn round(&self, number: usize) -> Self {
        let count = self.world.topics.len();
        let topics = number * count..(number + 1) * count;
        Self { seed: self.seed + number as u64, world: World { topics, ..self.world.clone() }, ..self.clone() }
    }

    /// A number that depends on the seed and on `who` draws it.
    pub fn random(&self, who: u64) -> Rng {
        Rng::with_seed(self.seed.wrapping_mul(1_000_003).wrapping_add(who))
    }
}

impl World {
    fn draw(random: &mut Rng, time: Duration, means: Means) -> Self {
        let standby = match random.u8(..6) {
            0 | 1 => Some(Standby::Asynchronous),
            2 => Some(Standby::Synchronous),
            _ => None,
        };
        // A small disk has no room for what a standby needs, and a changed clock does not go with a retention in real
        // time.
        let small_disk = means.namespaces && standby.is_none() && random.bool();
        let clock = means.clock && standby.is_none() && random.u8(..3) == 0;
        let short = !clock && time >= Duration::from_secs(120) && random.u8(..3) == 0;
        Self {
            proxies: random.usize(2..=3),
            writers: random.usize(4..=8),
            topics: 0..random.usize(3..=6),
            retention: short.then_some(45),
            history: if random.bool() { "64MiB" } else { "256KiB" },
            queue: if random.bool() { "1MiB" } else { "128KiB" },
            heartbeat: if random.bool() { "1s" } else { "3s" },
            synchronous_commit: random.u8(..4) != 0,
            prepares: random.bool(),
            holds_flush: random.u8(..4) != 0,
            standby,
            has_far_standby: standby.is_some() && random.u8(..3) != 0,
            // Members must see all of the log, and what they were told stays true.
            has_members: !short && standby != Some(Standby::Asynchronous) && random.u8(..3) != 0,
            small_disk,
            clock,
        }
    }

    /// All proxies.
    fn all_proxies(&self) -> usize {
        self.proxies + usize::from(self.has_far_standby) + if self.has_members { 2 } else { 0 }
    }
}

/// Each fault of the lane, some more than once, so that all of them occur in the shuffled list.
fn database_faults(random: &mut Rng, world: &World) -> Vec<Fault> {
    let mut faults = vec![
        Fault::TerminateRelay,
        Fault::KillRelay,
        Fault::FreezeRelay,
        Fault::FreezeRelay,
        Fault::KillListener,
        Fault::KillServer,
        Fault::KillPostmaster,
        Fault::FreezePostmaster,
        Fault::RestartServer,
        Fault::TerminateAll,
    ];
    if world.small_disk {
        faults.extend([Fault::FillDisk; 3]);
    } else {
        // More than a tenth of the queue is gigabytes on the disk.
        faults.push(Fault::CrowdQueue(12));
    }
    if world.clock {
        // Postgres's timeouts use that clock: setting it back by N seconds delays the end of a deadlock among the
        // writers by N seconds, and a run can't wait that long.
        faults.extend((0..3).map(|_| Fault::JumpClock(random.i32(-30..=30))));
    }
    if world.standby.is_some() {
        faults.extend([Fault::Failover; 3]);
        let far = world.has_far_standby && random.bool();
        faults.extend([Fault::CrashStandby { far }, Fault::PauseReplay { far: !far && world.has_far_standby }]);
    }
    faults
}

/// Crashes between the announcement and the flush of a tick.
fn window_faults(random: &mut Rng, world: &World) -> Vec<Fault> {
    let one = Alive::One(random.usize(..world.proxies));
    let mut faults = [Alive::All, one, Alive::Nobody].map(Fault::CrashInWindow).to_vec();
    if world.standby.is_some() {
        faults.extend([Alive::All, one].map(Fault::PromoteInWindow));
    }
    random.shuffle(&mut faults);
    faults
}

fn proxy_faults(random: &mut Rng, world: &World) -> Vec<Fault> {
    let all = 0..world.all_proxies();
    let mut faults: Vec<Fault> = all.clone().flat_map(|i| [Fault::KillProxy(i), Fault::FreezeProxy(i)]).collect();
    faults.push(Fault::TerminateProxy(random.usize(all)));
    faults
}

fn network_faults(random: &mut Rng, means: Means) -> Vec<Fault> {
    let mut faults = vec![
        Fault::Delay(random.u16(20..400)),
        Fault::Delay(random.u16(400..2000)),
        Fault::Stall,
        Fault::HangUp,
        Fault::TerminateListeners,
        Fault::TerminateListeners,
    ];
    if means.namespaces {
        faults.extend([Fault::Cut, Fault::Cut, Fault::Loss(random.u8(2..=10)), Fault::Loss(random.u8(20..=50))]);
        faults.extend([Fault::Narrow(random.u16(8..100)), Fault::Refuse]);
    }
    faults
}

fn steps(random: &mut Rng, time: Duration, faults: &[Fault], peace: (f64, f64), hold: (f64, f64)) -> Vec<Step> {
    let mut draw = |(least, most): (f64, f64)| Duration::from_secs_f64(least + (most - least) * random.f64());
    let (mut times, mut at) = (Vec::new(), Duration::ZERO);
    while at < time {
        let (after, hold) = (draw(peace), draw(hold));
        at += after + hold;
        times.push((after, hold));
    }
    let mut row: Vec<Fault> = Vec::new();
    while row.len() < times.len() {
        let mut all = faults.to_vec();
        random.shuffle(&mut all);
        row.extend(all);
    }
    times.into_iter().zip(row).map(|((after, hold), fault)| Step { after, fault, hold }).collect()
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, {:?}: {:?}", self.seed, self.time, self.world)?;
        for (name, lane) in ["database", "proxies", "network"].iter().zip(&self.lanes) {
            writeln!(f, "{name}:")?;
            for step in lane {
                writeln!(f, "  after {:.1?} {:?} for {:.1?}", step.after, step.fault, step.hold)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_plan_and_another_seed_another_one() {
        let means = Means { namespaces: true, clock: true };
        let draw = |seed| Plan::draw(seed, Duration::from_secs(60), means).to_string();
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7).split_once(':'), draw(8).split_once(':'));
    }

    #[test]
    fn every_fault_is_drawn_by_some_seed() {
        let means = Means { namespaces: true, clock: true };
        let plans: Vec<_> = (0..40).map(|seed| Plan::draw(seed, Duration::from_secs(180), means).to_string()).collect();
        for name in [
            "TerminateRelay",
            "KillRelay",
            "FreezeRelay",
            "KillListener",
            "KillServer",
            "KillPostmaster",
            "FreezePostmaster",
            "RestartServer",
            "TerminateAll",
            "CrowdQueue",
            "FillDisk",
            "JumpClock",
            "Failover",
            "CrashInWindow(All)",
            "CrashInWindow(One",
            "CrashInWindow(Nobody)",
            "PromoteInWindow",
            "CrashStandby",
            "PauseReplay",
            "KillProxy",
            "TerminateProxy",
            "FreezeProxy",
            "Cut",
            "Loss",
            "Narrow",
            "Refuse",
            "Delay",
            "Stall",
            "HangUp",
            "TerminateListeners",
        ] {
            assert!(plans.iter().any(|plan| plan.contains(name)), "{name}");
        }
    }
}
