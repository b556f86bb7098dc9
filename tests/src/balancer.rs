//! Debian's load balancers with the configurations of `docs/`, in which only the addresses are replaced.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cluster::free_port;
use crate::process::{Process, Signal, fresh_path, tail};

/// The main configuration of nginx around the one of a site, in its own folder.
const NGINX: &str = "pid {dir}/pid;
error_log stderr;
worker_processes 1;
events { worker_connections 4096; }
http {
    access_log off;
    client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
    include {dir}/site.conf;
}
";

/// A running load balancer. Dropping it ends it.
#[derive(Debug)]
pub struct Balancer {
    _process: Process,
    address: SocketAddr,
    http2: SocketAddr,
    log: PathBuf,
}

impl Balancer {
    /// HAProxy in front of two proxies and a web application.
    #[track_caller]
    pub fn haproxy(proxies: [SocketAddr; 2], web: SocketAddr) -> Self {
        let (address, http2) = (local(free_port()), local(free_port()));
        let listen = format!("    bind {address}\n    bind {http2} proto h2\n");
        let text = site("haproxy.cfg", proxies, web, "    bind :80\n", &listen);
        let path = fresh_path("haproxy.cfg");
        fs::write(&path, text).expect("write HAProxy's configuration");
        let mut command = Command::new(program("haproxy"));
        command.arg("-db").arg("-f").arg(&path);
        Self::start(command, Signal::SIGTERM, address, http2)
    }

    /// nginx in the same place.
    #[track_caller]
    pub fn nginx(proxies: [SocketAddr; 2], web: SocketAddr) -> Self {
        let (address, http2) = (local(free_port()), local(free_port()));
        let listen = format!("    listen {address};\n    listen {http2} http2;\n");
        let dir = fresh_path("nginx");
        fs::create_dir(&dir).expect("create nginx's folder");
        fs::write(dir.join("site.conf"), site("nginx.conf", proxies, web, "    listen 80;\n", &listen))
            .expect("write nginx's configuration");
        let main = dir.join("main.conf");
        fs::write(&main, NGINX.replace("{dir}", &dir.to_string_lossy())).expect("write nginx's configuration");
        Self::start(nginx(&main), Signal::SIGTERM, address, http2)
    }

    /// Varnish with its defaults and the proxy's address.
    #[track_caller]
    pub fn varnish(proxy: SocketAddr) -> Self {
        let (address, dir) = (local(free_port()), fresh_path("varnish"));
        fs::create_dir(&dir).expect("create Varnish's folder");
        let backend =
            format!("vcl 4.1;\nbackend default {{ .host = \"{}\"; .port = \"{}\"; }}\n", proxy.ip(), proxy.port());
        fs::write(dir.join("site.vcl"), backend).expect("write Varnish's configuration");
        let mut command = Command::new(program("varnishd"));
        command.args(["-F", "-j", "none", "-s", "malloc,16m", "-a", &address.to_string()]);
        command.arg("-n").arg(&dir).arg("-f").arg(dir.join("site.vcl"));
        Self::start(command, Signal::SIGTERM, address, address)
    }

    fn start(mut command: Command, farewell: Signal, address: SocketAddr, http2: SocketAddr) -> Self {
        let log = fresh_path("balancer.log");
        let process = Process::start(&mut command, farewell, &log);
        process.wait_until_up("the load balancer listens", &log, || TcpStream::connect(address).ok());
        Self { _process: process, address, http2, log }
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address where it accepts HTTP/2 without TLS.
    pub fn http2(&self) -> SocketAddr {
        self.http2
    }

    /// The log file.
    pub fn log_file(&self) -> &Path {
        &self.log
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of the load balancer's log ---\n{}---", tail(&self.log));
        }
    }
}

/// nginx in the foreground, with the configuration in `path`.
pub fn nginx(path: &Path) -> Command {
    let mut command = Command::new(program("nginx"));
    command.arg("-c").arg(path).args(["-g", "daemon off;"]);
    command
}

/// An address where nobody listens, for a site without a web application.
pub fn nobody() -> SocketAddr {
    local(free_port())
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Debian installs them where only root's `PATH` looks.
fn program(name: &str) -> PathBuf {
    let path = Path::new("/usr/sbin").join(name);
    assert!(path.exists(), "{name} is missing; `make test` installs it");
    path
}

/// A configuration of `docs/` with its addresses replaced.
fn site(name: &str, proxies: [SocketAddr; 2], web: SocketAddr, listen: &str, instead: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    let mut text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // In two steps, because a new port may be one that is still to be replaced.
    let [one, two] = proxies.map(|proxy| proxy.to_string());
    let web = web.to_string();
    let places = [(listen, instead), (":8080", &one), (":8081", &two), (":8000", &web)];
    for (i, (from, _)) in places.iter().enumerate() {
        let from = if i == 0 { (*from).to_owned() } else { format!("127.0.0.1{from}") };
        let before = text.find("\ndefaults").or_else(|| text.find("\nupstream")).expect("a configuration");
        let (comment, rules) = text.split_at(before);
        assert!(rules.contains(&from), "{name} has no {from:?}");
        text = format!("{comment}{}", rules.replace(&from, &format!("<{i}>")));
    }
    for (i, (_, to)) in places.iter().enumerate() {
        text = text.replace(&format!("<{i}>"), to);
    }
    text
}
