//! Pushpin from Debian, for comparison: an origin says that the stream is to be held for a channel, and publishing is
//! by POST.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use tidings_tests::cluster::free_port;
use tidings_tests::eventually;
use tidings_tests::process::{Process, Signal, children, fresh_path};

use super::{Publish, Server};
use crate::machine::debian_version;

/// How Pushpin's processes find each other; ours do the same in another folder.
const INTERNAL: &str = "/usr/lib/pushpin/internal.conf";

/// The folder of the sockets of Debian's own Zurl.
const ZURL: &str = "/var/run/zurl/";

/// Settings for as many streams and messages as the others carry.
const CONFIGURATION: &str = "[global]
include={dir}/internal.conf
rundir={dir}/run
ipc_prefix=p-
[runner]
services=condure,pushpin-proxy,pushpin-handler
http_port={address}
logdir={dir}
log_level=1
client_buffer_size=8192
client_maxconn={clients}
[proxy]
routesfile=routes
updates_check=off
[handler]
push_in_spec=ipc://{dir}/push-in
push_in_http_addr=127.0.0.1
push_in_http_port={publish}
push_in_http_max_headers_size=10000
push_in_http_max_body_size=10000000
stats_spec=ipc://{dir}/stats
command_spec=ipc://{dir}/command
message_rate=10000000
message_hwm=10000000
";

/// Zurl asks the origin for Pushpin.
const ZURL_CONFIGURATION: &str = "[General]
in_spec=ipc://{dir}/zurl-in
in_stream_spec=ipc://{dir}/zurl-in-stream
out_spec=ipc://{dir}/zurl-out
in_req_spec=ipc://{dir}/zurl-req
defpolicy=allow
max_open_requests=2000
buffer_size=200000
timeout=600
";

/// A running Pushpin.
pub struct Pushpin {
    pushpin: Process,
    zurl: Process,
    address: SocketAddr,
    publish: SocketAddr,
}

impl Pushpin {
    /// Starts it for up to `clients` streams, if it is installed.
    pub fn start(clients: usize) -> Result<Self, String> {
        let internal = fs::read_to_string(INTERNAL).map_err(|_| "Pushpin is not installed".to_owned())?;
        let [address, publish] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        let dir = fresh_path("pushpin");
        fs::create_dir_all(dir.join("run")).expect("create Pushpin's folder");
        let path = dir.to_string_lossy().into_owned();
        let fill = |text: &str| {
            text.replace("{dir}", &path)
                .replace("{address}", &address.to_string())
                .replace("{publish}", &publish.port().to_string())
                .replace("{clients}", &(clients + 500).to_string())
        };
        for (name, text) in [
            ("internal.conf", internal.replace(ZURL, &format!("{path}/"))),
            ("pushpin.conf", fill(CONFIGURATION)),
            ("zurl.conf", fill(ZURL_CONFIGURATION)),
            ("routes", format!("* {}\n", origin())),
        ] {
            fs::write(dir.join(name), text).expect("write Pushpin's configuration");
        }
        let zurl = launch("zurl", &dir, "zurl.conf")?;
        let pushpin = launch("pushpin", &dir, "pushpin.conf")?;
        let server = Self { pushpin, zurl, address, publish };
        // It accepts connections before its processes have found each other.
        eventually("Pushpin answers", || server.answers().then_some(()));
        Ok(server)
    }

    fn answers(&self) -> bool {
        let Ok(mut socket) = TcpStream::connect(self.address) else { return false };
        let mut head = [0; 12];
        let asked = socket.write_all(b"GET /first HTTP/1.1\r\nHost: load\r\n\r\n");
        asked.is_ok() && socket.read_exact(&mut head).is_ok() && head == *b"HTTP/1.1 200"
    }
}

fn launch(program: &str, dir: &Path, configuration: &str) -> Result<Process, String> {
    let log = File::create(dir.join(format!("{program}.log"))).expect("create a log");
    let mut command = Command::new(program);
    command.arg(format!("--config={}", dir.join(configuration).display()));
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("the log")).stderr(log);
    Process::spawn(&mut command, Signal::SIGTERM).map_err(|error| format!("{program}: {error}"))
}

/// Starts an origin that answers every request with `Grip-Hold`, for the channel in its path; it runs as long as the
/// program.
fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            std::thread::spawn(move || hold(socket));
        }
    });
    address
}

fn hold(mut socket: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(socket.try_clone()?).lines();
    while let Some(line) = lines.next() {
        let line = line?;
        let topic = line.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
        for header in lines.by_ref() {
            if header?.is_empty() {
                break;
            }
        }
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 0\r\nGrip-Hold: stream\r\n\
             Grip-Channel: {topic}\r\nGrip-Keep-Alive: :\\n\\n; format=cstring; timeout=20\r\n\r\n"
        );
        socket.write_all(head.as_bytes())?;
    }
    Ok(())
}

impl Server for Pushpin {
    fn version(&self) -> Option<String> {
        Some(format!("Pushpin {}", debian_version("pushpin")?))
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn pids(&self) -> Vec<u32> {
        let mut pids = children(self.pushpin.pid());
        pids.push(self.zurl.pid());
        pids
    }

    fn path(&self, topic: &str) -> String {
        format!("/{topic}")
    }

    /// With 200 at once, about a hundred of 10,000 streams get a 502 although Zurl has got a 200 for every one, and
    /// some get a 500 with "received message out of sequence" in the handler's log. Larger limits for Zurl's queues
    /// change nothing. With 50 or 20 no stream fails.
    fn at_once(&self) -> usize {
        20
    }

    fn publisher(&self) -> Publish<'_> {
        Box::new(move |topics, text| {
            let content = json!({"http-stream": {"content": format!("data: {text}\n\n")}});
            let items: Vec<_> = topics.iter().map(|topic| json!({"channel": topic, "formats": content})).collect();
            let body = json!({ "items": items }).to_string();
            // It closes the connection after each response.
            let mut socket = TcpStream::connect(self.publish).expect("connect");
            let head = format!("POST /publish/ HTTP/1.1\r\nHost: load\r\nContent-Length: {}\r\n\r\n", body.len());
            socket.write_all((head + &body).as_bytes()).expect("publish");
            let mut answer = String::new();
            socket.read_to_string(&mut answer).expect("an answer");
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        })
    }
}
