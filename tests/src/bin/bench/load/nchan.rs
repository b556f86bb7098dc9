//! nginx with Nchan from Debian, for comparison: one worker, an EventSource location, publishing by POST.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Stdio;

use tidings_tests::balancer::nginx;
use tidings_tests::cluster::free_port;
use tidings_tests::eventually;
use tidings_tests::identity::Identity;
use tidings_tests::process::{Process, Signal, children, fresh_path};

use super::{Publish, Server};
use crate::machine::debian_version;

/// Where Debian puts it.
const MODULE: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";

const CONFIGURATION: &str = "load_module {module};
pid {dir}/pid;
error_log stderr;
worker_processes 1;
worker_rlimit_nofile {files};
events { worker_connections {connections}; }
http {
    access_log off;
    client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
    nchan_shared_memory_size 256m;
    keepalive_requests 1000000;
    server {
        listen {address}{kind} backlog=4096;
        {identity}
        location ~ ^/events/(\\w+)$ {
            nchan_subscriber eventsource;
            nchan_channel_id $1;
            nchan_eventsource_ping_interval 20;
            nchan_subscriber_first_message newest;
        }
        location ~ ^/publish/(\\w+)$ {
            nchan_publisher http;
            nchan_channel_id $1;
            nchan_message_buffer_length 200;
        }
    }
}
";

/// A running nginx.
pub struct Nchan {
    process: Process,
    address: SocketAddr,
}

impl Nchan {
    /// Starts it for up to `clients` streams, if it is installed.
    pub fn start(clients: usize) -> Result<Self, String> {
        Self::launch(clients, "", "")
    }

    /// The same for HTTP/2 over TLS; nobody publishes there.
    pub fn start_secure(clients: usize, identity: &Identity) -> Result<Self, String> {
        let (certificate, key) = identity.paths();
        Self::launch(clients, " ssl http2", &format!("ssl_certificate {certificate}; ssl_certificate_key {key};"))
    }

    fn launch(clients: usize, kind: &str, identity: &str) -> Result<Self, String> {
        if !Path::new(MODULE).exists() {
            return Err("nginx with Nchan is not installed".to_owned());
        }
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let dir = fresh_path("nchan");
        fs::create_dir(&dir).expect("create nginx's folder");
        let text = CONFIGURATION
            .replace("{module}", MODULE)
            .replace("{dir}", &dir.to_string_lossy())
            .replace("{address}", &address.to_string())
            .replace("{kind}", kind)
            .replace("{identity}", identity)
            .replace("{files}", &(clients + 500).to_string())
            // It needs more than one for each stream.
            .replace("{connections}", &(clients * 3).to_string());
        let path = dir.join("nginx.conf");
        fs::write(&path, text).expect("write nginx's configuration");
        let log = File::create(dir.join("log")).expect("create nginx's log");
        let mut command = nginx(&path);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = Process::spawn(&mut command, Signal::SIGTERM).expect("start nginx");
        eventually("nginx listens", || TcpStream::connect(address).ok());
        Ok(Self { process, address })
    }
}

impl Server for Nchan {
    fn version(&self) -> Option<String> {
        Some(format!("Nchan {}", debian_version("libnginx-mod-nchan")?))
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn pids(&self) -> Vec<u32> {
        children(self.process.pid())
    }

    fn path(&self, topic: &str) -> String {
        format!("/events/{topic}")
    }

    fn publisher(&self) -> Publish<'_> {
        let mut socket = TcpStream::connect(self.address).expect("connect");
        socket.set_nodelay(true).expect("set no delay");
        Box::new(move |topics, text| {
            // All requests of one call at once; then their responses.
            let length = text.len();
            let post = |topic: &&str| {
                format!("POST /publish/{topic} HTTP/1.1\r\nHost: load\r\nContent-Length: {length}\r\n\r\n{text}")
            };
            socket.write_all(topics.iter().map(post).collect::<String>().as_bytes()).expect("publish");
            let (mut answers, mut space, mut count) = (Vec::new(), [0; 16 * 1024], 0);
            while count < topics.len() {
                let n = socket.read(&mut space).expect("an answer");
                assert!(n > 0, "nginx hung up: {}", String::from_utf8_lossy(&answers));
                answers.extend_from_slice(&space[..n]);
                count = answers.windows(9).filter(|text| *text == b"HTTP/1.1 ").count();
            }
            let text = String::from_utf8_lossy(&answers);
            assert_eq!(text.matches("HTTP/1.1 20").count(), count, "{text}");
        })
    }
}
