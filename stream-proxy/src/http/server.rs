//! The listener: accepts connections, detects the protocol of each, and serves it.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use crate::http::caller::{BoxError, Caller};
use crate::http::crowd::{Admitted, Crowd};
use crate::http::prefixed::Prefixed;
use crate::http::tls::Tls;
use crate::http::{http1, http2};
use crate::proxy::Proxy;
use crate::stream::socket::Socket;

/// How long to wait when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The proxy, and what only its listener needs.
#[derive(Debug)]
pub struct Server {
    /// The proxy that serves the requests.
    pub proxy: Arc<Proxy>,
    /// Certificate and key, if clients speak TLS.
    pub tls: Option<Arc<Tls>>,
    /// Connections that have no HTTP/1.1 stream.
    pub crowd: Crowd,
}

impl Server {
    /// Accepts connections forever.
    pub async fn serve(self: &Arc<Self>, listener: &TcpListener) -> Infallible {
        let mut failing = false;
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    failing = false;
                    let admitted = self.crowd.admit(peer.ip());
                    let server = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = connection(stream, peer.ip(), admitted, &server).await {
                            tracing::debug!(%peer, %error, "connection failed");
                        }
                    });
                }
                Err(error) => {
                    self.proxy.metrics.accept_errors.add(1);
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "connections can't be accepted for now");
                    }
                    // Without file descriptors the next attempt fails as well. Open streams continue.
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Serves a connection until it ends, becomes a stream, or is displaced from the reserve.
async fn connection(stream: TcpStream, peer: IpAddr, mut admitted: Admitted, server: &Server) -> Result<(), BoxError> {
    let time = admitted.patience(server.proxy.cli.header_timeout);
    let caller = Caller { peer, time, reserved: admitted.is_reserved() };
    tokio::select! {
        ended = serve(stream, caller, server) => ended,
        () = admitted.displaced() => Err("displaced from the reserve by another connection".into()),
    }
}

async fn serve(stream: TcpStream, caller: Caller, server: &Server) -> Result<(), BoxError> {
    let proxy = &server.proxy;
    let stream = Socket::new(stream, proxy.cli.heartbeat);
    match &server.tls {
        Some(tls) => match timeout(caller.time, tls.accept(stream)).await?? {
            (stream, true) => http2::serve(stream, caller, proxy).await,
            (stream, false) => http1::serve(Prefixed::new(stream), caller, proxy).await,
        },
        None => {
            let mut stream = Prefixed::new(stream);
            match timeout(caller.time, stream.speaks_http2()).await?? {
                true => http2::serve(stream, caller, proxy).await,
                false => http1::serve(stream, caller, proxy).await,
            }
        }
    }
}
