//! TLS for clients: a certificate and a key from files, which are read again on demand while streams stay open.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::server::TlsStream;

use crate::certificates::{TlsError, certificates, private_key};
use crate::stream::writer::Connection;

/// What ALPN calls HTTP/2.
const H2: &[u8] = b"h2";

/// Certificate and key in use.
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    acceptor: RwLock<TlsAcceptor>,
}

impl Tls {
    /// Reads both files, in PEM.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let acceptor = RwLock::new(read(certificate, key)?);
        Ok(Self { certificate: certificate.into(), key: key.into(), acceptor })
    }

    /// Reads both again, for new connections. On an error the old ones stay in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        *self.acceptor.write() = read(&self.certificate, &self.key)?;
        Ok(())
    }

    /// Accepts a TLS connection. Also returns whether the client chose HTTP/2.
    pub async fn accept<IO>(&self, stream: IO) -> io::Result<(TlsStream<IO>, bool)>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let acceptor = self.acceptor.read().clone();
        let stream = acceptor.accept(stream).await?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(H2);
        Ok((stream, http2))
    }
}

/// Only the client's task can encrypt.
impl<IO: AsyncRead + AsyncWrite + Unpin> Connection for TlsStream<IO> {}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("certificate", &self.certificate).field("key", &self.key).finish_non_exhaustive()
    }
}

fn read(certificate: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let chain = certificates(certificate)?;
    let secret = private_key(key)?;
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let mut config =
        builder.with_safe_default_protocol_versions()?.with_no_client_auth().with_single_cert(chain, secret)?;
    config.alpn_protocols = vec![H2.into(), b"http/1.1".into()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
