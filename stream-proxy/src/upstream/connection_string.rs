//! The connection string: where the database is and how to connect to it.
//!
//! The library's errors quote the input. So they are replaced here, and no error contains a value, because it may be a
//! password.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use crate::upstream::parameters::{BadUrl, Parameters};

/// Where the database is and how to connect to it.
#[derive(Debug)]
pub struct Target {
    /// The configuration for the library, without a password from another source.
    pub config: Config,
    /// The same for each host alone, in the order of the string.
    pub alone: Vec<Config>,
    /// How the connection is secured; `None` for plain text.
    pub security: Option<Security>,
    /// The password file, if the string names one.
    pub passfile: Option<PathBuf>,
}

/// TLS towards Postgres.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Security {
    /// Whether the server's certificate must match the host's name.
    pub check_name: bool,
    /// The certificate authorities to trust.
    pub roots: Roots,
    /// The certificate and the key to present to the server.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// The certificate authorities to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// Those of the command line, otherwise the system's.
    Default,
    /// The system's authorities.
    System,
    /// Those in a file.
    File(PathBuf),
}

impl Target {
    /// Parses a connection string.
    pub fn parse(text: &str) -> Result<Self, BadUrl> {
        let Parameters { rest, mut values, given } = Parameters::of(text)?;
        let mut config: Config = rest.parse().map_err(|_| wrong_value(&given))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(BadUrl::Syntax);
        }
        let security = security(&mut config, &mut values)?;
        let name = values.remove("fallback_application_name").unwrap_or_else(|| "tidings-proxy".into());
        if config.get_application_name().is_none() {
            config.application_name(name);
        }
        keep_alive(&mut config, &given, &values)?;
        let passfile = values.remove("passfile").map(PathBuf::from);
        let alone = (0..config.get_hosts().len().max(config.get_hostaddrs().len())).map(|i| one_host(&config, i));
        Ok(Self { alone: alone.collect(), config, security, passfile })
    }

    /// The hosts with their ports, as an error names them. It has no secret.
    pub fn place(&self) -> String {
        let (hosts, addresses, ports) = (self.config.get_hosts(), self.config.get_hostaddrs(), self.config.get_ports());
        let port = |i| ports.get(i).or(ports.first()).copied().unwrap_or(5432);
        let places = (0..hosts.len().max(addresses.len())).map(|i| match (hosts.get(i), addresses.get(i)) {
            (Some(Host::Tcp(name)), _) if name.contains(':') => format!("[{name}]:{}", port(i)),
            (Some(Host::Tcp(name)), _) => format!("{name}:{}", port(i)),
            (Some(Host::Unix(folder)), _) => format!("{}/.s.PGSQL.{}", folder.display(), port(i)),
            (None, Some(address)) => std::net::SocketAddr::new(*address, port(i)).to_string(),
            (None, None) => String::new(),
        });
        places.collect::<Vec<_>>().join(", ")
    }

    /// The first host that is reached over a network in plain text, where others can eavesdrop.
    pub fn plain_text_host(&self) -> Option<String> {
        if self.security.is_some() {
            return None;
        }
        let (hosts, addresses) = (self.config.get_hosts(), self.config.get_hostaddrs());
        (0..hosts.len().max(addresses.len())).find_map(|i| match (addresses.get(i), hosts.get(i)) {
            (Some(address), _) => (!address.is_loopback()).then(|| address.to_string()),
            (None, Some(Host::Tcp(name))) => {
                let is_local = match name.parse::<std::net::IpAddr>() {
                    Ok(address) => address.is_loopback(),
                    Err(_) => name == "localhost" || name.ends_with(".localhost"),
                };
                (!is_local).then(|| name.clone())
            }
            _ => None,
        })
    }
}

/// The configuration with only one of its hosts. The library can't remove the others.
fn one_host(all: &Config, i: usize) -> Config {
    let mut one = Config::new();
    match all.get_hosts().get(i) {
        Some(Host::Tcp(name)) => _ = one.host(name),
        Some(Host::Unix(folder)) => _ = one.host_path(folder),
        None => {}
    }
    all.get_hostaddrs().get(i).map(|address| one.hostaddr(*address));
    all.get_ports().get(i).or(all.get_ports().first()).map(|port| one.port(*port));
    all.get_user().map(|user| one.user(user));
    all.get_password().map(|password| one.password(password));
    all.get_dbname().map(|name| one.dbname(name));
    all.get_options().map(|options| one.options(options));
    all.get_application_name().map(|name| one.application_name(name));
    all.get_connect_timeout().map(|limit| one.connect_timeout(*limit));
    all.get_tcp_user_timeout().map(|limit| one.tcp_user_timeout(*limit));
    all.get_keepalives_interval().map(|interval| one.keepalives_interval(interval));
    all.get_keepalives_retries().map(|count| one.keepalives_retries(count));
    one.ssl_mode(all.get_ssl_mode()).ssl_negotiation(all.get_ssl_negotiation());
    one.keepalives(all.get_keepalives()).keepalives_idle(all.get_keepalives_idle());
    one.target_session_attrs(all.get_target_session_attrs()).channel_binding(all.get_channel_binding());
    one.load_balance_hosts(all.get_load_balance_hosts());
    one
}

/// Replaces the library's error, whose text quotes the input: names the parameter, and the values that it may have.
fn wrong_value(given: &[String]) -> BadUrl {
    let given = |name| given.iter().any(|given| given == name);
    for (name, values) in [
        ("channel_binding", "disable, prefer and require"),
        ("load_balance_hosts", "disable and random"),
        ("sslnegotiation", "postgres and direct"),
        ("target_session_attrs", "any, read-write and read-only"),
    ] {
        if given(name) {
            return BadUrl::Value(name, values);
        }
    }
    BadUrl::Syntax
}

fn security(config: &mut Config, values: &mut HashMap<&'static str, String>) -> Result<Option<Security>, BadUrl> {
    let mut take = |name| values.remove(name).filter(|value| !value.is_empty());
    let (mode, root) = (take("sslmode"), take("sslrootcert"));
    let identity = match (take("sslcert"), take("sslkey")) {
        (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
        (None, None) => None,
        _ => return Err(BadUrl::Half),
    };
    if !matches!(take("gssencmode").as_deref(), None | Some("disable" | "prefer")) {
        return Err(BadUrl::Value("gssencmode", "disable and prefer"));
    }
    // TLS below 1.2 is never used anyway.
    if !matches!(take("ssl_min_protocol_version").as_deref(), None | Some("TLSv1" | "TLSv1.1" | "TLSv1.2")) {
        return Err(BadUrl::Value("ssl_min_protocol_version", "TLSv1, TLSv1.1 and TLSv1.2"));
    }
    let secure = match mode.as_deref() {
        None => root.is_some() || identity.is_some(),
        Some("disable" | "allow" | "prefer") => false,
        Some("require" | "verify-ca" | "verify-full") => true,
        Some(_) => {
            return Err(BadUrl::Value("sslmode", "disable, allow, prefer, require, verify-ca and verify-full"));
        }
    };
    // libpq and Postgres don't use TLS over a Unix socket.
    let only_sockets = config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
    if !secure || (only_sockets && config.get_hostaddrs().is_empty()) {
        config.ssl_mode(SslMode::Disable);
        return match (secure, &root, &identity) {
            (false, Some(_), _) => Err(BadUrl::NeedsTls("sslrootcert")),
            (false, _, Some(_)) => Err(BadUrl::NeedsTls("sslcert")),
            _ => Ok(None),
        };
    }
    config.ssl_mode(SslMode::Require);
    let check_name = mode.as_deref() != Some("verify-ca");
    let roots = match root {
        None => Roots::Default,
        // A public authority gives a certificate to everyone who has a domain.
        Some(file) if file == "system" && !check_name => {
            return Err(BadUrl::Value("sslmode", "only verify-full and require with sslrootcert=system"));
        }
        Some(file) if file == "system" => Roots::System,
        Some(file) => Roots::File(file.into()),
    };
    Ok(Some(Security { check_name, roots, identity }))
}

/// A dead peer is noticed within about 30 seconds instead of hours, unless the string says otherwise.
fn keep_alive(config: &mut Config, given: &[String], values: &HashMap<&'static str, String>) -> Result<(), BadUrl> {
    let given = |name| given.iter().any(|given| given == name);
    let number = |name| values.get(name).filter(|value| !value.is_empty()).map(|value| value.parse::<u32>());
    if !given("keepalives_idle") {
        config.keepalives_idle(Duration::from_secs(15));
    }
    if !given("keepalives_interval") {
        config.keepalives_interval(Duration::from_secs(5));
    }
    let count = number("keepalives_count").unwrap_or(Ok(3));
    config.keepalives_retries(count.map_err(|_| BadUrl::Value("keepalives_count", "numbers"))?);
    // The library takes seconds, libpq milliseconds.
    let timeout = number("tcp_user_timeout").unwrap_or(Ok(30_000));
    let timeout = timeout.map_err(|_| BadUrl::Value("tcp_user_timeout", "milliseconds"))?;
    if timeout > 0 {
        config.tcp_user_timeout(Duration::from_millis(timeout.into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Target {
        Target::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn error(text: &str) -> String {
        let error = Target::parse(text).map(|_| ()).expect_err(text).to_string();
        assert!(!error.contains("secret"), "{text}: {error}");
        error
    }

    #[test]
    fn both_forms_give_the_same_configuration() {
        for (url, words) in [
            ("postgresql://u:p%20w@h:5433/db", "user=u password='p w' host=h port=5433 dbname=db"),
            ("postgres://u@/db?host=/tmp&application_name=a%26b", "host=/tmp user=u dbname=db application_name = a&b"),
            (
                "postgres://u@a,b/db?target_session_attrs=read-write",
                "host=a,b port=5432,5432 user=u dbname=db target_session_attrs=read-write",
            ),
            ("postgres://h/db?user=a@b&sslmode=disable", "host=h port=5432 dbname=db user=a@b sslmode=disable"),
            ("postgres://u:p?s/w@h/db", "user=u password=p?s/w host=h port=5432 dbname=db"),
            (
                "postgres://u@h/db?sslrootcert=%2Fca%20s.pem&passfile=/p&connect_timeout=3",
                r"host=h port=5432 user=u dbname=db passfile=/p sslrootcert=/ca\ s.pem connect_timeout=3",
            ),
        ] {
            let (url, words) = (parse(url), parse(words));
            assert_eq!(url.config, words.config);
            assert_eq!((url.security, url.passfile), (words.security, words.passfile));
        }
    }

    #[test]
    fn each_host_alone_keeps_all_other_settings() {
        let rest = "user=u password=p dbname=db options=-cgeqo=off application_name=n connect_timeout=3 keepalives=0 \
            keepalives_idle=7 keepalives_interval=8 keepalives_count=9 tcp_user_timeout=10000 sslmode=require \
            sslnegotiation=direct target_session_attrs=read-write channel_binding=require load_balance_hosts=random";
        let both = parse(&format!("host=a,b port=1,2 {rest}")).alone;
        assert_eq!(both, ["host=a port=1", "host=b port=2"].map(|one| parse(&format!("{one} {rest}")).config));
        let sockets = parse(&format!("host=/a,/b {rest} sslnegotiation=postgres")).alone;
        assert_eq!(sockets[1], parse(&format!("host=/b {rest} sslnegotiation=postgres")).config);
        let addresses = parse(&format!("host=a,b hostaddr=127.0.0.1,127.0.0.2 port=3 {rest}")).alone;
        assert_eq!(addresses[1], parse(&format!("host=b hostaddr=127.0.0.2 port=3 {rest}")).config);
    }

    #[test]
    fn modes_of_tls() {
        let security = |text: &str| parse(&format!("host=h {text}")).security;
        let full = Security { check_name: true, roots: Roots::Default, identity: None };
        for plain in ["", "sslmode=disable", "sslmode=allow", "sslmode=prefer"] {
            assert_eq!(security(plain), None, "{plain}");
        }
        // Stricter than libpq, which accepts any certificate.
        assert_eq!(security("sslmode=require"), Some(full.clone()));
        assert_eq!(security("sslmode=verify-full"), Some(full.clone()));
        assert_eq!(security("sslmode=verify-ca"), Some(Security { check_name: false, ..full.clone() }));
        // A string that names an authority asks for verification.
        assert_eq!(security("sslrootcert=system"), Some(Security { roots: Roots::System, ..full.clone() }));
        let file = Security { roots: Roots::File("/ca".into()), ..full.clone() };
        assert_eq!(security("sslrootcert=/ca"), Some(file.clone()));
        let identity = Some(("/c".into(), "/k".into()));
        let both = Security { identity, ..file };
        assert_eq!(security("sslmode=verify-full sslrootcert=/ca sslcert=/c sslkey=/k"), Some(both));
        // A Unix socket is not a network.
        assert_eq!(parse("host=/tmp sslmode=verify-full").security, None);
        for bad in [
            "sslmode=prefer sslrootcert=/ca",
            "sslmode=disable sslcert=/c sslkey=/k",
            "sslmode=require sslcert=/c",
            "sslmode=verify-ca sslrootcert=system",
            "sslmode=secret",
            "sslmode=verify-full ssl_min_protocol_version=secret",
            "gssencmode=require",
        ] {
            error(&format!("host=h {bad}"));
        }
    }

    #[test]
    fn an_unknown_parameter_is_named_without_its_value() {
        for text in
            ["postgres://u:secret@h/db?schema=secret", "host=h schema=secret", "host=h schema = 'a secret' user=u"]
        {
            assert!(error(text).starts_with("unknown parameter \"schema\""), "{text}");
        }
        assert_eq!(error("postgres://h/db?sslcrl=/secret"), "the parameter \"sslcrl\" is not supported");
        assert!(error("host=h channel_binding=secret").contains("\"channel_binding\" is not supported; supported are"));
        for ignored in ["client_encoding=LATIN1", "gssencmode=disable", "sslcompression=0", "sslrootcert=''"] {
            let _ = parse(&format!("host=h {ignored}"));
        }
    }

    #[test]
    fn an_error_quotes_nothing_of_a_string_that_does_not_parse() {
        for bad in [
            "",
            "secret",
            "=secret",
            "host=h password=a secret=b",
            "host=h password=a se cret=b",
            "postgres://h/db?password=a&secret=b",
            "postgresql://u:secret@host:port/db",
            "mysql://u:secret@h/db",
            "dbname=secret",
            "host=h password='secret",
            "postgres://h/db?secret",
            "postgres://h/db?options=%FFsecret",
            "host=h port=secret",
            "host=h tcp_user_timeout=secret",
            "host=h ${secret}=1",
        ] {
            error(bad);
        }
    }

    #[test]
    fn plain_text_is_only_for_local_connections() {
        for local in [
            "host=/tmp",
            "host=localhost",
            "host=db.localhost",
            "postgres://127.1.2.3/db",
            "postgres://[::1]/db",
            "host=db hostaddr=127.0.0.1",
            "host=db.example sslmode=require",
        ] {
            assert_eq!(parse(local).plain_text_host(), None, "{local}");
        }
        for (remote, host) in [
            ("host=db.example", "db.example"),
            ("host=localhost,db.example", "db.example"),
            ("host=localhost hostaddr=10.0.0.1", "10.0.0.1"),
            ("postgres://[2001:db8::1]/db?sslmode=prefer", "2001:db8::1"),
        ] {
            assert_eq!(parse(remote).plain_text_host().as_deref(), Some(host), "{remote}");
        }
    }

    #[test]
    fn a_place_has_hosts_and_ports_and_nothing_else() {
        for (text, place) in [
            ("postgres://u:secret@db/app", "db:5432"),
            ("host=a,b port=1,2 password=secret", "a:1, b:2"),
            ("postgres://u@[::1]:6/db", "[::1]:6"),
            ("host=/tmp port=7", "/tmp/.s.PGSQL.7"),
        ] {
            assert_eq!(parse(text).place(), place, "{text}");
        }
    }

    #[test]
    fn timeouts_have_the_units_of_libpq() {
        let timeout = |text: &str| parse(&format!("host=h {text}")).config.get_tcp_user_timeout().copied();
        assert_eq!(timeout(""), Some(Duration::from_secs(30)));
        assert_eq!(timeout("tcp_user_timeout=1500"), Some(Duration::from_millis(1500)));
        assert_eq!(timeout("tcp_user_timeout=0"), None);
        let config = parse("host=h keepalives_idle=7 keepalives_count=9").config;
        assert_eq!((config.get_keepalives_idle(), config.get_keepalives_retries()), (Duration::from_secs(7), Some(9)));
        assert_eq!(config.get_keepalives_interval(), Some(Duration::from_secs(5)));
        assert_eq!(parse("host=h fallback_application_name=x").config.get_application_name(), Some("x"));
    }
}
