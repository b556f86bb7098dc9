//! Puts the parts of the proxy together, runs them until a signal, and drains the streams.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::access::application::Application;
use crate::access::application::visit::Timing;
use crate::access::auth::Access;
use crate::access::by_token::ByToken;
use crate::access::gate::Gate;
use crate::access::login::{Logins, TooPowerful};
use crate::access::rules::Rules;
use crate::addresses::Addresses;
use crate::cli::Cli;
use crate::http::crowd::Crowd;
use crate::http::server::Server;
use crate::http::tls::Tls;
use crate::judge::Judge;
use crate::metrics::Metrics;
use crate::proxy::Proxy;
use crate::stream::channels::Channels;
use crate::stream::heartbeat::Wheel;
use crate::stream::hub::Hub;
use crate::upstream::database::Database;
use crate::upstream::reading::Readings;
use crate::upstream::reads::Reads;
use crate::upstream::registry::Registry;
use crate::upstream::session::{Followed, Upstream};
use crate::upstream::snapshots::Snapshots;
use crate::upstream::standing::Standing;

/// How long clients have, after the drain, to take the last bytes.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// The checked settings and the parts made from them.
#[derive(Debug)]
pub struct Setup {
    /// The settings.
    pub cli: Cli,
    /// Who decides about access.
    pub judge: Judge,
    /// Where the database is.
    pub database: Database,
    /// The same database with another login, for access checks.
    pub gate: Option<Database>,
    /// Where open topics are reported, if not there.
    pub reports: Option<Database>,
    /// Certificate and key, to serve TLS.
    pub tls: Option<Arc<Tls>>,
    /// The socket on which clients connect.
    pub listener: TcpListener,
}

/// A proxy, and what runs beside it.
#[derive(Debug)]
pub struct Parts {
    /// What all requests share.
    pub proxy: Arc<Proxy>,
    /// Follows the database.
    pub upstream: Upstream,
    /// Reports which topics have subscribers.
    pub registry: Registry,
}

/// The databases of a proxy: one server, with different logins.
#[derive(Debug)]
pub struct Sources {
    /// Where events come from.
    pub database: Database,
    /// Where rows are read.
    pub rows: Database,
    /// Where open topics are reported; by default where events come from.
    pub reports: Option<Database>,
}

/// Makes the parts of a proxy. Nothing of it runs yet.
pub fn assemble(cli: Cli, access: Access, sources: Sources, metrics: Arc<Metrics>) -> Parts {
    let Sources { database, rows, reports } = sources;
    let standing = Arc::new(Standing::new(cli.max_lag));
    let hub = Hub::new(cli.history_bytes, metrics.clone());
    let channels = Channels::new(cli.channel.clone(), metrics.clone());
    let parallel = cli.max_replays.into();
    let reads = Arc::new(Reads::new(database.clone(), reports, standing.clone(), parallel, metrics.clone()));
    let followed = Followed { hub: hub.clone(), channels: channels.clone(), standing: standing.clone() };
    let (upstream, readiness) = Upstream::new(database, followed, metrics.clone(), cli.client_queue_bytes);
    let readings = Readings::new(rows, cli.snapshot_timeout, metrics.clone());
    let is_guarded = !matches!(access, Access::Open);
    let snapshots =
        Snapshots::new(readings, cli.max_snapshots.into(), cli.snapshot_timeout, is_guarded, metrics.clone());

    let address = cli.listen.to_string();
    let registry = Registry::new(hub.clone(), reads.clone(), metrics.clone(), &address);
    let proxy = Arc::new(Proxy {
        wheel: Wheel::new(cli.max_stream_age),
        cli,
        access,
        hub,
        channels,
        reads,
        snapshots,
        metrics,
        standing,
        upstream: readiness,
        draining: Default::default(),
        addresses: Addresses::default(),
    });
    Parts { proxy, upstream, registry }
}

/// Runs the proxy until `shutdown` is ready and all streams have ended. Fails if a database role of the proxy is too
/// powerful.
pub async fn run(setup: Setup, shutdown: impl Future<Output = ()>) -> Result<(), TooPowerful> {
    let Setup { cli, judge, database, gate, reports, tls, listener } = setup;
    let gate = gate.map(|gate| gate.beside(&database));
    let metrics = Arc::new(Metrics::default());
    let is_open = matches!(judge, Judge::Nobody);
    let logins = Logins {
        databases: if is_open { [None, None] } else { [Some(database.clone()), gate.clone()] },
        metrics: metrics.clone(),
    };
    // The login that may take the subscribers' roles.
    let rows = gate.as_ref().unwrap_or(&database).clone();
    let access = access(&cli, judge, &database, gate.as_ref(), &metrics);
    let Parts { proxy, upstream, mut registry } = assemble(cli, access, Sources { database, rows, reports }, metrics);
    let crowd = Crowd::new(proxy.cli.max_clients, proxy.cli.max_clients_per_address, proxy.metrics.clone());
    let server = Arc::new(Server { proxy: proxy.clone(), tls, crowd });
    let Proxy { cli, access, hub, metrics, wheel, .. } = &*proxy;

    let mut upstream = tokio::spawn(upstream.run());
    let mut fan_out = JoinSet::new();
    for _ in 0..Handle::current().metrics().num_workers() {
        let hub = hub.clone();
        fan_out.spawn(async move { hub.fan_out().await });
    }
    {
        // This continues until the last stream has ended, because streams keep their guarantees during a drain.
        let mut looking_after = pin!(async {
            tokio::select! {
                () = wheel.run(hub, metrics, cli.heartbeat, || cli.next_retry()) => {}
                never = registry.run() => match never {},
                never = access.run(cli.reauthorize) => match never {},
            }
        });
        tokio::select! {
            never = server.serve(&listener) => match never {},
            () = &mut looking_after => {}
            too_powerful = logins.examine() => return Err(too_powerful),
            ended = &mut upstream => give_up("follows the database", &ended),
            Some(ended) = fan_out.join_next() => give_up("serves the subscribers", &ended),
            () = shutdown => {}
        }
        proxy.draining.send_replace(true);
        tracing::info!(clients = metrics.clients.get(), time = ?cli.drain, "draining");
        drop(listener);
        tokio::select! {
            () = looking_after => {}
            () = drain(&proxy) => {}
        }
    }
    // The last report: no topic has subscribers here any more.
    if hub.place().is_some() {
        let _ = timeout(LAST_BYTES, registry.report(false)).await;
    }
    upstream.abort();
    drop(fan_out);
    Ok(())
}

/// Ends the proxy, because a task ended that never does, unless it has a fault. Whoever supervises the proxy starts
/// another one; without the task, streams would stay open and get nothing.
fn give_up(what: &str, ended: &impl fmt::Debug) -> ! {
    panic!("the task that {what} has ended: {ended:?}")
}

/// How access is decided.
fn access(cli: &Cli, judge: Judge, database: &Database, gate: Option<&Database>, metrics: &Arc<Metrics>) -> Access {
    let rules = || {
        // The roles of the other connections.
        let logins = gate.and_then(|_| database.login()).map(str::to_owned).into_iter().collect();
        Rules::new(Gate::new(gate.unwrap_or(database), &logins, metrics), metrics.clone())
    };
    let anonymous = cli.anon_role.clone();
    match judge {
        Judge::Nobody => Access::Open,
        Judge::Tokens(keys) => {
            Access::ByToken(Arc::new(ByToken::new(keys, anonymous, rules(), cli.retry, metrics.clone())))
        }
        Judge::Application(url, fetcher) => {
            let Cli { reauthorize, auth_grace: grace, auth_timeout: answer, retry, .. } = *cli;
            let timing = Timing { reauthorize, grace, answer, retry };
            let application = Application::new(url, *fetcher, timing, anonymous, rules(), metrics.clone());
            Access::Application(Arc::new(application))
        }
    }
}

/// Ends all streams, and waits a moment until their last bytes are sent.
async fn drain(proxy: &Proxy) {
    let Proxy { cli, metrics, wheel, .. } = proxy;
    wheel.finish(cli.drain, || cli.next_retry()).await;
    let deadline = Instant::now() + LAST_BYTES;
    // An HTTP/2 stream ends before its connection has written the stream's last bytes.
    while metrics.clients.get() + metrics.connections.get() > 0 && Instant::now() < deadline {
        sleep(Duration::from_millis(10)).await;
        // For streams that were admitted in the meantime.
        wheel.finish(Duration::ZERO, || cli.next_retry()).await;
    }
}
