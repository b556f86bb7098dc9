//! The Debian packages on a machine with nothing but Debian: docs/install.md to the letter. By `make test-packages`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tidings_tests::debian::{Machine, with_base};
use tidings_tests::namespaces::{Namespaces, say_skipped};
use tidings_tests::packages::{self, commands, named, run};
use tidings_tests::process::fresh_path;
use tidings_tests::release::Release;
use tidings_tests::until;

/// The major version of Debian's own Postgres that docs/install.md is about.
const MAJOR: u32 = 15;

/// A package that docs/install.md installs besides ours.
const OTHERS: [&str; 1] = ["curl"];

/// Whether this test can run here; says so if not.
fn can_run(also: Option<&str>) -> bool {
    let pg_config = std::env::var("PG_CONFIG").unwrap_or_default();
    let is_other = !pg_config.is_empty() && !pg_config.contains(&format!("/{MAJOR}/"));
    let other = is_other.then_some("the packages of this Postgres need another Debian");
    let obstacle = Namespaces::obstacle().or(other).or(also);
    obstacle.inspect(|obstacle| say_skipped("packages on a clean Debian", obstacle)).is_none()
}

/// Our two packages. They are made once.
fn ours() -> [PathBuf; 2] {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(packages::make);
    ["postgresql-", "tidings-proxy_"].map(|word| named(folder, word))
}

/// The same package with an earlier version number.
fn earlier(package: &Path) -> PathBuf {
    let (tree, out) = (fresh_path("tree"), fresh_path("earlier"));
    fs::create_dir_all(&out).expect("create a folder");
    run(Command::new("dpkg-deb").arg("-R").arg(package).arg(&tree));
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control).expect("read the control file");
    let lines = text.lines().map(|line| match line.strip_prefix("Version: ") {
        Some(version) => format!("Version: {version}~earlier\n"),
        None => format!("{line}\n"),
    });
    fs::write(&control, lines.collect::<String>()).expect("write the control file");
    run(Command::new("dpkg-deb").args(["--root-owner-group", "-Znone", "-b"]).arg(&tree).arg(&out));
    let file = fs::read_dir(&out).expect("the folder").flatten().next().expect("a package");
    file.path()
}

/// Writes a row.
#[track_caller]
fn write(machine: &Machine, title: &str) {
    let insert = format!("INSERT INTO board_items (board_id, title) VALUES (5, '{title}')");
    machine.run(&format!("su postgres -c 'psql -qX app' <<< \"{insert}\""));
}

#[track_caller]
fn wait_ready(machine: &Machine) {
    until("the proxy is ready", || machine.try_run("curl -fs http://127.0.0.1:8080/readyz").0);
}

/// A subscriber that keeps its stream, as a file grows.
struct Subscriber<'m> {
    machine: &'m Machine,
    file: &'static str,
}

impl<'m> Subscriber<'m> {
    /// Runs the command of docs/install.md in the background.
    #[track_caller]
    fn start(machine: &'m Machine, file: &'static str) -> Self {
        machine.run(&format!("setsid {} > {file} 2>&1 < /dev/null &", commands("stream")));
        Self { machine, file }
    }

    fn text(&self) -> String {
        fs::read_to_string(self.machine.path(self.file.trim_start_matches('/'))).unwrap_or_default()
    }

    /// Waits for the event of a row with this title.
    #[track_caller]
    fn receives(&self, title: &str) {
        until(&format!("the stream has {title:?}"), || self.text().contains(&format!("\"title\":\"{title}\"}}")));
    }
}

/// Whether the server has mapped the library that is installed.
fn has_new_library(machine: &Machine) -> bool {
    let maps = "cat /proc/$(head -1 /var/lib/postgresql/15/main/postmaster.pid)/maps";
    machine.run(maps).lines().any(|line| line.ends_with("/lib/tidings.so"))
}

#[test]
fn five_lines_of_the_documentation_lead_to_a_stream_which_an_upgrade_keeps_and_a_removal_ends() {
    if !can_run(None) {
        return;
    }
    let new = ours();
    let old = new.each_ref().map(|package| earlier(package));
    let machine = Machine::start(&[&old[0], &old[1]], &OTHERS);
    let before = machine.files();
    assert_eq!(commands("five lines").lines().count(), 5);
    let said = machine.run(&commands("five lines"));
    assert!(said.contains("CREATE EXTENSION tidings;") && said.contains("set TIDINGS_DATABASE_URL"), "{said}");
    machine.run(&commands("table"));
    wait_ready(&machine);
    let check = machine.run(&commands("check"));
    assert!(check.contains("✓ event") && !check.contains('✗'), "{check}");
    let stream = Subscriber::start(&machine, "/root/stream");
    stream.receives("hello");
    // The manual, and the completions.
    machine.run("test -s /usr/share/man/man8/tidings-proxy.8.gz && bash -n /usr/share/bash-completion/completions/tidings-proxy");
    assert_eq!(machine.run("stat -c %a-%U /etc/tidings-proxy.conf").trim(), "600-root");

    // The upgrade replaces the files. The server has the old library until it is restarted.
    machine.run("rm /root/*.deb");
    for package in &new {
        fs::copy(package, machine.path("root").join(package.file_name().expect("a file"))).expect("copy a package");
    }
    let said = machine.run("apt install ./postgresql-15-tidings_*.deb ./tidings-proxy_*.deb");
    assert!(said.contains("ALTER EXTENSION tidings UPDATE"), "{said}");
    assert!(!has_new_library(&machine));
    write(&machine, "before the restart");
    stream.receives("before the restart");
    machine.run("service postgresql restart");
    assert!(has_new_library(&machine));
    write(&machine, "after the restart");
    stream.receives("after the restart");
    machine.run("systemctl restart tidings-proxy");
    wait_ready(&machine);
    let check = machine.run(&commands("check"));
    assert!(check.contains("✓ event"), "{check}");

    // A removal keeps the configuration, and warns of a server that would not start.
    let said = machine.run("apt remove postgresql-15-tidings tidings-proxy");
    assert!(said.contains("/etc/postgresql/15/main/conf.d/tidings.conf") && said.contains("does not start"), "{said}");
    assert!(machine.path("etc/tidings-proxy.conf").is_file() && !machine.path("usr/bin/tidings-proxy").exists());
    machine.run("apt install ./postgresql-15-tidings_*.deb ./tidings-proxy_*.deb");
    // In the right order, nothing is left.
    machine.run(&commands("removal"));
    let left: Vec<_> = machine
        .files()
        .into_iter()
        .filter(|file| {
            let path = file.to_string_lossy();
            path.contains("tidings") && !path.starts_with("/root/") && !before.contains(file)
        })
        .collect();
    assert!(left.is_empty(), "left after the purge: {left:#?}");
    let rows = machine.run("su postgres -c 'psql -qXAt app' <<< 'SELECT count(*) FROM board_items'");
    assert_eq!(rows.lines().last(), Some("3"), "the tables are not ours");
}

#[test]
fn tests_that_run_at_the_same_time_use_the_root_of_all_machines_in_turn() {
    if !can_run(None) {
        return;
    }
    let users = AtomicUsize::new(0);
    let use_it = |_: &Path| {
        assert_eq!(users.fetch_add(1, Ordering::SeqCst), 0, "somebody else uses it");
        // Long enough for the other to come.
        thread::sleep(Duration::from_millis(200));
        users.fetch_sub(1, Ordering::SeqCst);
    };
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| with_base(&[], &OTHERS, use_it));
        }
    });
}

#[test]
fn packages_replace_an_installation_of_the_last_release_and_its_clients_miss_nothing() {
    let release = Release::last(MAJOR);
    let Some(release) = release.filter(|_| can_run(None)) else {
        can_run(Some("the last release is not in this clone's history"));
        return;
    };
    let new = ours();
    let machine = Machine::start(&[&new[0], &new[1]], &["postgresql-15", "curl"]);
    // What `make install` and the README of that release did.
    machine.run("apt install postgresql-15 curl");
    let put = |from: &Path, to: &str| fs::copy(from, machine.path(to)).expect("install a file of the release");
    put(&release.library, "usr/lib/postgresql/15/lib/tidings.so");
    let share = "usr/share/postgresql/15/extension";
    put(&release.source.join("sql/tidings.control"), &format!("{share}/tidings.control"));
    let scripts = fs::read_dir(release.source.join("sql/extension")).expect("the scripts").flatten();
    let mut scripts: Vec<PathBuf> = scripts.map(|entry| entry.path()).collect();
    scripts.sort();
    let sql: String = scripts.iter().map(|script| fs::read_to_string(script).expect("a script")).collect();
    fs::write(machine.path(&format!("{share}/tidings--{}.sql", release.version)), sql).expect("write the script");
    put(&release.proxy, "usr/local/bin/tidings-proxy");
    let lines = commands("five lines");
    let lines: Vec<&str> = lines.lines().collect();
    machine.run(&lines[1..4].join("\n").replace(">> /etc/tidings-proxy.conf", "> /etc/old.conf"));
    machine.run(
        "set -a; . /etc/old.conf; setsid tidings-proxy > /var/log/unit.log 2>&1 < /dev/null & echo $! > /run/unit.pid",
    );
    machine.run(&commands("table"));
    wait_ready(&machine);
    let old = Subscriber::start(&machine, "/root/old");
    old.receives("hello");

    machine.run("apt install ./postgresql-15-tidings_*.deb ./tidings-proxy_*.deb");
    write(&machine, "the new files are there");
    old.receives("the new files are there");
    machine.run("service postgresql restart");
    write(&machine, "the library is new");
    old.receives("the library is new");
    machine.run("su postgres -c 'psql -qX app' <<< 'ALTER EXTENSION tidings UPDATE'");
    write(&machine, "the SQL is new");
    old.receives("the SQL is new");
    // The proxy last: with the package's unit and configuration, at the same address.
    machine.run(
        "systemctl stop tidings-proxy; rm /usr/local/bin/tidings-proxy; cat /etc/old.conf >> /etc/tidings-proxy.conf",
    );
    machine.run("systemctl enable --now tidings-proxy");
    wait_ready(&machine);
    let new = Subscriber::start(&machine, "/root/new");
    for title in ["hello", "the new files are there", "the library is new", "the SQL is new"] {
        new.receives(title);
    }
    let check = machine.run(&commands("check"));
    assert!(check.contains("✓ event") && !check.contains('✗'), "{check}");
}
