//! The keys in use. They are read again when their file changes, or fetched again from their URL; if the new ones are
//! not usable, the old ones stay in use.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tokio::time::sleep_until;

use crate::access::key_file::{Key, KeyError, KeySet, Source, parse_set};
use crate::access::key_url::{KeyUrl, KeyUrlError};
use crate::metrics::Metrics;

/// Where the keys come from.
#[derive(Debug)]
enum Origin {
    File(Source),
    Url(Box<KeyUrl>),
}

/// The keys in use, and what a token must contain in addition to a signature by one of them.
pub struct Keys {
    origin: Origin,
    /// A token must be for one of these, unless there are none.
    pub audience: Vec<String>,
    /// A token must be by one of these, unless there are none.
    pub issuer: Vec<String>,
    current: RwLock<Arc<Vec<Key>>>,
    last: Mutex<Reading>,
}

/// The result of the last reading of the keys.
#[derive(Default)]
struct Reading {
    /// The file's content, if it could be read. Its modification time is not enough, because a file may be replaced by
    /// one with the same time.
    bytes: Option<Vec<u8>>,
    /// Why its keys could not be used.
    error: Option<String>,
}

/// Why fetched keys are not used.
enum Refused {
    Url(KeyUrlError),
    Keys(KeyError),
}

impl From<KeyUrlError> for Refused {
    fn from(error: KeyUrlError) -> Self {
        Self::Url(error)
    }
}

impl Keys {
    /// Reads the keys. A token must be for one of `audience` and by one of `issuer`, where these are not empty.
    pub fn load(source: Source, audience: Vec<String>, issuer: Vec<String>) -> Result<Self, KeyError> {
        let keys = Self::of(Origin::File(source), audience, issuer);
        keys.reload()?;
        Ok(keys)
    }

    /// The keys at a URL. There are none until they have been fetched.
    pub fn at(url: KeyUrl, audience: Vec<String>, issuer: Vec<String>) -> Self {
        Self::of(Origin::Url(Box::new(url)), audience, issuer)
    }

    fn of(origin: Origin, audience: Vec<String>, issuer: Vec<String>) -> Self {
        Self { origin, audience, issuer, current: RwLock::default(), last: Mutex::default() }
    }

    /// Fetches the keys whenever they grow old, forever. Keys of a file need nothing of that.
    pub async fn keep_fresh(&self, metrics: &Metrics) -> Infallible {
        let Origin::Url(url) = &self.origin else { return pending().await };
        loop {
            sleep_until(url.due()).await;
            self.fetch(metrics).await;
        }
    }

    /// Fetches the keys because a token names an unknown one, unless they were fetched just now.
    pub async fn fetch(&self, metrics: &Metrics) {
        let Origin::Url(url) = &self.origin else { return };
        let take = |bytes: &[u8]| {
            let set = parse_set(&url.name, bytes, false).map_err(Refused::Keys)?;
            self.last.lock().error = None;
            if self.last.lock().bytes.replace(bytes.to_vec()).is_none_or(|known| known != bytes) {
                tracing::info!(keys = set.keys.len(), "keys for tokens fetched");
                self.put(set);
            }
            Ok(())
        };
        let error = match url.fetch(take).await {
            None => return,
            Some(Ok(())) => return metrics.keys_fetched.add(1),
            Some(Err(Refused::Keys(error))) => error,
            Some(Err(Refused::Url(error))) => KeyError::Url { origin: url.name.clone(), error },
        };
        metrics.keys_not_fetched.add(1);
        let text = error.to_string();
        // Each error is logged once, until there is another one.
        if self.last.lock().error.replace(text.clone()).as_ref() != Some(&text) {
            tracing::error!(%error, "keys for tokens can't be fetched: the old ones, if any, stay in use");
        }
    }

    /// Whether there are no keys, because they could not be fetched yet.
    pub fn is_empty(&self) -> bool {
        self.current.read().is_empty()
    }

    fn put(&self, set: KeySet) {
        for skipped in &set.skipped {
            tracing::warn!("skipped a key for tokens: {skipped}");
        }
        *self.current.write() = Arc::new(set.keys);
    }

    /// Reads the keys again. On an error the old ones stay in use. Those of a URL stay as they are.
    pub fn reload(&self) -> Result<(), KeyError> {
        let Origin::File(source) = &self.origin else { return Ok(()) };
        let read = source.read();
        let mut last = self.last.lock();
        last.bytes = read.as_ref().ok().cloned();
        match read.and_then(|bytes| source.parse(&bytes)) {
            Ok(set) => {
                self.put(set);
                last.error = None;
                Ok(())
            }
            Err(error) => {
                last.error = Some(error.to_string());
                Err(error)
            }
        }
    }

    /// Reads the keys again if the content of the file has changed. An error is logged once, until there is another
    /// one.
    pub fn refresh(&self) {
        let Origin::File(source) = &self.origin else { return };
        let read = source.read();
        let known = {
            let last = self.last.lock();
            match read {
                Ok(bytes) if last.bytes.as_ref() == Some(&bytes) => return,
                Err(error) if last.error.as_ref() == Some(&error.to_string()) => return,
                _ => last.error.clone(),
            }
        };
        match self.reload() {
            Ok(()) => tracing::info!("keys read again"),
            Err(error) if known.as_ref() == Some(&error.to_string()) => {}
            Err(error) => tracing::error!(%error, "the new keys are not usable: the old ones stay in use"),
        }
    }

    /// The keys as they are now.
    pub fn current(&self) -> Arc<Vec<Key>> {
        self.current.read().clone()
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("origin", &self.origin).finish_non_exhaustive()
    }
}
