//! The folder of a run: what happened when, and all logs.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// The files that a run leaves.
#[derive(Debug)]
pub struct Report {
    dir: PathBuf,
    start: Instant,
    history: Mutex<File>,
}

impl Report {
    /// Opens an empty folder for a seed.
    pub fn open(seed: u64) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../target/chaos/seed-{seed}"));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("create the folder of the run");
        let dir = dir.canonicalize().expect("the folder of the run");
        let history = Mutex::new(File::create(dir.join("history")).expect("create the history"));
        Self { dir, start: Instant::now(), history }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Notes an event of the run, with the time.
    pub fn say(&self, what: impl Display) {
        let line = format!("{:8.3} {what}\n", self.start.elapsed().as_secs_f64());
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.write_all(line.as_bytes()).expect("write the history");
        print!("{line}");
    }

    /// Writes a file.
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.join(name), text).expect("write to the folder of the run");
    }

    /// Copies a log, with the next free number in its name.
    pub fn keep(&self, name: &str, log: &Path) {
        let free = (1..).map(|n| self.dir.join(format!("{name}-{n}.log"))).find(|path| !path.exists());
        let _ = fs::copy(log, free.expect("a free name"));
    }

    /// Everything that has happened.
    pub fn history(&self) -> String {
        fs::read_to_string(self.dir.join("history")).unwrap_or_default()
    }
}
