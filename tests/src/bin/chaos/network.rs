//! The network between the proxies and the database, and how it breaks.
//!
//! The whole run lives in its own network namespace. A packet filter there drops or refuses packets to and from the
//! database's ports, so that nothing else is affected, and a traffic class limits the bandwidth. A kernel may have no
//! `netem`, and the filter can't delay packets: [`Wire`] does that.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::server::Ports;

/// Set in the process that runs in its own namespaces.
const INSIDE: &str = "TIDINGS_CHAOS_INSIDE";

/// Socket buffers in bytes (least, usual, most). They are small, so that a client that reads slowly is a slow client.
const BUFFERS: &str = "4096 32768 131072";

/// Continues in its own network and mount namespace if that is allowed; returns whether it is.
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
    ports: Ports,
}

impl Filter {
    /// Sets up the namespace's network; `ports` are the database's.
    pub fn new(ports: Ports) -> Self {
        run("ip", &["link", "set", "lo", "up"]);
        for file in ["tcp_rmem", "tcp_wmem"] {
            std::fs::write(format!("/proc/sys/net/ipv4/{file}"), BUFFERS).expect("set the size of buffers");
        }
        let filter = Self { ports };
        filter.rules("");
        filter
    }

    /// Loses this percentage of the packets.
    pub fn lose(&self, percent: u8) {
        self.rules(&format!("numgen random mod 100 < {percent} drop"));
    }

    /// Lets no packet pass.
    pub fn cut(&self) {
        self.rules("drop");
    }

    /// Answers every packet with a reset.
    pub fn refuse(&self) {
        // The reset passes here too.
        self.rules("tcp flags & rst == 0 reject with tcp reset");
    }

    /// Lets every packet pass.
    pub fn heal(&self) {
        self.rules("");
    }

    fn rules(&self, verdict: &str) {
        let [a, b, c] = self.ports;
        let rules = if verdict.is_empty() {
            String::new()
        } else {
            let ports = format!("{{ {a}, {b}, {c} }}");
            format!("tcp dport {ports} {verdict}\n tcp sport {ports} {verdict}\n")
        };
        // One transaction, so that there is no moment without rules.
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

    /// Limits the bandwidth to this many kilobytes a second, or removes the limit.
    pub fn narrow(&self, kilobytes: Option<u16>) {
        let Some(kilobytes) = kilobytes else { return run("tc", &["qdisc", "del", "dev", "lo", "root"]) };
        let tc = |text: &str| run("tc", &text.split_whitespace().collect::<Vec<_>>());
        // Packets that no filter sends to the class pass without a limit.
        tc("qdisc add dev lo root handle 1: htb");
        tc(&format!("class add dev lo parent 1: classid 1:1 htb rate {}kbit", u32::from(kilobytes) * 8));
        for port in self.ports {
            for side in ["sport", "dport"] {
                tc(&format!("filter add dev lo parent 1: protocol ip u32 match ip {side} {port} 0xffff flowid 1:1"));
            }
        }
    }
}

/// Forwards between one proxy and the database, and can be slow, stall, or hang up.
#[derive(Debug, Default)]
pub struct Wire {
    delay: AtomicU64,
    stalled: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Wire {
    /// Forwards to these ports of the database; returns its own ports.
    pub fn start(ports: [u16; 2]) -> (Arc<Self>, [u16; 2]) {
        let wire = Arc::new(Self::default());
        let own = ports.map(|port| {
            let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
            let own = listener.local_addr().expect("an address").port();
            let wire = wire.clone();
            std::thread::spawn(move || {
                for client in listener.incoming().flatten() {
                    // Nobody listens: the proxy sees its connection closed.
                    if let Ok(server) = TcpStream::connect(("127.0.0.1", port)) {
                        wire.connect(client, server);
                    }
                }
            });
            own
        });
        (wire, own)
    }

    /// From now on everything arrives this much later.
    pub fn delay(&self, delay: Duration) {
        self.delay.store(delay.as_millis() as u64, Ordering::Relaxed);
    }

    /// From now on nothing is forwarded, or everything again.
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

    /// Forwards what arrives: it is read at once, noted with the time when it is due, and written then.
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
