//! A clock that is wrong: libfaketime shows the server a time other than the real one.

use std::fs;
use std::path::{Path, PathBuf};

use crate::process::fresh_path;

/// Where Debian puts libfaketime. A process of Postgres has one thread.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// The clock of a server that is started with this environment.
#[derive(Debug)]
pub struct Clock {
    file: PathBuf,
}

impl Clock {
    /// Whether clocks can be changed on this machine.
    pub fn can_jump() -> bool {
        Path::new(FAKETIME).exists()
    }

    /// A clock that differs from the real one by this many seconds.
    pub fn at(offset: i32) -> Self {
        let clock = Self { file: fresh_path("clock") };
        clock.set(offset);
        clock
    }

    /// The environment of a server that uses this clock. Elapsed time stays real.
    pub fn environment(&self) -> Vec<(String, String)> {
        let file = self.file.display().to_string();
        [
            ("LD_PRELOAD", FAKETIME),
            ("FAKETIME_TIMESTAMP_FILE", &file),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// Sets the clock to differ from the real one by this many seconds.
    pub fn set(&self, offset: i32) {
        // Replaced in one step, because a process that reads half of the file would see another time.
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{offset:+}")).expect("write the clock's file");
        fs::rename(new, &self.file).expect("put the clock");
    }
}
