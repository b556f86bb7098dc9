//! How much of a server's memory a client takes that gets only heartbeats, over HTTP/2 and TLS, with a connection of
//! its own. nginx with Nchan is the only other server here that does both itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use tidings_tests::identity::Identity;
use tidings_tests::{Database, Proxy, until};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use super::nchan::Nchan;
use super::{Scale, Server, Tidings, names, resident};
use crate::report::{Report, Target};

/// Clients, few enough that their handshakes take seconds.
const CLIENTS: usize = 4000;

/// Handshakes at the same time.
const AT_ONCE: usize = 50;

/// Measures both servers in turns.
pub fn measure(database: &Database<'_>, scale: Scale, report: &mut Report) {
    let clients = scale.of(CLIENTS);
    let pause = Duration::from_secs(scale.seconds.into());
    let identity = Identity::create();
    for round in 0..scale.rounds {
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                let server = Tidings { proxy: proxy(database, &identity, scale), database };
                idle("Tidings", &server, clients, pause, report);
            } else {
                match Nchan::start_secure(clients, &identity) {
                    Ok(server) => {
                        server.version().iter().for_each(|version| report.version(version));
                        idle("Nchan", &server, clients, pause, report);
                    }
                    Err(why) => report.leave_out("Nchan", &why),
                }
            }
        }
    }
}

fn proxy(database: &Database<'_>, identity: &Identity, scale: Scale) -> Proxy {
    let url = database.cluster().url(database.name(), &database.proxy_role());
    let (certificate, key) = identity.paths();
    let heartbeat = format!("{}s", scale.seconds);
    let port = tidings_tests::cluster::free_port();
    Proxy::start_at(port, &url, &["--tls-cert", certificate, "--tls-key", key, "--heartbeat", &heartbeat])
}

fn idle(who: &str, server: &dyn Server, clients: usize, pause: Duration, report: &mut Report) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("tokio");
    // The first client pays for what all clients share. It waits until the server is ready.
    let mut first = None;
    until("a stream is open", || {
        first = runtime.block_on(enter(server.address(), server.path("first"))).ok();
        first.is_some()
    });
    let before = resident(server);
    let topics = names("idle", clients / 10 + 1);
    let crowd = open(&runtime, server, (0..clients).map(|i| server.path(&topics[i / 10])).collect());
    // After two rounds of heartbeats, memory that connecting took has been returned, if it ever is.
    std::thread::sleep(pause * 2);
    let used = (resident(server) - before) / clients as f64 / 1024.0;
    report.compare(
        format!("{clients} idle clients, HTTP/2 and TLS: resident memory of each"),
        who,
        used,
        "KiB",
        Target::None,
    );
    drop((first, crowd));
}

/// A client's connection, which ends with the runtime.
type Client = SendRequest<Bytes>;

fn open(runtime: &Runtime, server: &dyn Server, paths: Vec<String>) -> Vec<Client> {
    let address = server.address();
    runtime.block_on(async move {
        let (mut entering, mut clients) = (JoinSet::new(), Vec::with_capacity(paths.len()));
        for path in paths {
            if entering.len() == AT_ONCE {
                clients.extend(entering.join_next().await);
            }
            entering.spawn(enter(address, path));
        }
        clients.extend(entering.join_all().await.into_iter().map(Ok));
        clients.into_iter().map(|client| client.expect("a client").expect("a stream")).collect()
    })
}

/// Opens a stream, which a task reads.
async fn enter(address: SocketAddr, path: String) -> Result<Client, String> {
    let socket = TcpStream::connect(address).await.map_err(said)?;
    let name = ServerName::try_from("localhost").expect("a name");
    let socket = connector().connect(name, socket).await.map_err(said)?;
    let (requests, connection) = h2::client::handshake(socket).await.map_err(said)?;
    tokio::spawn(async move { _ = connection.await });
    let request = http::Request::get(format!("https://localhost{path}")).header("accept", "text/event-stream");
    let request = request.body(()).expect("a request");
    let mut requests = requests.ready().await.map_err(said)?;
    let (response, _) = requests.send_request(request, true).map_err(said)?;
    let response = response.await.map_err(said)?;
    if response.status() != 200 {
        return Err(format!("status {}", response.status()));
    }
    tokio::spawn(read(response.into_body()));
    Ok(requests)
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

async fn read(mut body: RecvStream) {
    while let Some(Ok(bytes)) = body.data().await {
        _ = body.flow_control().release_capacity(bytes.len());
    }
}

fn connector() -> TlsConnector {
    static CONNECTOR: std::sync::OnceLock<TlsConnector> = std::sync::OnceLock::new();
    let make = || {
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let config = config
            .expect("protocol versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Trusting(provider)));
        let mut config = config.with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsConnector::from(Arc::new(config))
    };
    CONNECTOR.get_or_init(make).clone()
}

/// Takes any certificate: the servers are our own.
#[derive(Debug)]
struct Trusting(Arc<CryptoProvider>);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
