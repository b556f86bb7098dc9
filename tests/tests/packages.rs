//! What an installation consists of: the Debian packages, the files of `make install`, and the description for PGXN.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tidings_tests::cluster::Installation;
use tidings_tests::packages::{self, run};
use tidings_tests::process::fresh_path;

#[test]
fn packages_are_the_same_when_made_again_and_hold_what_runs() {
    let (folder, again) = (packages::make(), packages::make());
    let sums = fs::read_to_string(folder.join("SHA256SUMS")).expect("checksums");
    assert_eq!(sums, fs::read_to_string(again.join("SHA256SUMS")).expect("checksums"));
    assert_eq!(sums.lines().count(), 3);
    run(Command::new("sha256sum").arg("--check").arg("SHA256SUMS").current_dir(&folder));

    // Everything belongs to root.
    let (extension, proxy) = (packages::named(&folder, "postgresql-"), packages::named(&folder, "tidings-proxy_"));
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

/// Every file below a folder.
fn files(folder: &Path) -> BTreeSet<String> {
    let list = run(Command::new("find").arg(folder).args(["-type", "f", "-printf", "/%P\\n"]));
    list.lines().map(str::to_owned).collect()
}

#[test]
fn uninstall_removes_what_install_put_there_and_nothing_else() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let destination = fresh_path("destination");
    let place = |verb: &str, prefix: &str| {
        let mut command = Command::new(root.join("packaging/place"));
        run(command.arg(verb).env("DESTDIR", &destination).env("PREFIX", prefix));
    };
    let bin = &Installation::get().bin;
    let of = |flag: &str| run(Command::new(bin.join("pg_config")).arg(flag)).trim().to_owned();
    let (libdir, extension) = (of("--pkglibdir"), format!("{}/extension", of("--sharedir")));
    // Neighbours with similar names.
    let neighbours = [format!("{libdir}/tidings_other.so"), format!("{extension}/tidings_other--1.0.sql")];
    let neighbours = neighbours.into_iter().chain(["/usr/local/share/doc/tidings-proxy-notes/mine".into()]);
    let neighbours: BTreeSet<String> = neighbours.collect();
    for file in &neighbours {
        let path = destination.join(file.trim_start_matches('/'));
        fs::create_dir_all(path.parent().expect("a folder")).expect("create a folder");
        fs::write(path, "").expect("write a file");
    }
    // The extension alone, then with the proxy.
    place("install", "");
    let alone = files(&destination);
    assert!(alone.contains(&format!("{libdir}/tidings.so")) && alone.contains(&format!("{extension}/tidings.control")));
    place("install", "/usr/local");
    let both = files(&destination);
    let proxy: Vec<&String> = both.difference(&alone).collect();
    let expected = [
        "/usr/local/bin/tidings-proxy",
        "/usr/local/lib/systemd/system/tidings-proxy.service",
        "/usr/local/share/bash-completion/completions/tidings-proxy",
        "/usr/local/share/doc/tidings-proxy/tidings-proxy.conf",
        "/usr/local/share/fish/vendor_completions.d/tidings-proxy.fish",
        "/usr/local/share/man/man8/tidings-proxy.8.gz",
        "/usr/local/share/zsh/site-functions/_tidings-proxy",
    ];
    assert_eq!(proxy, expected);
    let unit = destination.join("usr/local/lib/systemd/system/tidings-proxy.service");
    let unit = fs::read_to_string(unit).expect("the unit");
    assert!(unit.contains("\nExecStart=/usr/local/bin/tidings-proxy\n"), "{unit}");
    place("uninstall", "/usr/local");
    assert_eq!(files(&destination), neighbours);
    assert!(!destination.join("usr/local/share/doc/tidings-proxy").exists());
}

#[test]
fn the_description_for_pgxn_is_complete_and_has_the_version_of_the_extension() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let meta: Value = serde_json::from_str(&text("META.json")).expect("JSON");
    // What version 1.0.0 of PGXN's specification requires.
    for key in ["name", "version", "abstract", "maintainer"] {
        assert!(meta[key].as_str().is_some_and(|value| !value.is_empty()), "{key}");
    }
    assert_eq!(meta["meta-spec"]["version"], "1.0.0");
    assert_eq!(meta["license"], "mit", "one of the names that the specification lists");
    assert!(text("LICENSE").starts_with("MIT License"));
    assert!(text("LICENSE").contains(meta["maintainer"].as_str().expect("a maintainer")));
    assert_eq!(meta["release_status"], "stable", "one of the three that the specification lists");
    let tags = meta["tags"].as_array().expect("tags");
    assert!(tags.iter().all(|tag| tag.as_str().is_some_and(|tag| !tag.is_empty() && tag.len() < 256)));
    // The extension that it provides, with the files and the version that are here.
    let provided = &meta["provides"]["tidings"];
    for key in ["file", "docfile"] {
        assert!(root.join(provided[key].as_str().expect("a path")).is_file(), "{key}");
    }
    let version = meta["version"].as_str().expect("a version");
    let numbers: Vec<_> = version.split('.').map(str::parse::<u32>).collect();
    assert!(numbers.len() == 3 && numbers.iter().all(Result::is_ok), "a semantic version, not {version}");
    assert_eq!(provided["version"], version);
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    assert!(text("sql/tidings.control").contains(&format!("default_version = '{version}'")));
    // The oldest Postgres that it can be built for.
    let features = text("pg-extension/Cargo.toml");
    let majors = features.lines().filter_map(|line| line.strip_prefix("pg")?.split(' ').next()?.parse::<u32>().ok());
    let oldest = majors.min().expect("a feature for each version of Postgres");
    assert_eq!(meta["prereqs"]["runtime"]["requires"]["PostgreSQL"], format!("{oldest}.0.0"));
}
