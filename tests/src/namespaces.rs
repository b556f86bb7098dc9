//! Processes and mounts of their own for commands that run as root, and with a wish a network of their own. Whatever
//! happens in them, nothing is left when they are dropped: no process, and no mount that keeps a folder from being
//! removed.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::Uid;

use crate::process::{Process, Signal, children, fresh_path};

/// Only waits for the ends of processes: those of its children and those that it inherits.
pub const WAIT: &str = "bash -c 'while :; do sleep 1000 & wait $!; done'";

/// Namespaces, as long as their first process runs.
#[derive(Debug)]
pub struct Namespaces {
    init: Process,
    /// The first process, seen from outside.
    pid: u32,
    own: Vec<&'static str>,
}

/// What is isolated besides processes and mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Commands reach what this machine reaches.
    Shared,
    /// Nothing can be reached from there, and every port is free.
    Own,
}

impl Namespaces {
    /// Why there can be none here, if so.
    pub fn obstacle() -> Option<&'static str> {
        if !Uid::effective().is_root() {
            return Some("only root can have a Debian root, and there is no sudo");
        }
        let isolates = Command::new("unshare").args(["--mount", "--net", "--pid", "--fork", "true"]).status();
        if !isolates.is_ok_and(|status| status.success()) {
            return Some("this kernel or container allows no namespaces");
        }
        let debian = fs::read_to_string("/etc/os-release").unwrap_or_default();
        (!debian.contains("\nID=debian\n")).then_some("binaries of this machine need not run in Debian")
    }

    /// Starts them with a script of sh, which ends with [`WAIT`] and has `folder` as its argument.
    #[track_caller]
    pub fn start(network: Network, script: &str, folder: &Path) -> Self {
        let mut own = vec!["--mount", "--pid", "--ipc", "--uts"];
        if network == Network::Own {
            own.push("--net");
        }
        let log = fresh_path("namespaces.log");
        let mut command = Command::new("unshare");
        command.args(&own).args(["--fork", "--kill-child", "sh", "-c", script, "init"]).arg(folder);
        let init = Process::start(&mut command, Signal::SIGKILL, &log);
        let pid = init.wait_until_up("the first process waits", &log, || {
            let pid = *children(init.pid()).first()?;
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            (name.trim() == "bash").then_some(pid)
        });
        Self { init, pid, own }
    }

    /// Runs a program in them, with `options` of nsenter: whether it succeeded, and what it printed.
    #[track_caller]
    pub fn run(&self, options: &[&str], program: &[&str]) -> (bool, String) {
        let log = fresh_path("output");
        let file = File::create(&log).expect("create a log");
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.pid.to_string()).args(&self.own).args(options).args(program);
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("share the log")).stderr(file);
        let status = command.status().expect("run nsenter");
        (status.success(), fs::read_to_string(&log).expect("read the log"))
    }

    /// Ends everything in them.
    pub fn end(&mut self) {
        self.init.end(Signal::SIGKILL);
    }
}

/// Says why a test is left out.
pub fn say_skipped(what: &str, obstacle: &str) {
    // Directly to standard error, because libtest hides what a test prints.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}: {obstacle}");
}
