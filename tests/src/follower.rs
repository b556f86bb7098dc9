//! A client that reconnects, as a browser does with the id of its last event, until it has seen the event that it waits
//! for.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::sse::{Frame, Request, Sse};
use crate::wait::DEADLINE;

/// The time between two attempts to connect, so that they do not flood a proxy that is down.
const PAUSE: Duration = Duration::from_millis(20);

/// A client in its own thread.
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
    /// The proxies that it connects to, one after the other.
    pub proxies: Vec<SocketAddr>,
    /// After this many events it disconnects and connects to the next proxy.
    pub leave_after: Option<usize>,
    /// How often the proxy may close the connection; `None` for no limit.
    pub patience: Option<usize>,
}

impl Habits {
    /// Stays connected to one proxy as long as the proxy keeps the connection.
    pub fn faithful(proxy: SocketAddr) -> Self {
        Self { proxies: vec![proxy], leave_after: None, patience: None }
    }
}

impl Follower {
    /// Follows the stream of `request` until an event that `is_end` accepts.
    ///
    /// Without `since` the first connection is made here and waits for its position, so that no event after this call
    /// is missed.
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
                // As a browser does: also after a stream that sent its position and ended before any event.
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

    /// How many events it has received so far.
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

    /// The id of the last event that it received.
    pub fn last_id(&self) -> Option<String> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the end; returns all events before it.
    #[track_caller]
    pub fn finish(self) -> Vec<Frame> {
        match self.thread.join() {
            Ok(frames) => frames,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}
