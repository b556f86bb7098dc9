//! Child processes that never outlive their owner, and what `/proc` says about them.
//!
//! Dropping a [`Process`] ends it and waits for its end. If this process itself dies in any way, a small shell process
//! (the janitor) sees its standard input close, ends the remaining processes by their ids, and removes the temporary
//! folder.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal;
pub use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::wait::{eventually, until};

/// Waits for the end of its owner; then ends every process that is still recorded, with the signal that was recorded
/// for it, and removes the folder. The limit keeps it from waiting for a zombie that nobody reaps.
const JANITOR: &str = r#"
cat >/dev/null
for f in "$1"/pids/*; do kill -s "$(cat "$f")" "${f##*/}"; kill -s CONT "${f##*/}"; done 2>/dev/null
for f in "$1"/pids/*; do
  n=0; while [ $n -lt 100 ] && kill -0 "${f##*/}" 2>/dev/null; do sleep 0.05; n=$((n + 1)); done
done
rm -rf "$1"
"#;

/// The temporary folder of this process. It is removed when the process ends.
pub fn workdir() -> &'static Path {
    static WORKDIR: OnceLock<(PathBuf, Child)> = OnceLock::new();
    let (dir, _) = WORKDIR.get_or_init(|| {
        // If a whole machine or container was stopped, its janitor was, too: a process with the same id may have left a
        // folder, with ids of processes that are others by now.
        let mut names = (0..).map(|n| std::env::temp_dir().join(format!("tidings-{}-{n}", std::process::id())));
        let is_new = |dir: &PathBuf| match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            result => result.map(|()| true).expect("create the temporary folder"),
        };
        let dir = names.find(is_new).expect("a number that is free");
        fs::create_dir(dir.join("pids")).expect("create the folder of process ids");
        // The server's account must be able to reach its folder in here.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("open the temporary folder");
        let janitor = Command::new("sh")
            .args(["-c", JANITOR, "tidings-janitor"])
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0) // Ctrl-C is not for it
            .spawn()
            .expect("start the janitor");
        (dir, janitor)
    });
    dir
}

/// A fresh path in the temporary folder, `<word>-<number>`.
pub fn fresh_path(word: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    workdir().join(format!("{word}-{}", NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// A child process that is ended when the value is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    farewell: Signal,
    record: PathBuf,
}

impl Process {
    /// Starts `command` outside of the terminal's process group; `farewell` is the signal that ends it when the value
    /// is dropped.
    pub fn spawn(command: &mut Command, farewell: Signal) -> io::Result<Self> {
        let pids = workdir().join("pids");
        let child = command.process_group(0).spawn()?;
        let record = pids.join(child.id().to_string());
        fs::write(&record, farewell.as_str().trim_start_matches("SIG"))?;
        Ok(Self { child, farewell, record })
    }

    /// Starts `command` in the same way. Its output is appended to the file `log`, and a command that does not start
    /// fails the test.
    #[track_caller]
    pub fn start(command: &mut Command, farewell: Signal, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("open the log of a process");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("share the log")).stderr(file);
        Self::spawn(command, farewell).unwrap_or_else(|error| panic!("start {command:?}: {error}"))
    }

    /// Waits until `condition` gives a value, and fails with the end of `log` if the process ends before.
    #[track_caller]
    pub fn wait_until_up<T>(&self, what: &str, log: &Path, mut condition: impl FnMut() -> Option<T>) -> T {
        eventually(what, || {
            assert!(is_running(self.pid()), "it has ended before {what}:\n{}", tail(log));
            condition()
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// Its standard output, once, if it was made a pipe.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().expect("wait for a child");
        if status.is_some() {
            let _ = fs::remove_file(&self.record);
        }
        status
    }

    /// Sends it a signal and waits for its end.
    #[track_caller]
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.wait()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        eventually("the process has ended", || self.exited())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.signal(self.farewell);
            self.signal(Signal::SIGCONT);
            let _ = self.child.wait();
        }
        let _ = fs::remove_file(&self.record);
    }
}

/// Sends `signal` to process `pid`. A process that is gone already is not an error.
pub fn send(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).expect("a process id");
    let _ = signal::kill(Pid::from_raw(pid), signal);
}

/// Ends process `pid` by SIGKILL, and waits until it is gone.
#[track_caller]
pub fn kill(pid: u32) {
    send(pid, Signal::SIGKILL);
    until("the killed process is gone", || !is_running(pid));
}

/// The last lines of a file.
pub fn tail(path: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].iter().flat_map(|line| [line, "\n"]).collect()
}

/// Whether process `pid` runs: neither gone nor a zombie that has not been reaped.
pub fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Whether process `pid` has been stopped by a signal.
pub fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

/// The children of process `pid`, as `/proc` lists them.
pub fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

/// A memory figure of `/proc/<pid>/status` in bytes, such as `RssAnon` or `VmHWM`; `None` once the process is gone.
pub fn memory(pid: u32, figure: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(figure)?.strip_prefix(':'))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// The number of files that process `pid` has open; `None` once it is gone.
pub fn open_files(pid: u32) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

/// The CPU time of process `pid` so far, in seconds; `None` once it is gone.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    // Linux counts in ticks of 10 ms on every architecture that Postgres runs on.
    Some((user + system) / 100.0)
}

/// The CPU time of the main thread of process `pid` so far, in nanoseconds: for costs far below the 10 ms in which
/// [`cpu_seconds`] counts.
pub fn cpu_nanoseconds(pid: u32) -> Option<u64> {
    fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?.split(' ').next()?.parse().ok()
}

/// Watches a memory figure of some processes from a thread and keeps the greatest value of each.
#[derive(Debug)]
pub struct MemoryWatch {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: std::thread::JoinHandle<Vec<u64>>,
}

impl MemoryWatch {
    /// Starts to watch the anonymous memory (`RssAnon`, which leaves out shared buffers) of `pids`.
    pub fn start(pids: &[u32]) -> Self {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (pids, stopped) = (pids.to_vec(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut peaks = vec![0; pids.len()];
            loop {
                for (peak, pid) in peaks.iter_mut().zip(&pids) {
                    *peak = memory(*pid, "RssAnon").unwrap_or(0).max(*peak);
                }
                if stopped.load(Ordering::Relaxed) {
                    return peaks;
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
        Self { stop, thread }
    }

    /// Ends the watch; returns the peaks in bytes, in the order of the process ids.
    pub fn finish(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the memory watch")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_process_is_gone_even_if_it_was_stopped() {
        let process = Process::spawn(Command::new("sleep").arg("1000"), Signal::SIGKILL).unwrap();
        let pid = process.pid();
        process.signal(Signal::SIGSTOP);
        assert!(memory(pid, "VmHWM").is_some() && is_running(pid));
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
