//! Very many streams, read by one thread that takes little of the machine, so that the server is measured.
//!
//! An event whose data begins with `t=` and a time (see [`stamp`]) is an arrival; the time that it took goes into a
//! histogram.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use memchr::memmem::Finder;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Registry, Token};
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, Socket, Type};
use tidings_tests::until;

use super::histogram::Histogram;

/// Clients that share one source address: fewer than there are ports.
const PER_ADDRESS: usize = 4000;

/// How much the kernel stores for a client that reads nothing, in bytes.
const SMALL_BUFFER: usize = 4096;

/// The mark of an arrival, before the time, with or without a space in front.
const MARK: &str = "data:";

/// The microseconds since 1970.
pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
    u64::try_from(now.as_micros()).expect("a time before the year 500000")
}

/// The data of an event that is sent now, padded to `size` bytes.
pub fn stamp(size: usize) -> String {
    let mut text = format!("t={} ", now());
    text.extend(std::iter::repeat_n('.', size.saturating_sub(text.len())));
    text
}

/// The request of one client.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Path and query.
    pub path: String,
    /// The header with this name.
    pub last_event_id: Option<String>,
    /// Whether it stops reading as soon as it has sent the request.
    pub stalled: bool,
}

impl Ask {
    /// Asks for a stream that starts now.
    pub fn live(path: impl Into<String>) -> Self {
        Self { path: path.into(), last_event_id: None, stalled: false }
    }

    fn text(&self) -> String {
        let id = self.last_event_id.as_ref().map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        format!("GET {} HTTP/1.1\r\nHost: load\r\nAccept: text/event-stream\r\n{id}\r\n", self.path)
    }
}

/// Open streams and what they have received.
#[derive(Debug)]
pub struct Crowd {
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    size: usize,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    open: AtomicUsize,
    closed: AtomicUsize,
    arrivals: AtomicU64,
    times: Mutex<Histogram>,
}

impl Crowd {
    /// Opens a stream for each of `asks`; at most `at_once` of them wait for a response at the same time.
    pub fn start(address: SocketAddr, asks: Vec<Ask>, at_once: usize) -> Self {
        let (shared, size) = (Arc::new(Shared::default()), asks.len());
        let reader = Reader::new(address, asks, at_once, shared.clone());
        Self { thread: Some(std::thread::spawn(move || reader.run())), shared, size }
    }

    /// The same, and waits until all are open.
    pub fn open(address: SocketAddr, asks: Vec<Ask>, at_once: usize) -> Self {
        let crowd = Self::start(address, asks, at_once);
        until("all streams are open", || crowd.open_streams() == crowd.size);
        crowd
    }

    /// Streams that are open.
    pub fn open_streams(&self) -> usize {
        self.shared.open.load(Relaxed) - self.closed()
    }

    /// Streams that the server has ended.
    pub fn closed(&self) -> usize {
        self.shared.closed.load(Relaxed)
    }

    /// Events that have arrived since the last [`Self::forget`].
    pub fn arrivals(&self) -> u64 {
        self.shared.arrivals.load(Relaxed)
    }

    /// Resets the counts to zero.
    pub fn forget(&self) {
        *self.shared.times() = Histogram::default();
        self.shared.arrivals.store(0, Relaxed);
    }

    /// How long the arrivals took.
    pub fn times(&self) -> Histogram {
        self.shared.times().clone()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn times(&self) -> std::sync::MutexGuard<'_, Histogram> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Client {
    socket: TcpStream,
    ask: Ask,
    /// Whether the request has been sent.
    asked: bool,
    /// Whether the head of the response has been read.
    open: bool,
    /// The beginning of a line that is not complete yet.
    rest: Vec<u8>,
}

/// The thread.
struct Reader {
    address: SocketAddr,
    waiting: std::vec::IntoIter<Ask>,
    at_once: usize,
    clients: Vec<Option<Client>>,
    shared: Arc<Shared>,
    mark: Finder<'static>,
}

impl Reader {
    fn new(address: SocketAddr, asks: Vec<Ask>, at_once: usize, shared: Arc<Shared>) -> Self {
        let clients = Vec::with_capacity(asks.len());
        Self { address, waiting: asks.into_iter(), at_once, clients, shared, mark: Finder::new(MARK) }
    }

    fn run(mut self) {
        let mut poll = Poll::new().expect("epoll");
        let mut events = Events::with_capacity(4096);
        let mut space = vec![0; 256 * 1024];
        let mut times = Vec::new();
        while !self.shared.stop.load(Relaxed) {
            while self.clients.len() - self.shared.open.load(Relaxed) < self.at_once {
                let Some(ask) = self.waiting.next() else { break };
                self.connect(ask, poll.registry());
            }
            // It checks from time to time whether it should stop.
            if poll.poll(&mut events, Some(Duration::from_millis(50))).is_err() {
                continue;
            }
            for event in &events {
                let Token(number) = event.token();
                self.serve(number, poll.registry(), &mut space, &mut times);
            }
            if !times.is_empty() {
                self.shared.arrivals.fetch_add(times.len() as u64, Relaxed);
                let mut histogram = self.shared.times();
                times.drain(..).for_each(|time| histogram.add(time));
            }
        }
    }

    fn connect(&mut self, ask: Ask, registry: &Registry) {
        let number = self.clients.len();
        let network = u8::try_from(number / PER_ADDRESS + 2).expect("few enough clients");
        let source = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, network), 0);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket; raise `ulimit -n`");
        socket.set_nonblocking(true).expect("a socket that doesn't block");
        if ask.stalled {
            socket.set_recv_buffer_size(SMALL_BUFFER).expect("a small buffer");
        }
        // Otherwise the kernel searches for a port one by one among those of all earlier streams, which takes seconds.
        setsockopt(&socket, IpBindAddressNoPort, &true).expect("leave the port to connect");
        socket.bind(&SocketAddr::from(source).into()).expect("a source address");
        if let Err(error) = socket.connect(&self.address.into()) {
            assert_eq!(error.raw_os_error(), Some(nix::libc::EINPROGRESS), "connect: {error}");
        }
        let mut socket = TcpStream::from_std(socket.into());
        let interest = if ask.stalled { Interest::WRITABLE } else { Interest::READABLE | Interest::WRITABLE };
        registry.register(&mut socket, Token(number), interest).expect("watch the socket");
        self.clients.push(Some(Client { socket, ask, asked: false, open: false, rest: Vec::new() }));
    }

    /// Reads and writes for a client what is possible now.
    fn serve(&mut self, number: usize, registry: &Registry, space: &mut [u8], times: &mut Vec<u64>) {
        let Some(client) = &mut self.clients[number] else { return };
        if !client.asked {
            match client.socket.write(client.ask.text().as_bytes()) {
                Ok(_) => client.asked = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("ask: {error}"),
            }
            let socket = &mut client.socket;
            if client.ask.stalled {
                registry.deregister(socket).expect("watch the socket no more");
                self.shared.open.fetch_add(1, Relaxed);
                return;
            }
            registry.reregister(socket, Token(number), Interest::READABLE).expect("watch the socket");
        }
        loop {
            match client.socket.read(space) {
                Ok(0) => break,
                Ok(n) => {
                    if !client.open {
                        client.open = true;
                        self.shared.open.fetch_add(1, Relaxed);
                        assert!(space.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&space[..n]));
                    }
                    arrivals(&self.mark, &mut client.rest, &space[..n], times);
                    // A short read has emptied the socket; the next bytes are another event.
                    if n < space.len() {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => break,
            }
        }
        self.shared.closed.fetch_add(1, Relaxed);
        self.clients[number] = None;
    }
}

/// Finds the arrivals in the bytes, and keeps the line that is not complete yet.
fn arrivals(mark: &Finder<'_>, rest: &mut Vec<u8>, bytes: &[u8], times: &mut Vec<u64>) {
    let Some(end) = memchr::memrchr(b'\n', bytes) else { return rest.extend_from_slice(bytes) };
    let now = now();
    let mut count = |lines: &[u8]| {
        for at in mark.find_iter(lines) {
            let data = &lines[at + MARK.len()..];
            let Some(time) = data.strip_prefix(b" ").unwrap_or(data).strip_prefix(b"t=") else { continue };
            let digits = time.iter().take_while(|byte| byte.is_ascii_digit());
            let sent = digits.fold(0, |n: u64, digit| n * 10 + u64::from(digit - b'0'));
            times.push(now.saturating_sub(sent));
        }
    };
    if rest.is_empty() {
        count(&bytes[..=end]);
    } else {
        rest.extend_from_slice(&bytes[..=end]);
        count(rest);
        *rest = Vec::new();
    }
    rest.extend_from_slice(&bytes[end + 1..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrival_counts_once_however_the_bytes_come() {
        let text = format!("HTTP/1.1 200 OK\r\n\r\nid: 1\ndata: {}\n\nid:2\ndata:{}\n\n", stamp(5), stamp(50));
        for at in 0..text.len() {
            let (mut rest, mut times) = (Vec::new(), Vec::new());
            for part in [&text[..at], &text[at..]] {
                arrivals(&Finder::new(MARK), &mut rest, part.as_bytes(), &mut times);
            }
            assert_eq!((times.len(), rest.len()), (2, 0), "{at}");
        }
    }
}
