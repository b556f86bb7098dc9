//! Certificates and keys in PEM files, for TLS with clients and with Postgres.

use std::path::{Path, PathBuf};

use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Why a certificate or a key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read, or is not PEM.
    #[error("{}: {error}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The reason.
        error: pem::Error,
    },
    /// The file holds no certificate.
    #[error("{} contains no certificate", .0.display())]
    Empty(PathBuf),
    /// The system has no certificate authorities to trust.
    #[error("the system has no certificate authorities: give a file")]
    NoRoots,
    /// Certificate and key don't belong together, or their kind is not supported.
    #[error("certificate and key: {0}")]
    Mismatch(#[from] rustls::Error),
}

fn failed(file: &Path) -> impl FnOnce(pem::Error) -> TlsError {
    let file = file.to_owned();
    |error| TlsError::File { file, error }
}

/// The certificates in a PEM file. A file without any is an error.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(file).and_then(Iterator::collect).map_err(failed(file))?;
    if chain.is_empty() { Err(TlsError::Empty(file.to_owned())) } else { Ok(chain) }
}

/// The private key in a PEM file.
pub fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(file).map_err(failed(file))
}
