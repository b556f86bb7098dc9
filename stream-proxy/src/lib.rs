//! Carries the events of a Tidings database to browsers over Server-Sent Events.
//!
//! The way of an event: [`upstream`] hears of it, [`frame`] encodes it once, [`hub`] queues it to each [`subscriber`] of its
//! topic, whose task writes it to the socket. The way of a request: [`server`] accepts, [`routes`] answers, [`query`] takes the
//! request apart, [`auth`] decides, [`proxy`] opens the stream, [`replay`] brings it from its position to the present.

#![forbid(unsafe_code)]

pub mod auth;
pub mod body;
pub mod cli;
pub mod database;
pub mod frame;
pub mod heartbeat;
pub mod hub;
pub mod metrics;
pub mod problem;
pub mod proxy;
pub mod query;
pub mod reads;
pub mod replay;
pub mod routes;
pub mod server;
pub mod subscriber;
pub mod upstream;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};

use crate::auth::Access;
use crate::cli::Cli;
use crate::database::Database;
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::proxy::Proxy;
use crate::reads::Reads;
use crate::upstream::Upstream;

/// How long clients have, after the drain, to take the last bytes.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// Runs the proxy on `listener` until `shutdown` is ready and all streams have been ended.
pub async fn run(
    cli: Cli,
    access: Access,
    database: Database,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) {
    let metrics = Arc::new(Metrics::default());
    let hub = Hub::new(cli.history_bytes, metrics.clone());
    let reads = Arc::new(Reads::new(database.clone(), cli.max_replays.into(), metrics.clone()));
    let (upstream, readiness) = Upstream::new(database, hub.clone(), metrics.clone(), cli.client_queue_bytes);
    let proxy = Arc::new(Proxy {
        cli,
        access,
        hub,
        reads,
        metrics,
        wheel: Default::default(),
        upstream: readiness,
        draining: Default::default(),
    });

    let upstream = tokio::spawn(upstream.run());
    let heartbeats = tokio::spawn({
        let proxy = proxy.clone();
        async move { proxy.wheel.run(&proxy.hub, &proxy.metrics, proxy.cli.heartbeat).await }
    });
    tokio::select! {
        never = server::serve(&listener, &proxy) => match never {},
        () = shutdown => {}
    }

    proxy.draining.store(true, Relaxed);
    tracing::info!(clients = proxy.metrics.clients.get(), time = ?proxy.cli.drain, "draining");
    drop(listener);
    proxy.wheel.finish(proxy.cli.drain, || proxy.cli.next_retry()).await;
    let deadline = Instant::now() + LAST_BYTES;
    while proxy.metrics.clients.get() > 0 && Instant::now() < deadline {
        sleep(Duration::from_millis(10)).await;
    }
    heartbeats.abort();
    upstream.abort();
    let _ = timeout(LAST_BYTES, upstream).await;
}
