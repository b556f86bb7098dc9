//! The way between the proxies and the database, and how it breaks.
//!
//! The whole run lives in a network namespace of its own. There a packet filter drops or refuses what goes to or comes
//! from the database's ports, so that nothing else is touched, and a traffic class makes the way narrow. A kernel may
//! have no `netem`, and the filter can't delay: for that there is a relay of our own.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Set in the process that runs in namespaces of its own.
const INSIDE: &str = "TIDINGS_CHAOS_INSIDE";

/// Buffers of a socket in bytes (least, usual, most): small ones, so that a slow client is a slow client.
const BUFFERS: &str = "4096 32768 131072";

/// Goes on in a network and a mount namespace of its own, where that is allowed; says whether it does.
pub fn enter() -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !nix::unistd::Uid::effective().is_root() || !succeeds("unshare", &["--net", "--mount", "true"]) {
        return false;
    }
    let program = std::env::current_exe().expect("the path of this program");
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--"]).arg(program).args(std::env::args_os().skip(1)).env(INSIDE, "1");
    panic!("start again in a namespace: {}", command.exec())
}

/// Runs a program that must succeed.
pub fn run(program: &str, args: &[&str]) {
    assert!(succeeds(program, args), "{program} {args:?}");
}

fn succeeds(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).status().is_ok_and(|status| status.success())
}

/// The packet filter and the traffic class.
#[derive(Debug)]
pub struct Filter {
    ports: [u16; 2],
}

impl Filter {
    /// Sets up the namespace's network; `ports` are the database's.
    pub fn new(ports: [u16; 2]) -> Self {
        run("ip", &["link", "set", "lo", "up"]);
        for file in ["tcp_rmem", "tcp_wmem"] {
            std::fs::write(format!("/proc/sys/net/ipv4/{file}"), BUFFERS).expect("set the size of buffers");
        }
        let filter = Self { ports };
        filter.rules("");
        filter
    }

    /// Loses that many percent of the packets.
    pub fn lose(&self, percent: u8) {
        self.rules(&format!("numgen random mod 100 < {percent} drop"));
    }

    /// Lets no packet through.
    pub fn cut(&self) {
        self.rules("drop");
    }

    /// Answers every packet by a reset.
    pub fn refuse(&self) {
        // The reset comes by here, too.
        self.rules("tcp flags & rst == 0 reject with tcp reset");
    }

    /// Lets everything through.
    pub fn heal(&self) {
        self.rules("");
    }

    fn rules(&self, verdict: &str) {
        let [a, b] = self.ports;
        let rules = if verdict.is_empty() {
            String::new()
        } else {
            format!("tcp dport {{ {a}, {b} }} {verdict}\n tcp sport {{ {a}, {b} }} {verdict}\n")
        };
        // One transaction: there is no moment without rules.
        let table = format!(
            "add table inet chaos
             delete table inet chaos
             table inet chaos {{
               chain arriving {{
                 type filter hook input priority 0
                 {rules}
               }}
             }}"
        );
        run("nft", &[&table]);
    }

    /// Makes the way as narrow as so many kilobytes a second, or again as wide as it was.
    pub fn narrow(&self, kilobytes: Option<u16>) {
        let Some(kilobytes) = kilobytes else { return run("tc", &["qdisc", "del", "dev", "lo", "root"]) };
        let tc = |text: &str| run("tc", &text.split_whitespace().collect::<Vec<_>>());
        // What no filter sends to the class passes as it is.
        tc("qdisc add dev lo root handle 1: htb");
        tc(&format!("class add dev lo parent 1: classid 1:1 htb rate {}kbit", u32::from(kilobytes) * 8));
        for port in self.ports {
            for side in ["sport", "dport"] {
                tc(&format!("filter add dev lo parent 1: protocol ip u32 match ip {side} {port} 0xffff flowid 1:1"));
            }
        }
    }
}

/// A relay on the way of one proxy to the database, which can be slow, stand still, or hang up.
#[derive(Debug, Default)]
pub struct Wire {
    delay: AtomicU64,
    stalled: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Wire {
    /// A relay to each of the database's ports; gives its own.
    pub fn start(ports: [u16; 2]) -> (Arc<Self>, [u16; 2]) {
        let wire = Arc::new(Self::default());
        let own = ports.map(|port| {
            let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
            let own = listener.local_addr().expect("an address").port();
            let wire = wire.clone();
            std::thread::spawn(move || {
                for client in listener.incoming().flatten() {
                    // Nobody there: the proxy sees its connection closed.
                    if let Ok(server) = TcpStream::connect(("127.0.0.1", port)) {
                        wire.connect(client, server);
                    }
                }
            });
            own
        });
        (wire, own)
    }

    /// From now on everything comes that much later.
    pub fn delay(&self, delay: Duration) {
        self.delay.store(delay.as_millis() as u64, Ordering::Relaxed);
    }

    /// From now on nothing goes further, or everything again.
    pub fn stall(&self, stalled: bool) {
        self.stalled.store(stalled, Ordering::Relaxed);
    }

    /// Closes all connections.
    pub fn hang_up(&self) {
        for socket in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn connect(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        for (from, to) in [(&client, &server), (&server, &client)] {
            let (from, to) = (from.try_clone().expect("share a socket"), to.try_clone().expect("share a socket"));
            let wire = self.clone();
            std::thread::spawn(move || wire.pass(from, to));
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|socket| socket.peer_addr().is_ok());
        open.extend([client, server]);
    }

    /// Passes on what comes: read at once, with the time it is due noted, and written when it is.
    fn pass(&self, mut from: TcpStream, mut to: TcpStream) {
        let (sender, receiver) = std::sync::mpsc::channel::<(Instant, Vec<u8>)>();
        let mut back = from.try_clone().expect("share a socket");
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for (due, bytes) in receiver {
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    while self.stalled.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    if to.write_all(&bytes).is_err() {
                        break;
                    }
                }
                let _ = to.shutdown(Shutdown::Both);
                let _ = back.flush();
                let _ = back.shutdown(Shutdown::Both);
            });
            let mut block = vec![0; 64 * 1024];
            while let Ok(n @ 1..) = from.read(&mut block) {
                let due = Instant::now() + Duration::from_millis(self.delay.load(Ordering::Relaxed));
                if sender.send((due, block[..n].to_vec())).is_err() {
                    break;
                }
            }
            drop(sender);
        });
    }
}
