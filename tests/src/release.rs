//! The binaries of an earlier release, which `make released` builds from this repository's history: tests upgrade from
//! them. Without that release in the history (a shallow clone) there are none.

use std::path::{Path, PathBuf};

/// The files of a release.
#[derive(Clone, Debug)]
pub struct Release {
    /// Its version.
    pub version: &'static str,
    /// The proxy.
    pub proxy: PathBuf,
    /// The extension's library.
    pub library: PathBuf,
    /// The repository as it was.
    pub source: PathBuf,
}

impl Release {
    /// The last release, if it was built for this major version of Postgres.
    pub fn last(major: u32) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/released");
        let release = Self {
            version: "0.1.1",
            proxy: root.join("proxy/release/tidings-proxy"),
            library: root.join(format!("pg{major}/release/libtidings.so")),
            source: root.join("source"),
        };
        (release.proxy.is_file() && release.library.is_file()).then_some(release)
    }
}
