//! The connection to Postgres: which servers the proxy trusts, and how it authenticates.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tidings_tests::cluster::{free_port, give_to_server};
use tidings_tests::process::{Signal, fresh_path};
use tidings_tests::{Cluster, Proxy, shared, until};

use crate::skipped;

/// An authority and its certificates.
pub struct Authority {
    pub certificate: PathBuf,
    key: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let (certificate, key) = (fresh_path("authority.pem"), fresh_path("authority.key"));
        let extensions = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"];
        make(&certificate, &key, &format!("authority {}", fastrand::u64(..)), &extensions);
        Self { certificate, key }
    }

    /// Certificate and key for this name.
    pub fn vouch(&self, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = (fresh_path("certificate.pem"), fresh_path("certificate.key"));
        let (authority, secret) = (text(&self.certificate), text(&self.key));
        let names = format!("subjectAltName=DNS:{name}");
        let by =
            ["-CA", authority, "-CAkey", secret, "-addext", "basicConstraints=critical,CA:FALSE", "-addext", &names];
        make(&certificate, &key, name, &by);
        (certificate, key)
    }
}

fn make(certificate: &Path, key: &Path, name: &str, args: &[&str]) {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"]);
    command.args(["-subj", &format!("/CN={name}")]).args(args).arg("-out").arg(certificate).arg("-keyout").arg(key);
    let output = command.output().expect("run openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

/// Whether this Postgres was built with TLS; if not, reports that the test leaves it out.
fn speaks_tls() -> bool {
    let library: String = shared().session("postgres", "postgres").one("SHOW ssl_library");
    if library.is_empty() {
        skipped("connections over TLS, which this Postgres was built without");
    }
    !library.is_empty()
}

/// A cluster that uses TLS as `localhost`, and authenticates TCP connections in this way.
fn start(authority: &Authority, method: &str) -> Cluster {
    let (certificate, key) = authority.vouch("localhost");
    let (rules, trusted) = (fresh_path("pg_hba.conf"), fresh_path("trusted.pem"));
    fs::write(&rules, format!("local all all trust\nhostssl all postgres all trust\n{method}\n"))
        .expect("write the rules");
    fs::copy(&authority.certificate, &trusted).expect("copy the authority");
    for file in [&certificate, &key, &rules, &trusted] {
        give_to_server(file);
    }
    let (certificate, key, rules, trusted) = (text(&certificate), text(&key), text(&rules), text(&trusted));
    Cluster::start(&[
        ("ssl", "on"),
        ("ssl_cert_file", certificate),
        ("ssl_key_file", key),
        ("ssl_ca_file", trusted),
        ("hba_file", rules),
    ])
}

/// Checks that a proxy with this connection string reports that it can't connect, and why.
#[track_caller]
fn gets_nowhere(place: &str, args: &[&str], why: &str) {
    let proxy = Proxy::start_at(free_port(), place, args);
    until(&format!("the log says {why}"), || proxy.log().contains("upstream lost") && proxy.log().contains(why));
}

#[test]
fn only_a_server_with_a_certificate_of_the_authority_is_accepted() {
    if !speaks_tls() {
        return;
    }
    let (authority, other) = (Authority::new(), Authority::new());
    let cluster = start(&authority, "hostssl all all all trust");
    let db = cluster.database();
    let place = |host: &str, rest: &str| {
        format!(
            "host={host} hostaddr=127.0.0.1 port={} dbname={} user={} {rest}",
            cluster.port(),
            db.name(),
            db.proxy_role()
        )
    };
    let (root, wrong) =
        (format!("sslrootcert={}", text(&authority.certificate)), format!("sslrootcert={}", text(&other.certificate)));
    for good in [
        place("localhost", &format!("sslmode=verify-full {root}")),
        place("localhost", &format!("sslmode=require {root} channel_binding=prefer")),
        place("localhost", &root),
        place("elsewhere", &format!("sslmode=verify-ca {root}")),
        format!("postgres://{}@localhost:{}/{}?sslmode=verify-full&{root}", db.proxy_role(), cluster.port(), db.name()),
    ] {
        let proxy = Proxy::start(&good, &[]);
        let encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'tidings-proxy'";
        assert!(db.session().one::<bool>(encrypted), "{good}");
        drop(proxy);
        let gone = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tidings-proxy'";
        until("it has left", || db.session().one::<i64>(gone) == 0);
    }
    drop(Proxy::start(&place("localhost", "sslmode=verify-full"), &["--database-ca", text(&authority.certificate)]));
    for mode in ["require", "verify-full"] {
        gets_nowhere(&place("elsewhere", &format!("sslmode={mode} {root}")), &[], "not valid for name");
    }
    for mode in ["require", "verify-ca", "verify-full"] {
        gets_nowhere(&place("localhost", &format!("sslmode={mode} {wrong}")), &[], "UnknownIssuer");
    }
    gets_nowhere(&place("localhost", "sslmode=verify-full"), &[], "UnknownIssuer");
}

#[test]
fn a_certificate_authenticates_the_proxy() {
    if !speaks_tls() {
        return;
    }
    let authority = Authority::new();
    let cluster = start(&authority, "hostssl all all all cert");
    let db = cluster.database();
    let role = db.proxy_role();
    let place = |(certificate, key): &(PathBuf, PathBuf)| {
        let identity = format!("sslcert={} sslkey={}", text(certificate), text(key));
        let root = text(&authority.certificate);
        format!("host=localhost port={} dbname={} user={role} sslrootcert={root} {identity}", cluster.port(), db.name())
    };
    let identity = authority.vouch(&role);
    let proxy = Proxy::start(&place(&identity), &[]);
    gets_nowhere(&place(&authority.vouch("somebody_else")), &[], "certificate authentication failed");
    gets_nowhere(&place(&Authority::new().vouch(&role)), &[], "upstream lost");
    // A new certificate is presented after SIGHUP: this one is for another name.
    let (certificate, key) = authority.vouch("somebody_else");
    fs::copy(&certificate, &identity.0).expect("replace the certificate");
    fs::copy(&key, &identity.1).expect("replace the key");
    proxy.signal(Signal::SIGHUP);
    until("it is read", || proxy.log().contains("the certificates for Postgres were read again"));
    db.cut_proxies();
    until("the new one is shown", || proxy.log().contains("certificate authentication failed"));
}

#[test]
fn a_password_is_read_from_its_file_at_each_connection() {
    if !speaks_tls() {
        return;
    }
    let authority = Authority::new();
    let cluster = start(&authority, "host all all all scram-sha-256");
    let db = cluster.database();
    let role = db.proxy_role();
    let set_password = |password: &str| db.session().run(&format!("ALTER ROLE {role} PASSWORD '{password}'"));
    set_password("the first secret");
    let file = fresh_path("password");
    fs::write(&file, "the first secret\n").expect("write the password");
    let place = |rest: &str| format!("host=localhost port={} dbname={} user={role} {rest}", cluster.port(), db.name());
    let secure = format!("sslmode=verify-full sslrootcert={} channel_binding=require", text(&authority.certificate));
    let args = ["--database-password-file", text(&file)];
    let proxy = Proxy::start(&place(&secure), &args);
    let mut stream = proxy.live(&["t"]);
    db.session().publish("t", "1");
    assert_eq!(stream.frame().data, "1");

    set_password("the second secret");
    db.cut_proxies();
    until("the old one is refused", || proxy.log().contains("password authentication failed"));
    fs::write(&file, "the second secret").expect("write the password");
    proxy.signal(Signal::SIGHUP);
    until("it is checked", || proxy.log().contains("the certificates for Postgres were read again"));
    proxy.wait_ready();
    db.session().publish("t", "2");
    assert_eq!(stream.frame().data, "2");
    // A missing file is logged, and is needed only for the next connection.
    fs::remove_file(&file).expect("remove the password");
    proxy.signal(Signal::SIGHUP);
    until("it says so", || proxy.log().contains("the new certificates for Postgres are not usable"));
    db.session().publish("t", "3");
    assert_eq!(stream.frame().data, "3");
    assert!(!proxy.log().contains("secret"), "{}", proxy.log());

    // As in libpq; without TLS there is nothing to bind to.
    let passfile = fresh_path("passfile");
    fs::write(&passfile, format!("localhost:*:*:{role}:the second secret\n")).expect("write the passwords");
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600)).expect("close the file to others");
    drop(Proxy::start(&place(&format!("passfile={}", text(&passfile))), &[]));
    gets_nowhere(&place(&format!("passfile={} channel_binding=require", text(&passfile))), &[], "channel binding");
    gets_nowhere(&place("password='a wrong secret'"), &[], "password authentication failed");
}

#[test]
fn an_unknown_connection_parameter_is_named_without_its_value() {
    let mut proxy = Proxy::start_at(free_port(), "postgres://u:hidden@127.0.0.1/db?schema=hidden", &[]);
    until("it has refused to start", || proxy.log().contains("unknown parameter \"schema\""));
    assert!(!proxy.terminate().success());
    assert!(!proxy.log().contains("hidden"), "{}", proxy.log());
}
