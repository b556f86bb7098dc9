//! A Debian machine with nothing in it: a root folder that debootstrap makes, in which commands run as root, with
//! processes, mounts and a network of their own. It has no systemd; the script below stands in for `systemctl`.
//!
//! The root and all Debian packages that it needs are downloaded once, into [`HOME`].

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::Uid;

use crate::packages::run;
use crate::process::{Process, Signal, children, fresh_path, tail};

/// Where the root is kept that machines are copies of: not below `target`, because only root can remove it.
pub const HOME: &str = "/var/cache/tidings-test";

/// Where the packages come from, unless `DEBIAN_MIRROR` says otherwise.
const MIRROR: &str = "http://deb.debian.org/debian";

/// The environment of every command.
const ENVIRONMENT: [&str; 3] = [
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "DEBIAN_FRONTEND=noninteractive",
];

/// Becomes the first process of a machine: mounts what programs expect, gives it a loopback, and then only waits for
/// the ends of processes, its own and those that it inherits.
const INIT: &str = r#"
set -e
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
ip link set lo up
exec chroot "$1" bash -c 'while :; do sleep 1000 & wait $!; done'
"#;

/// Starts what a unit's ExecStart says, with its EnvironmentFile and an account that owns nothing.
const SYSTEMCTL: &str = r#"#!/bin/bash
set -eu
name=${@: -1}
unit=/lib/systemd/system/$name.service
setting() { sed -n "s/^$1=//p" "$unit"; }
case "$1" in
  enable | start)
    set -a; . "$(setting EnvironmentFile)"; set +a
    setsid setpriv --reuid 61184 --regid 61184 --clear-groups $(setting ExecStart) > /var/log/unit.log 2>&1 < /dev/null &
    echo $! > /run/unit.pid ;;
  disable | stop) kill "$(cat /run/unit.pid)"; while kill -0 "$(cat /run/unit.pid)" 2> /dev/null; do sleep 0.05; done ;;
  restart) "$0" stop "$2"; "$0" start "$2" ;;
esac
"#;

/// A running machine. Dropping it ends all of its processes.
#[derive(Debug)]
pub struct Machine {
    root: PathBuf,
    init: Process,
    /// The first process, seen from outside.
    pid: u32,
}

impl Machine {
    /// Why there can be no machine here, if so.
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

    /// Starts a machine on which `packages` can be installed without a network, and copies them into its `/root`.
    #[track_caller]
    pub fn start(packages: &[&Path], others: &[&str]) -> Self {
        let root = fresh_path("machine");
        run(Command::new("cp").args(["-a", "--reflink=auto"]).arg(base(packages, others)).arg(&root));
        for package in packages {
            fs::copy(package, root.join("root").join(package.file_name().expect("a file"))).expect("copy a package");
        }
        let systemctl = root.join("usr/local/bin/systemctl");
        fs::write(&systemctl, SYSTEMCTL).expect("write systemctl");
        fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).expect("let systemctl run");
        let log = fresh_path("machine.log");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]);
        let init = Process::start(command.args(["sh", "-c", INIT, "init"]).arg(&root), Signal::SIGKILL, &log);
        let pid = init.wait_until_up("the machine runs", &log, || {
            let pid = *children(init.pid()).first()?;
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            (name.trim() == "bash").then_some(pid)
        });
        Self { root, init, pid }
    }

    /// Runs commands of bash in it, in `/root`, each of which must succeed; returns all that they print.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        let (status, text) = self.try_run(script);
        assert!(status, "{script}\n{text}{}", tail(&self.path("var/log/unit.log")));
        text
    }

    /// The same for commands that may fail: whether they succeeded, and what they printed.
    #[track_caller]
    pub fn try_run(&self, script: &str) -> (bool, String) {
        let log = fresh_path("output");
        let file = File::create(&log).expect("create a log");
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.pid.to_string(),
            "--mount",
            "--net",
            "--pid",
            "--ipc",
            "--uts",
            "--root",
            "--wd",
        ]);
        command.args(["env", "-i"]).args(ENVIRONMENT).args(["bash", "-euo", "pipefail", "-c"]);
        command.arg(format!("cd /root\n{script}"));
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("share the log")).stderr(file);
        let status = command.status().expect("run nsenter");
        (status.success(), fs::read_to_string(&log).expect("read the log"))
    }

    /// A file of it, from outside.
    pub fn path(&self, file: &str) -> PathBuf {
        self.root.join(file)
    }

    /// Every file, by its path.
    pub fn files(&self) -> Vec<PathBuf> {
        // Only this file system: not what is mounted.
        let list = run(Command::new("find").arg(&self.root).args(["-xdev", "-type", "f", "-printf", "/%P\\n"]));
        list.lines().map(PathBuf::from).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.init.end(Signal::SIGKILL);
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// The root that machines are copies of, with the Debian packages that `packages` depend on and `others` in its cache.
/// It is made again if its lists have become so old that the mirror has other packages.
fn base(packages: &[&Path], others: &[&str]) -> PathBuf {
    let release = fs::read_to_string("/etc/os-release").expect("what Debian this is");
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).expect("a release of Debian");
    let root = Path::new(HOME).join(suite);
    if !root.exists() {
        create(suite, &root);
    }
    if !download(&root, packages, others) {
        run(Command::new("rm").arg("-rf").arg(&root));
        create(suite, &root);
        assert!(download(&root, packages, others), "the Debian packages can't be downloaded");
    }
    root
}

fn create(suite: &str, root: &Path) {
    let unfinished = root.with_extension("unfinished");
    run(Command::new("rm").arg("-rf").arg(&unfinished));
    fs::create_dir_all(&unfinished).expect("create a folder");
    let mirror = std::env::var("DEBIAN_MIRROR").unwrap_or_else(|_| MIRROR.to_owned());
    run(Command::new("debootstrap").args(["--variant=minbase", suite]).arg(&unfinished).arg(&mirror));
    // Nobody is there to answer apt's question, and what it downloads is needed again.
    let settings = "APT::Get::Assume-Yes \"true\";\nBinary::apt::APT::Keep-Downloaded-Packages \"true\";\n";
    fs::write(unfinished.join("etc/apt/apt.conf.d/test"), settings).expect("write apt's settings");
    // The installer of a real machine writes this.
    fs::write(unfinished.join("etc/hosts"), "127.0.0.1 localhost\n::1 localhost\n").expect("write the hosts");
    fs::rename(&unfinished, root).expect("finish the root");
}

/// Downloads what is not in the cache yet. False if that fails.
fn download(root: &Path, packages: &[&Path], others: &[&str]) -> bool {
    let mut command = Command::new("chroot");
    command.arg(root).arg("env").args(ENVIRONMENT).args(["apt-get", "install", "-q", "--download-only"]);
    for package in packages {
        let name = package.file_name().expect("a file");
        fs::copy(package, root.join("tmp").join(name)).expect("copy a package");
        command.arg(Path::new("/tmp").join(name));
    }
    let output = command.args(others).output().expect("run apt-get");
    for package in packages {
        let _ = fs::remove_file(root.join("tmp").join(package.file_name().expect("a file")));
    }
    output.status.success()
}
