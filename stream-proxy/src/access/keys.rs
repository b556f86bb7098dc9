//! The keys in use. They are read again when their file changes; if the new ones are not usable, the old ones stay in
//! use.

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::access::key_file::{Key, KeyError, Source};

/// The keys in use, and what a token must contain in addition to a signature by one of them.
pub struct Keys {
    source: Source,
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

impl Keys {
    /// Reads the keys. A token must be for one of `audience` and by one of `issuer`, where these are not empty.
    pub fn load(source: Source, audience: Vec<String>, issuer: Vec<String>) -> Result<Self, KeyError> {
        let keys = Self { source, audience, issuer, current: RwLock::default(), last: Mutex::default() };
        keys.reload()?;
        Ok(keys)
    }

    /// Reads the keys again. On an error the old ones stay in use.
    pub fn reload(&self) -> Result<(), KeyError> {
        let read = self.source.read();
        let mut last = self.last.lock();
        last.bytes = read.as_ref().ok().cloned();
        match read.and_then(|bytes| self.source.parse(&bytes)) {
            Ok(set) => {
                for skipped in &set.skipped {
                    tracing::warn!("skipped a key for tokens: {skipped}");
                }
                *self.current.write() = Arc::new(set.keys);
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
        let read = self.source.read();
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
        f.debug_struct("Keys").field("source", &self.source).finish_non_exhaustive()
    }
}
