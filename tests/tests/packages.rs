//! The Debian packages: what is in them, that they are the same when they are made again, and that it runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tidings_tests::process::fresh_path;

/// Runs a program that must succeed, and returns its output.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes the packages, and returns their folder.
fn packages() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let out = fresh_path("dist");
    run(Command::new(root.join("packaging/build")).arg(&out));
    out
}

/// The package whose name begins with this word.
fn package(folder: &Path, word: &str) -> PathBuf {
    let files = fs::read_dir(folder).expect("the folder").map(|file| file.expect("a file").path());
    let is_wanted = |file: &PathBuf| {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(word) && name.ends_with(".deb")
    };
    files.into_iter().find(is_wanted).unwrap_or_else(|| panic!("no package {word}"))
}

#[test]
fn packages_are_the_same_when_made_again_and_hold_what_runs() {
    let (folder, again) = (packages(), packages());
    let sums = fs::read_to_string(folder.join("SHA256SUMS")).expect("checksums");
    assert_eq!(sums, fs::read_to_string(again.join("SHA256SUMS")).expect("checksums"));
    assert_eq!(sums.lines().count(), 3);
    run(Command::new("sha256sum").arg("--check").arg("SHA256SUMS").current_dir(&folder));

    // Everything belongs to root.
    let (extension, proxy) = (package(&folder, "postgresql-"), package(&folder, "tidings-proxy_"));
    for package in [&extension, &proxy] {
        let list = run(Command::new("dpkg-deb").arg("--contents").arg(package));
        assert!(list.lines().all(|line| line.contains(" root/root ")), "{list}");
    }
    let root = fresh_path("root");
    run(Command::new("dpkg-deb").arg("-x").arg(&extension).arg(&root));
    run(Command::new("dpkg-deb").arg("-x").arg(&proxy).arg(&root));
    let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));

    // The proxy runs, and its configuration has every variable of its help.
    let program = root.join("usr/bin/tidings-proxy");
    let help = run(Command::new(&program).arg("--help"));
    let configuration = text("etc/tidings-proxy.conf");
    for variable in help.split('[').filter_map(|rest| rest.strip_prefix("env: ")?.split(['=', ']']).next()) {
        assert!(configuration.contains(&format!("#{variable}=")), "{variable}");
    }
    assert_eq!(run(Command::new("dpkg-deb").args(["-I"]).arg(&proxy).arg("conffiles")), "/etc/tidings-proxy.conf\n");
    let unit = text("lib/systemd/system/tidings-proxy.service");
    assert!(
        unit.contains("\nEnvironmentFile=/etc/tidings-proxy.conf\n") && unit.contains("\nDynamicUser=yes\n"),
        "{unit}"
    );
    assert!(unit.contains("\nExecStart=/usr/bin/tidings-proxy\n") && !unit.contains("\nLoadCredential"), "{unit}");
    run(Command::new("bash").arg("-n").arg(root.join("usr/share/bash-completion/completions/tidings-proxy")));
    let manual = run(Command::new("gzip").arg("-dc").arg(root.join("usr/share/man/man8/tidings-proxy.8.gz")));
    assert!(manual.contains("database") && manual.contains(".SH OPTIONS"), "{manual}");

    // The extension has the files that this installation has; its scripts are fine for sh, and say what to do.
    let control = run(Command::new("dpkg-deb").arg("-f").arg(&extension).arg("Version"));
    let version = control.trim();
    let depends = run(Command::new("dpkg-deb").arg("-f").arg(&extension).arg("Depends"));
    let major = depends.split("postgresql-").nth(1).and_then(|rest| rest.split(',').next()).expect("a version").trim();
    let share = format!("usr/share/postgresql/{major}/extension");
    assert!(root.join(format!("usr/lib/postgresql/{major}/lib/tidings.so")).is_file());
    assert!(text(&format!("{share}/tidings.control")).contains(&format!("'{version}'")));
    assert!(text(&format!("{share}/tidings--{version}.sql")).contains("CREATE OR REPLACE FUNCTION tidings.check("));
    let scripts = fresh_path("scripts");
    run(Command::new("dpkg-deb").arg("-e").arg(&extension).arg(&scripts));
    let first = run(Command::new("sh").arg(scripts.join("postinst")).args(["configure", ""]));
    assert!(first.contains("shared_preload_libraries") && first.contains("CREATE EXTENSION"), "{first}");
    let later = run(Command::new("sh").arg(scripts.join("postinst")).args(["configure", "0.1.1"]));
    assert!(later.contains("ALTER EXTENSION tidings UPDATE"), "{later}");

    // dpkg installs both, keeps a changed configuration over a new installation and a removal, and purges it.
    let system = fresh_path("system");
    fs::create_dir_all(system.join("var/lib/dpkg/info")).expect("a folder");
    fs::write(system.join("var/lib/dpkg/status"), "").expect("a file");
    let dpkg = |args: &[&str], packages: &[&Path]| {
        let mut command = Command::new("dpkg");
        let options = ["--force-depends", "--force-script-chrootless", "--force-not-root", "--force-confold"];
        run(command.arg(format!("--root={}", system.display())).args(options).args(args).args(packages))
    };
    dpkg(&["-i"], &[&extension, &proxy]);
    let changed = system.join("etc/tidings-proxy.conf");
    fs::write(&changed, "TIDINGS_OPEN=true\n").expect("change the configuration");
    dpkg(&["-i"], &[&proxy]);
    dpkg(&["--remove", "tidings-proxy", &format!("postgresql-{major}-tidings")], &[]);
    assert_eq!(fs::read_to_string(&changed).expect("the configuration"), "TIDINGS_OPEN=true\n");
    dpkg(&["--purge", "tidings-proxy", &format!("postgresql-{major}-tidings")], &[]);
    let left = run(Command::new("find").arg(&system).args(["-type", "f", "-name", "*tidings*"]));
    assert_eq!(left, "", "left after the purge");
}
