//! TLS: both protocols by ALPN, and a certificate that is renewed while streams continue.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use tidings_tests::cluster::free_port;
use tidings_tests::identity::Identity;
use tidings_tests::process::{Process, Signal, fresh_path};
use tidings_tests::{Database, Proxy, until};

use crate::boards;

fn start(db: &Database<'_>, identity: &Identity) -> Proxy {
    let (certificate, key) = identity.paths();
    let url = db.cluster().url(db.name(), &db.proxy_role());
    let proxy = Proxy::start_at(free_port(), &url, &["--tls-cert", certificate, "--tls-key", key]);
    until("the proxy is ready", || {
        answer(&proxy, &["--insecure"], "/readyz").is_some_and(|text| text.ends_with("200"))
    });
    proxy
}

/// A request by curl, which trusts what the arguments name.
fn curl(proxy: &Proxy, args: &[&str], path: &str) -> Command {
    let mut command = Command::new("curl");
    let port = proxy.address().port();
    command.args(["--silent", "--no-buffer", "--resolve", &format!("localhost:{port}:127.0.0.1")]).args(args);
    command.arg(format!("https://localhost:{port}{path}")).stdin(Stdio::null());
    command
}

/// The protocol and the status of the response, if there is one.
fn answer(proxy: &Proxy, args: &[&str], path: &str) -> Option<String> {
    let mut command = curl(proxy, args, path);
    let output = command.args(["--output", "/dev/null", "--write-out", "%{http_version} %{http_code}"]).output();
    let output = output.expect("run curl");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_certificate_is_renewed_while_streams_continue() {
    let db = boards();
    let (first, second) = (Identity::create(), Identity::create());
    let old_authority = fresh_path("authority.pem");
    fs::copy(&first.certificate, &old_authority).expect("copy the certificate");
    let trust_old = ["--cacert", old_authority.to_str().expect("a path")];
    let trust_new = ["--cacert", second.certificate.to_str().expect("a path")];
    let proxy = start(&db, &first);
    assert_eq!(answer(&proxy, &trust_old, "/healthz").as_deref(), Some("2 200"), "HTTP/2 by ALPN");
    let http1 = [&trust_old[..], &["--http1.1"]].concat();
    assert_eq!(answer(&proxy, &http1, "/healthz").as_deref(), Some("1.1 200"));
    assert_eq!(answer(&proxy, &trust_new, "/healthz"), None);
    // A stream of each kind, which stays open during the whole test.
    let mut processes = Vec::new();
    let mut streams: Vec<_> = [&trust_old[..], &http1]
        .into_iter()
        .map(|args| {
            let mut command = curl(&proxy, args, "/events?topic=boards_5");
            let mut process = Process::spawn(command.stdout(Stdio::piped()), Signal::SIGKILL).expect("start curl");
            let mut lines =
                BufReader::new(process.stdout().expect("its output")).lines().map(|line| line.expect("a line"));
            assert!(lines.any(|line| line == ": tidings"), "a stream");
            processes.push(process);
            lines
        })
        .collect();
    let mut id = 0;
    let mut all_see = |text: &str| {
        id += 1;
        db.session().run(&format!("INSERT INTO board_items VALUES ({id}, 5, '{text}')"));
        for lines in &mut streams {
            let line = lines.find(|line| line.starts_with("data: {\"")).expect("the stream continues");
            assert!(line.contains(text), "{line}");
        }
    };
    all_see("before");
    // Half a renewal, the new certificate with the old key: the old ones stay in use.
    let key = fs::read(&first.key).expect("read the key");
    second.replace(&first);
    fs::write(&first.key, &key).expect("write the key");
    proxy.signal(Signal::SIGHUP);
    until("it is refused", || proxy.log().contains("the old ones stay"));
    assert_eq!(answer(&proxy, &trust_old, "/healthz").as_deref(), Some("2 200"));
    all_see("refused");
    second.replace(&first);
    proxy.signal(Signal::SIGHUP);
    until("the new one is in use", || answer(&proxy, &trust_new, "/healthz").as_deref() == Some("2 200"));
    assert_eq!(answer(&proxy, &trust_old, "/healthz"), None);
    all_see("renewed");
}
