//! From a commit to the client: an SSE client of a proxy, and a raw listener on one `pg_notify` trigger.
//!
//! The time starts when the writer sends COMMIT and ends when the client has the event.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tidings_tests::process::{Process, Signal};
use tidings_tests::sse::Request;
use tidings_tests::{Database, Proxy, Sse};

use crate::report::{Report, Target};
use crate::schema::{Rows, Way};
use crate::{Effort, overhead, quantile, slow_commit};

/// The board that the client follows; the load writes to others.
const BOARD: i64 = 0;

/// The pause between two events, so that everything is idle at the next one.
const PAUSE: Duration = Duration::from_millis(3);

/// The load on other boards in the meantime.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    None,
    /// This many transactions per second, if the way allows them.
    Paced(u32),
    /// This many clients that write as fast as they can.
    Full(u32),
}

impl Load {
    const ALL: [Self; 3] = [Self::None, Self::Paced(500), Self::Full(32)];

    fn name(self) -> String {
        match self {
            Self::None => "idle".into(),
            Self::Paced(rate) => format!("beside {rate} TPS"),
            Self::Full(clients) => format!("beside {clients} writers at full speed"),
        }
    }

    fn start(self, database: &Database<'_>, way: Way) -> Option<Process> {
        let args: Vec<String> = match self {
            Self::None => return None,
            Self::Paced(rate) => vec!["-c".into(), "4".into(), "--rate".into(), rate.to_string()],
            Self::Full(clients) => vec!["-c".into(), clients.to_string()],
        };
        let mut command = overhead::pgbench(database, Rows::Narrow, way, 1000);
        command.args(args).args(["-T", "3600"]).stdout(Stdio::null()).stderr(Stdio::null());
        Some(Process::spawn(&mut command, Signal::SIGKILL).expect("start pgbench"))
    }
}

/// Measures both ways under each load, with the disk's own commit and with a slow one.
pub fn measure(database: &Database<'_>, effort: Effort, report: &mut Report) {
    let proxy = database.proxy(&[]);
    for slow in [false, true] {
        slow_commit(database, slow);
        for load in Load::ALL {
            let label = format!("{}{}", load.name(), if slow { ", slow commit" } else { "" });
            println!("==> commit to client, {label}");
            for _ in 0..effort.rounds {
                let mut quantiles = |way, name: &str| {
                    let mut times = round(database, &proxy, way, load, effort.samples / effort.rounds);
                    let (p50, p99) = (quantile(&mut times, 0.5), quantile(&mut times, 0.99));
                    report.compare(format!("commit → client, p50, {label}"), name, p50, "ms", Target::None);
                    report.compare(format!("commit → client, p99, {label}"), name, p99, "ms", Target::None);
                    (p50, p99)
                };
                let raw = quantiles(Way::Notify, "raw LISTEN");
                let ours = quantiles(Way::Tidings, "Tidings, SSE");
                let target = match (load, slow) {
                    (Load::None, true) => Target::AtMost(1.15),
                    (Load::None | Load::Paced(_), false) => Target::AtMost(1.35),
                    _ => Target::None,
                };
                report.add(format!("SSE p50 ÷ raw p50, {label}"), ours.0 / raw.0, "", target);
                let is_full = matches!(load, Load::Full(_));
                let target = if load != Load::None && (slow || is_full) { Target::AtMost(1.0) } else { Target::None };
                report.add(format!("SSE p99 ÷ raw p99, {label}"), ours.1 / raw.1, "", target);
            }
        }
    }
    slow_commit(database, false);
}

/// One series; returns the times in milliseconds.
fn round(database: &Database<'_>, proxy: &Proxy, way: Way, load: Load, samples: usize) -> Vec<f64> {
    let writers = load.start(database, way);
    let table = Rows::Narrow.table(way);
    let mut writer = database.session();
    let mut write = |client: &mut dyn FnMut()| {
        writer.run(&format!("BEGIN; INSERT INTO {table} (board_id, title) VALUES ({BOARD}, 'measured')"));
        let start = Instant::now();
        // The client waits in its own thread, because the event may arrive before the writer has its answer.
        writer.run("COMMIT");
        client();
        start
    };
    let (sender, arrivals) = mpsc::channel();
    let reader: Box<dyn FnMut() -> bool + Send> = match way {
        Way::Tidings => {
            let mut sse = proxy.open(&Request::live(&[&format!("boards_{BOARD}")]));
            Box::new(move || is_event(&mut sse))
        }
        _ => {
            let mut listener = Listener::connect(database, &format!("boards_{BOARD}"));
            Box::new(move || listener.wait())
        }
    };
    let mut reader = reader;
    std::thread::spawn(move || while reader() && sender.send(Instant::now()).is_ok() {});
    if writers.is_some() {
        // The load has started when its rows arrive.
        let mut session = database.session();
        let count = format!("SELECT count(*) FROM {table}");
        let before: i64 = session.one(&count);
        tidings_tests::until("the load is on", || session.one::<i64>(&count) > before + 100);
    }
    let mut times = Vec::with_capacity(samples);
    for i in 0..samples + 20 {
        let mut arrival = None;
        let start =
            write(&mut || arrival = Some(arrivals.recv_timeout(tidings_tests::DEADLINE).expect("the event arrives")));
        let time = arrival.expect("an arrival").duration_since(start);
        // The first ones are for warming up.
        if i >= 20 {
            times.push(time.as_secs_f64() * 1000.0);
        }
        std::thread::sleep(PAUSE);
    }
    drop(writers);
    // One more event ends the reader, and nobody measures it.
    drop(arrivals);
    write(&mut || ());
    times
}

fn is_event(sse: &mut Sse) -> bool {
    sse.frame_or_end().is_some()
}

/// A bare listener that implements just enough of the protocol, so that no library is measured.
struct Listener(BufReader<TcpStream>);

impl Listener {
    fn connect(database: &Database<'_>, channel: &str) -> Self {
        let mut socket = TcpStream::connect(("127.0.0.1", database.cluster().port())).expect("connect");
        socket.set_nodelay(true).expect("set no delay");
        let mut startup = vec![0, 0, 0, 0, 0, 3, 0, 0];
        for text in ["user", tidings_tests::cluster::SUPERUSER, "database", database.name(), ""] {
            startup.extend(text.as_bytes());
            startup.push(0);
        }
        let length = u32::try_from(startup.len()).expect("a short message");
        startup[..4].copy_from_slice(&length.to_be_bytes());
        socket.write_all(&startup).expect("log in");
        let query = format!("LISTEN {channel}\0");
        let mut message = vec![b'Q'];
        message.extend((u32::try_from(query.len()).expect("a short message") + 4).to_be_bytes());
        message.extend(query.as_bytes());
        socket.write_all(&message).expect("listen");
        let mut listener = Self(BufReader::new(socket));
        // Ready after the login, and ready after LISTEN.
        for _ in 0..2 {
            while listener.message() != Some(b'Z') {}
        }
        listener
    }

    /// Reads one message; returns its type.
    fn message(&mut self) -> Option<u8> {
        let mut head = [0; 5];
        self.0.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let mut body = vec![0; usize::try_from(length).ok()?.checked_sub(4)?];
        self.0.read_exact(&mut body).ok()?;
        assert_ne!(head[0], b'E', "the server refuses: {}", String::from_utf8_lossy(&body));
        Some(head[0])
    }

    /// Waits for a notification; false at the end of the connection.
    fn wait(&mut self) -> bool {
        loop {
            match self.message() {
                Some(b'A') => return true,
                Some(_) => {}
                None => return false,
            }
        }
    }
}
