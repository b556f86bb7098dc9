//! A client that reconnects until it has seen what it waits for, as a browser does: with the id of its last event.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::sse::{Frame, Request, Sse};
use crate::wait::DEADLINE;

/// Between two attempts to connect, so that a dead proxy is not drowned in them.
const PAUSE: Duration = Duration::from_millis(20);

/// A client in a thread of its own.
#[derive(Debug)]
pub struct Follower {
    thread: JoinHandle<Vec<Frame>>,
    seen: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    refusals: Arc<AtomicUsize>,
    last: Arc<Mutex<Option<String>>>,
}

/// How a follower behaves.
#[derive(Clone, Debug)]
pub struct Habits {
    /// The proxies it goes to, one after the other.
    pub proxies: Vec<SocketAddr>,
    /// After so many events it leaves by itself and goes to the next proxy.
    pub leave_after: Option<usize>,
    /// The greatest number of times that the proxy may hang up; `None` for any.
    pub patience: Option<usize>,
}

impl Habits {
    /// Stays at one proxy as long as the proxy stays.
    pub fn faithful(proxy: SocketAddr) -> Self {
        Self { proxies: vec![proxy], leave_after: None, patience: None }
    }
}

impl Follower {
    /// Follows what `request` asks for, until an event that `is_end` accepts.
    ///
    /// Without `since` the first connection is made here, and has told where it begins: what comes after this call is
    /// not missed.
    #[track_caller]
    pub fn start(habits: Habits, request: Request, is_end: impl Fn(&Frame) -> bool + Send + 'static) -> Self {
        let seen = Arc::new(AtomicUsize::new(0));
        let connections = Arc::new(AtomicUsize::new(0));
        let refusals = Arc::new(AtomicUsize::new(0));
        let last = Arc::new(Mutex::new(None));
        let first = request.since.is_none().then(|| {
            connections.fetch_add(1, Ordering::Relaxed);
            let mut sse =
                Sse::connect(habits.proxies[0], &request).unwrap_or_else(|error| panic!("{request:?}: {error}"));
            sse.wait_id();
            sse
        });
        let (counted, connected, noted) = (seen.clone(), connections.clone(), last.clone());
        let refused = refusals.clone();
        let thread = std::thread::spawn(move || {
            let mut request = request;
            let mut frames: Vec<Frame> = Vec::new();
            let mut stream = first;
            let mut visits = 0;
            let mut progress = Instant::now();
            loop {
                let address = habits.proxies[visits % habits.proxies.len()];
                let mut sse = match stream.take().map_or_else(|| Sse::connect(address, &request), Ok) {
                    Ok(sse) => sse,
                    Err(error) => {
                        refused.fetch_add(1, Ordering::Relaxed);
                        assert!(progress.elapsed() < DEADLINE, "no stream for {DEADLINE:?}: {error}");
                        std::thread::sleep(PAUSE);
                        continue;
                    }
                };
                if visits > 0 || request.since.is_some() {
                    connected.fetch_add(1, Ordering::Relaxed);
                }
                visits += 1;
                let before = frames.len();
                while let Some(frame) = sse.frame_or_end() {
                    progress = Instant::now();
                    *noted.lock().unwrap_or_else(PoisonError::into_inner) = sse.last_id().map(str::to_owned);
                    if is_end(&frame) {
                        return frames;
                    }
                    frames.push(frame);
                    counted.store(frames.len(), Ordering::Relaxed);
                    if habits.leave_after.is_some_and(|n| frames.len() - before >= n) {
                        break;
                    }
                }
                // As a browser does: also of a stream that told where it begins, and ended before any event.
                request.last_event_id = sse.last_id().map(str::to_owned);
                assert!(progress.elapsed() < DEADLINE, "streams without an event for {DEADLINE:?}");
                assert!(habits.patience.is_none_or(|n| visits <= n + 1), "the proxy hung up {visits} times");
                if frames.len() == before {
                    std::thread::sleep(PAUSE);
                }
            }
        });
        Self { thread, seen, connections, refusals, last }
    }

    /// How many events it has got so far.
    pub fn seen(&self) -> usize {
        self.seen.load(Ordering::Relaxed)
    }

    /// How many streams it has opened so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// How many of its attempts to open a stream have failed so far.
    pub fn refusals(&self) -> usize {
        self.refusals.load(Ordering::Relaxed)
    }

    /// The id of the last event it got.
    pub fn last_id(&self) -> Option<String> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the end; gives all events before it.
    #[track_caller]
    pub fn finish(self) -> Vec<Frame> {
        match self.thread.join() {
            Ok(frames) => frames,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}
