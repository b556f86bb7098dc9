//! A Debian machine with nothing in it: a root folder that debootstrap makes, in which commands run as root, with
//! processes, mounts and a network of their own. It has no systemd; the script below stands in for `systemctl`.
//!
//! The root and all Debian packages that it needs are downloaded once, into [`HOME`].

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::namespaces::{Namespaces, Network, WAIT};
use crate::packages::run;
use crate::process::{fresh_path, tail};

/// Where the root is kept that machines are copies of: not below `target`, because only root can remove it.
pub const HOME: &str = "/var/cache/tidings-test";

/// The environment of every command.
const ENVIRONMENT: [&str; 3] = [
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "DEBIAN_FRONTEND=noninteractive",
];

/// Mounts what programs expect, gives the machine a loopback, and waits.
const INIT: &str = r#"
set -e
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
ip link set lo up
exec chroot "$1" "#;

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
    namespaces: Namespaces,
}

impl Machine {
    /// Starts a machine on which `packages` can be installed without a network, and copies them into its `/root`.
    #[track_caller]
    pub fn start(packages: &[&Path], others: &[&str]) -> Self {
        let root = fresh_path("machine");
        let copy = |base: &Path| run(Command::new("cp").args(["-a", "--reflink=auto"]).arg(base).arg(&root));
        with_base(packages, others, copy);
        for package in packages {
            fs::copy(package, root.join("root").join(package.file_name().expect("a file"))).expect("copy a package");
        }
        let systemctl = root.join("usr/local/bin/systemctl");
        fs::write(&systemctl, SYSTEMCTL).expect("write systemctl");
        fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).expect("let systemctl run");
        let namespaces = Namespaces::start(Network::Own, &format!("{INIT}{WAIT}"), &root);
        Self { root, namespaces }
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
        let script = format!("cd /root\n{script}");
        let bash = ["bash", "-euo", "pipefail", "-c", &script];
        self.namespaces.run(&["--root", "--wd", "env", "-i"], &[&ENVIRONMENT, &bash[..]].concat())
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
        self.namespaces.end();
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Calls `use_it` with the root that machines are copies of, which has the Debian packages that `packages` depend on and
/// `others` in its cache. Others who test on this machine wait, because apt refuses to run twice, and what is copied
/// must not change under way.
pub fn with_base<T>(packages: &[&Path], others: &[&str], use_it: impl FnOnce(&Path) -> T) -> T {
    fs::create_dir_all(HOME).expect("create the folder of roots");
    let lock = File::create(Path::new(HOME).join("lock")).expect("create the lock");
    lock.lock().expect("wait for the lock");
    use_it(&base(packages, others))
}

fn base(packages: &[&Path], others: &[&str]) -> PathBuf {
    let release = fs::read_to_string("/etc/os-release").expect("what Debian this is");
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).expect("a release of Debian");
    let root = Path::new(HOME).join(suite);
    if !root.exists() {
        create(suite, &root);
    }
    if let Err(first) = download(&root, packages, others) {
        // The lists may name packages that the mirror has replaced since.
        let update = in_root(&root, &["apt-get", "update", "-q"]);
        let second = update.and_then(|()| download(&root, packages, others));
        assert!(second.is_ok(), "the Debian packages can't be downloaded: {first}\nafter an update: {second:?}");
    }
    root
}

fn create(suite: &str, root: &Path) {
    let unfinished = root.with_extension("unfinished");
    run(Command::new("rm").arg("-rf").arg(&unfinished));
    fs::create_dir_all(&unfinished).expect("create a folder");
    // Without this, debootstrap takes the packages from where Debian has them.
    let mirror = std::env::var_os("DEBIAN_MIRROR");
    // What it mounts below the folder is gone when it ends in any way; otherwise nobody could remove the folder.
    let debootstrap = ["--mount", "debootstrap", "--variant=minbase", suite];
    run(Command::new("unshare").args(debootstrap).arg(&unfinished).args(mirror));
    // Nobody is there to answer apt's question, and what it downloads is needed again.
    let settings = "APT::Get::Assume-Yes \"true\";\nBinary::apt::APT::Keep-Downloaded-Packages \"true\";\n";
    fs::write(unfinished.join("etc/apt/apt.conf.d/test"), settings).expect("write apt's settings");
    // The installer of a real machine writes this.
    fs::write(unfinished.join("etc/hosts"), "127.0.0.1 localhost\n::1 localhost\n").expect("write the hosts");
    fs::rename(&unfinished, root).expect("finish the root");
}

/// Downloads what is not in the cache yet.
fn download(root: &Path, packages: &[&Path], others: &[&str]) -> Result<(), String> {
    let mut words: Vec<String> = ["apt-get", "install", "-q", "--download-only"].map(String::from).into();
    let mut copies = Vec::new();
    for package in packages {
        let name = Path::new("tmp").join(package.file_name().expect("a file"));
        fs::copy(package, root.join(&name)).expect("copy a package");
        words.push(Path::new("/").join(&name).display().to_string());
        copies.push(root.join(name));
    }
    words.extend(others.iter().map(|&name| name.to_owned()));
    let result = in_root(root, &words);
    for copy in copies {
        let _ = fs::remove_file(copy);
    }
    result
}

/// Runs a command in the root that machines are copies of. An error has all that it printed.
fn in_root(root: &Path, words: &[impl AsRef<OsStr>]) -> Result<(), String> {
    let mut command = Command::new("chroot");
    // A mirror that fails once is asked again.
    let retries = ["-o", "Acquire::Retries=5"];
    let (program, rest) = words.split_first().expect("a program");
    command.arg(root).arg("env").args(ENVIRONMENT).arg(program).args(retries).args(rest);
    let output = command.output().expect("run chroot");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let failed = || format!("{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    output.status.success().then_some(()).ok_or_else(failed)
}
