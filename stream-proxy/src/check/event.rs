//! An event's whole way: it is written to the log, announced by the relay, and read from a stream. The stream is that
//! of a proxy inside this process, over a pair of sockets, so that nobody else can subscribe there.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_postgres::types::Type;

use crate::access::auth::Access;
use crate::check::database::Connections;
use crate::check::report::Report;
use crate::cli::Cli;
use crate::http::caller::Caller;
use crate::http::http1;
use crate::http::prefixed::Prefixed;
use crate::run::{Parts, Sources, assemble};
use crate::upstream::database::{Database, DatabaseError, in_time};
use crate::upstream::dialect::Dialect;
use crate::upstream::session::Readiness;

/// How long a proxy may take until it is ready, and an event until it arrives.
const TIME: Duration = Duration::from_secs(10);

/// Sends an event to a stream. Before 0.2.0 no function of the database sends one for a check: then it only opens the
/// stream.
pub async fn round_trip(
    cli: Cli,
    database: &Database,
    connections: &Connections,
    dialect: Dialect,
    report: &mut Report,
) -> Option<()> {
    match send(cli, database, connections, dialect).await {
        Ok(Some(time)) => {
            report.right("event", format!("an event went from the database to a stream in {} ms", time.as_millis()));
            Some(())
        }
        Ok(None) => {
            report.right("stream", "a proxy is ready and opens a stream; an event can be sent after the update");
            Some(())
        }
        Err(detail) => {
            let fix = "Look at SELECT * FROM tidings.status, and at the server's log for lines about tidings.";
            report.wrong("event", detail, fix);
            None
        }
    }
}

/// The time that an event took; `None` if the stream was only opened.
async fn send(
    cli: Cli,
    database: &Database,
    connections: &Connections,
    dialect: Dialect,
) -> Result<Option<Duration>, String> {
    let sources = Sources { database: database.clone(), rows: database.clone(), reports: None };
    let Parts { proxy, upstream, .. } = assemble(cli, Access::Open, sources, Default::default());
    let mut readiness = proxy.upstream.clone();
    let (upstream, fan_out) = (tokio::spawn(upstream.run()), proxy.hub.clone());
    let fan_out = tokio::spawn(async move { fan_out.fan_out().await });
    let sending = async {
        let _ = readiness.wait_for(|readiness| *readiness == Readiness::Ready).await;
        let sql = "SELECT pg_catalog.gen_random_uuid()::pg_catalog.text";
        let rows = in_time(connections.speaker.query_typed(sql, &[])).await?;
        let id: String = rows.first().ok_or(DatabaseError::Contract("no id"))?.try_get(0)?;
        let (mut client, server) = UnixStream::pair().map_err(|_| DatabaseError::Closed)?;
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let proxy = proxy.clone();
        tokio::spawn(async move {
            let caller = Caller { peer, time: TIME, reserved: false };
            let _ = http1::serve(Prefixed::new(server), caller, &proxy).await;
        });
        let request = format!("GET /events?topic=tidings_check_{id} HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n");
        client.write_all(request.as_bytes()).await.map_err(|_| DatabaseError::Closed)?;
        let mut seen = Vec::new();
        // The stream has begun: from now on it gets events.
        read_until(&mut client, &mut seen, ": heartbeat=").await?;
        if dialect == Dialect::Old {
            return Ok(None);
        }
        let start = Instant::now();
        let probe = "SELECT tidings.probe($1::pg_catalog.text::pg_catalog.uuid)";
        in_time(connections.speaker.query_typed(probe, &[(&id, Type::TEXT)])).await?;
        read_until(&mut client, &mut seen, &format!("data: {id}")).await?;
        Ok::<_, DatabaseError>(Some(start.elapsed()))
    };
    let sent = timeout(TIME, sending).await;
    upstream.abort();
    fan_out.abort();
    match (sent, &*proxy.upstream.borrow()) {
        (Ok(Ok(time)), _) => Ok(time),
        (Ok(Err(error)), _) => Err(format!("an event could not be sent: {error}")),
        (Err(_), Readiness::Waiting(reason)) => Err(format!("a proxy is not ready within {TIME:?}: {reason}")),
        (Err(_), Readiness::Ready) => Err(format!("an event did not arrive within {TIME:?}")),
    }
}

/// Reads until a text has come.
async fn read_until(client: &mut UnixStream, seen: &mut Vec<u8>, text: &str) -> Result<(), DatabaseError> {
    while !String::from_utf8_lossy(seen).contains(text) {
        match client.read_buf(seen).await {
            Ok(n) if n > 0 => {}
            _ => return Err(DatabaseError::Contract("the stream ended")),
        }
    }
    Ok(())
}
