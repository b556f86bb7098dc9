//! The command line. Every flag has an environment variable `TIDINGS_…`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, ArgGroup, Command, CommandFactory, FromArgMatches, Parser, ValueEnum};
use url::{Origin, Url};

use crate::route::Route;
use crate::stream::channels::Pattern;

/// A client that exceeds a limit waits this many times longer than others.
const OVER_LIMIT_FACTOR: u32 = 15;

/// What the help says after the flags.
const AFTER_HELP: &str = "tidings-proxy check [TOPIC]… looks at everything that must be right before events arrive. It \
    takes the same flags, and --token-file FILE and --json; see tidings-proxy check --help";

/// Streams committed Postgres changes to browsers over Server-Sent Events.
#[derive(Clone, Debug, Parser)]
#[command(name = "tidings-proxy", version, about, max_term_width = 110, after_help = AFTER_HELP)]
// One of the five is required, so that nobody serves everyone by accident.
#[command(group(ArgGroup::new("access").args(["open", "jwt_secret_file", "jwks_file", "jwks_url", "auth_url"]).required(true)))]
pub struct Cli {
    /// Where the database is: a URL or a connection string
    // A string, not parsed here: a parser's error would show the text with the password.
    #[arg(long, env = "TIDINGS_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: String,

    /// File with the password for --database-url; read at each connection, so the password can be changed
    #[arg(long, env = "TIDINGS_DATABASE_PASSWORD_FILE", value_name = "FILE")]
    pub database_password_file: Option<PathBuf>,

    /// The same database with a login that can only check access; default: the login of --database-url
    #[arg(long, env = "TIDINGS_GATE_URL", hide_env_values = true, value_name = "URL")]
    pub gate_url: Option<String>,

    /// File with the password for --gate-url; read at each connection
    #[arg(long, env = "TIDINGS_GATE_PASSWORD_FILE", requires = "gate_url", value_name = "FILE")]
    pub gate_password_file: Option<PathBuf>,

    /// The primary, if --database-url names a standby: reports of open topics go there; without it a proxy at a standby
    /// reports none
    #[arg(long, env = "TIDINGS_REPORT_URL", hide_env_values = true, value_name = "URL")]
    pub report_url: Option<String>,

    /// File with the password for --report-url; read at each connection
    #[arg(long, env = "TIDINGS_REPORT_PASSWORD_FILE", requires = "report_url", value_name = "FILE")]
    pub report_password_file: Option<PathBuf>,

    /// How far a standby may be behind: beyond that the proxy is not ready, and an id that the standby does not know is
    /// no longer waited for
    #[arg(long, env = "TIDINGS_MAX_LAG", default_value = "30s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub max_lag: Duration,

    /// PEM file of the certificate authorities to trust for TLS to Postgres, instead of the system's
    #[arg(long, env = "TIDINGS_DATABASE_CA", value_name = "FILE")]
    pub database_ca: Option<PathBuf>,

    /// Address to listen on
    #[arg(long, env = "TIDINGS_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,

    /// Serve every topic to everyone, for development
    #[arg(long, env = "TIDINGS_OPEN")]
    pub open: bool,

    /// Secret for tokens signed with HS256, at least 32 bytes; one newline at the end is ignored
    #[arg(long, env = "TIDINGS_JWT_SECRET_FILE", value_name = "FILE")]
    pub jwt_secret_file: Option<PathBuf>,

    /// JSON Web Key Set with the keys for tokens signed with RS256, ES256, EdDSA or HS256
    #[arg(long, env = "TIDINGS_JWKS_FILE", value_name = "FILE")]
    pub jwks_file: Option<PathBuf>,

    /// URL of the key set that an identity provider publishes, for RS256, ES256 and EdDSA
    // A string, not parsed here: its query may contain a secret, which a parser's error would show.
    #[arg(long, env = "TIDINGS_JWKS_URL", hide_env_values = true, value_name = "URL")]
    pub jwks_url: Option<String>,

    /// URL of the application that decides: asked with a request's topics, cookies and authorization; 2xx means yes,
    /// 401, 403 and 404 mean no
    // A string, not parsed here: its query may contain a secret, which a parser's error would show.
    #[arg(long, env = "TIDINGS_AUTH_URL", hide_env_values = true, value_name = "URL")]
    pub auth_url: Option<String>,

    /// How long the application, or the server of --jwks-url, may take for an answer
    #[arg(long, env = "TIDINGS_AUTH_TIMEOUT", default_value = "5s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub auth_timeout: Duration,

    /// How long open streams continue although the application gives no answer
    #[arg(long, env = "TIDINGS_AUTH_GRACE", default_value = "5m", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub auth_grace: Duration,

    /// PEM file of the certificate authorities to trust for https:// in --auth-url and --jwks-url, instead of the
    /// system's
    #[arg(long, env = "TIDINGS_AUTH_CA", value_name = "FILE")]
    pub auth_ca: Option<PathBuf>,

    /// Required audience of a token; may be given more than once, then one of them is required
    #[arg(long, env = "TIDINGS_JWT_AUDIENCE", value_name = "TEXT")]
    pub jwt_audience: Vec<String>,

    /// Required issuer of a token; may be given more than once, then one of them is required
    #[arg(long, env = "TIDINGS_JWT_ISSUER", value_name = "TEXT")]
    pub jwt_issuer: Vec<String>,

    /// Database role of requests without a token, or with a token that names no role; without this flag they are
    /// refused
    #[arg(long, env = "TIDINGS_ANON_ROLE", value_name = "ROLE")]
    pub anon_role: Option<String>,

    /// Cookie that may contain the token
    #[arg(long, env = "TIDINGS_TOKEN_COOKIE", value_name = "NAME")]
    pub token_cookie: Option<String>,

    /// Interval at which open streams are checked against the rules again
    #[arg(long, env = "TIDINGS_REAUTHORIZE", default_value = "60s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub reauthorize: Duration,

    /// Another path for a topic's stream, as in /api/boards/{id}/events=boards_{id}; may be given more than once
    #[arg(long = "route", env = "TIDINGS_ROUTE", value_name = "PATH=TOPIC")]
    pub route: Vec<Route>,

    /// Serve plain LISTEN at /channels/NAME for names of this pattern, * for any text; may be given more than once
    #[arg(long, env = "TIDINGS_CHANNEL", value_name = "PATTERN")]
    pub channel: Vec<Pattern>,

    /// Website whose pages may read streams: scheme, host, and port if it has one; may be given more than once
    #[arg(long, env = "TIDINGS_CORS_ORIGIN", value_parser = origin, value_name = "ORIGIN")]
    pub cors_origin: Vec<String>,

    /// Certificate chain, in PEM: serves TLS instead of plain text
    #[arg(long, env = "TIDINGS_TLS_CERT", requires = "tls_key", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key, in PEM
    #[arg(long, env = "TIDINGS_TLS_KEY", requires = "tls_cert", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Interval of the comments that keep an idle stream alive; a client that reads nothing for that long is
    /// disconnected
    #[arg(long, env = "TIDINGS_HEARTBEAT", default_value = "20s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub heartbeat: Duration,

    /// Memory for the recent events of all topics together
    #[arg(long, env = "TIDINGS_HISTORY_BYTES", default_value = "64MiB", value_parser = bytes, value_name = "BYTES")]
    pub history_bytes: usize,

    /// The most that may wait for one client; beyond that the client is disconnected and resumes
    #[arg(long, env = "TIDINGS_CLIENT_QUEUE_BYTES", default_value = "1MiB", value_parser = bytes, value_name = "BYTES")]
    pub client_queue_bytes: usize,

    /// Maximum number of streams
    #[arg(long, env = "TIDINGS_MAX_CLIENTS", default_value_t = 100_000, value_name = "N")]
    pub max_clients: u64,

    /// Maximum number of streams from one address; 0 for no limit, which is needed behind a reverse proxy
    #[arg(long, env = "TIDINGS_MAX_CLIENTS_PER_ADDRESS", default_value_t = 0, value_name = "N")]
    pub max_clients_per_address: u32,

    /// Age at which a stream ends, up to a quarter earlier; the client reconnects, perhaps to another proxy
    #[arg(long, env = "TIDINGS_MAX_STREAM_AGE", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub max_stream_age: Option<Duration>,

    /// Maximum number of topics of one stream
    #[arg(long, env = "TIDINGS_MAX_TOPICS", default_value_t = 64, value_name = "N")]
    pub max_topics: usize,

    /// Maximum number of concurrent reads of the log, for clients whose position is older than memory
    #[arg(long, env = "TIDINGS_MAX_REPLAYS", default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub max_replays: u16,

    /// Maximum number of concurrent readings of rows, for streams with since=snapshot
    #[arg(long, env = "TIDINGS_MAX_SNAPSHOTS", default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub max_snapshots: u16,

    /// Time after which a reading of rows is cancelled; while it runs, vacuum removes nothing that it may still see
    #[arg(long, env = "TIDINGS_SNAPSHOT_TIMEOUT", default_value = "60s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub snapshot_timeout: Duration,

    /// Time for a request's head and for the TLS handshake; an idle HTTP/2 connection is closed after this time
    #[arg(long, env = "TIDINGS_HEADER_TIMEOUT", default_value = "10s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub header_timeout: Duration,

    /// Maximum size of a request's head
    #[arg(long, env = "TIDINGS_MAX_HEADER_BYTES", default_value = "64KiB", value_parser = header_bytes, value_name = "BYTES")]
    pub max_header_bytes: usize,

    /// How long a client waits before it reconnects, varied by up to half for each client
    #[arg(long, env = "TIDINGS_RETRY", default_value = "2s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub retry: Duration,

    /// Time over which streams end after SIGTERM or SIGINT
    #[arg(long, env = "TIDINGS_DRAIN", default_value = "5s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub drain: Duration,

    /// Format of the log on standard error; RUST_LOG sets what is logged
    #[arg(long, env = "TIDINGS_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people to read.
    Text,
    /// One JSON object a line.
    Json,
}

impl Cli {
    /// Reads the command line and the environment; exits with a message if they are not valid.
    pub fn read() -> Self {
        let mut args: Vec<_> = std::env::args_os().collect();
        let command = spread_variables(Self::command(), &mut args, |name| std::env::var(name).ok());
        let matches = command.get_matches_from(args);
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// The wait sent to a client that exceeds a limit: long enough to cause no load, and different for each client.
    pub fn long_retry(&self) -> Duration {
        (self.retry * OVER_LIMIT_FACTOR).mul_f64(0.5 + fastrand::f64())
    }

    /// The wait sent to the next client before it reconnects. Jitter spreads clients that were cut off together.
    pub fn next_retry(&self) -> Duration {
        self.retry.mul_f64(0.5 + fastrand::f64())
    }
}

/// Turns variables with several values, separated by spaces, into flags. A flag's own value is taken whole, because
/// names of channels and topics may contain spaces. As everywhere, flags override environment variables.
pub fn spread_variables(
    mut command: Command,
    args: &mut Vec<OsString>,
    variable: impl Fn(&str) -> Option<String>,
) -> Command {
    let repeatable = command.get_arguments().filter(|arg| matches!(arg.get_action(), ArgAction::Append));
    let flags: Vec<_> = repeatable
        .filter_map(|arg| {
            Some((arg.get_id().clone(), format!("--{}", arg.get_long()?), arg.get_env()?.to_str()?.to_owned()))
        })
        .collect();
    for (id, flag, name) in flags {
        let given = |arg: &OsString| {
            arg.to_str()
                .and_then(|arg| arg.strip_prefix(&flag))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        };
        if args.iter().any(given) {
            continue;
        }
        if let Some(text) = variable(&name) {
            args.extend(text.split_whitespace().map(|value| format!("{flag}={value}").into()));
            // An empty variable counts as not set.
            command = command.mut_arg(id, |arg| arg.env(None));
        }
    }
    command
}

/// A number of bytes, as in `1048576`, `64MiB`, `64MB` or `64k`.
fn bytes(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text[digits.len()..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err("expected a number of bytes, as in 64MiB".into()),
    };
    let number: usize = digits.parse().map_err(|_| "expected a number of bytes, as in 64MiB".to_string())?;
    number.checked_mul(unit).ok_or_else(|| "the number is too large".into())
}

/// A website as in a browser's `Origin` header: scheme and host in ASCII, and the port unless it is the scheme's
/// default.
fn origin(text: &str) -> Result<String, String> {
    let expected = || "expected scheme and host, as in https://app.example.org".to_string();
    let url = Url::parse(text).map_err(|error| format!("{}: {error}", expected()))?;
    let bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
    let anonymous = url.username().is_empty() && url.password().is_none();
    let host = url.host_str().filter(|host| !host.is_empty() && !host.contains('*'));
    let (true, true, Some(host)) = (bare, anonymous, host) else { return Err(expected()) };
    Ok(match url.origin() {
        origin @ Origin::Tuple(..) => origin.ascii_serialization(),
        // The origin of an app or a browser extension, such as `capacitor://localhost`.
        Origin::Opaque(_) => {
            let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
            format!("{}://{}{port}", url.scheme(), host.to_ascii_lowercase())
        }
    })
}

/// The HTTP parser's minimum is 8 KiB.
fn header_bytes(text: &str) -> Result<usize, String> {
    bytes(text).and_then(|n| if n >= 8192 { Ok(n) } else { Err("at least 8KiB".into()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_flag_has_a_variable() {
        let command = Cli::command();
        command.clone().debug_assert();
        for flag in command.get_arguments().filter(|a| !["help", "version"].contains(&a.get_id().as_str())) {
            let variable = format!("TIDINGS_{}", flag.get_id().as_str().to_uppercase());
            assert_eq!(flag.get_env().and_then(|e| e.to_str()), Some(variable.as_str()));
        }
    }

    /// The settings that these arguments and one variable give.
    fn read(args: &[&str], (name, text): (&str, &str)) -> Cli {
        let mut args: Vec<OsString> =
            ["tidings-proxy", "--open", "--database-url", "x"].iter().chain(args).map(OsString::from).collect();
        let variable = |wanted: &str| (wanted == name).then(|| text.to_owned());
        let command = spread_variables(Cli::command(), &mut args, variable);
        Cli::from_arg_matches(&command.try_get_matches_from(args).unwrap()).unwrap()
    }

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|text| Pattern::from(text.to_string())).collect()
    }

    #[test]
    fn a_flag_is_one_value_and_a_variable_holds_several() {
        let channels = |args: &[&str], text| read(args, ("TIDINGS_CHANNEL", text)).channel;
        assert_eq!(channels(&["--channel", "a b", "--channel=c"], ""), patterns(&["a b", "c"]));
        assert_eq!(channels(&[], " a_*  b\n--open "), patterns(&["a_*", "b", "--open"]));
        assert_eq!(channels(&["--channel", "a b"], "c d"), patterns(&["a b"]));
        assert_eq!(channels(&[], " "), []);
        let routes = read(&["--route", "/b/{id}=board {id}"], ("", "")).route;
        assert_eq!(routes[0].topic("/b/5").unwrap().unwrap().as_str(), "board 5");
        let origins = read(&[], ("TIDINGS_CORS_ORIGIN", "https://a.example http://b:3000")).cors_origin;
        assert_eq!(origins, ["https://a.example", "http://b:3000"]);
    }

    #[test]
    fn an_origin_is_written_as_browsers_send_it() {
        for (text, says) in [
            ("https://app.example.org", "https://app.example.org"),
            ("HTTPS://App.Example.org/", "https://app.example.org"),
            ("https://x:443", "https://x"),
            ("http://x:80", "http://x"),
            ("http://x:443", "http://x:443"),
            ("https://x:8443", "https://x:8443"),
            ("https://münchen.de", "https://xn--mnchen-3ya.de"),
            ("http://[::1]:3000", "http://[::1]:3000"),
            ("capacitor://localhost", "capacitor://localhost"),
            ("chrome-extension://ABCD", "chrome-extension://abcd"),
        ] {
            assert_eq!(origin(text).as_deref(), Ok(says), "{text}");
        }
        for text in [
            "",
            "*",
            "null",
            "app.example.org",
            "https://",
            "https://*.example.org",
            "https://x/page",
            "https://x/?q",
            "https://x/#f",
            "https://me:secret@x",
            "https://x y",
            "https://x:99999",
            "data:text/html,x",
        ] {
            assert!(origin(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bytes_have_units() {
        let values = ["0", "1048576", "1MiB", "64 KiB", "2kb", "3k", "1G"].map(|text| bytes(text).unwrap());
        assert_eq!(values, [0, 1 << 20, 1 << 20, 64 << 10, 2000, 3 << 10, 1 << 30]);
        for bad in ["", "MiB", "-1", "1.5MiB", "1 XB", "99999999999999999999", "99999999999GiB"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
