//! A server's certificate and key, signed by itself.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::process::fresh_path;

/// The certificate and the key of `localhost`.
#[derive(Debug)]
pub struct Identity {
    /// The file of the certificate.
    pub certificate: PathBuf,
    /// The file of the key.
    pub key: PathBuf,
}

impl Identity {
    /// Makes a new certificate with its key.
    pub fn create() -> Self {
        let (certificate, key) = (fresh_path("certificate.pem"), fresh_path("key.pem"));
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
        command.args(["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]);
        command.arg("-out").arg(&certificate).arg("-keyout").arg(&key);
        let output = command.output().expect("run openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { certificate, key }
    }

    /// The paths of both files as text.
    pub fn paths(&self) -> (&str, &str) {
        (self.certificate.to_str().expect("a path"), self.key.to_str().expect("a path"))
    }

    /// Overwrites the files of another one.
    pub fn replace(&self, other: &Self) {
        fs::copy(&self.certificate, &other.certificate).expect("copy the certificate");
        fs::copy(&self.key, &other.key).expect("copy the key");
    }
}
