//! Containers of the proxy and of Postgres with the extension: docs/install.md to the letter. By `make test-packages`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tidings_tests::debian;
use tidings_tests::namespaces::{Namespaces, Network, WAIT, say_skipped};
use tidings_tests::packages::{self, commands, named, run};
use tidings_tests::process::fresh_path;
use tidings_tests::until;

/// The image that the Containerfiles start from. Here it is the root of debootstrap.
const BASE: &str = "docker.io/library/debian:bookworm-slim";

/// Namespaces for commands with containers. Podman has its locks in shared memory.
const INIT: &str = "set -e; mount -t proc proc /proc; mount -t tmpfs tmpfs /dev/shm; ip link set lo up; exec ";

/// A container engine with images, volumes and settings of its own.
struct Engine {
    folder: PathBuf,
    namespaces: Namespaces,
}

impl Engine {
    /// Runs commands of bash in the folder above `dist`, as root; returns all that they print.
    #[track_caller]
    fn run(&self, script: &str) -> String {
        let (succeeded, text) = self.try_run(script);
        assert!(succeeded, "{script}\n{text}");
        text
    }

    /// The same for commands that may fail.
    fn try_run(&self, script: &str) -> (bool, String) {
        let folder = self.folder.display();
        let script = format!(
            "export CONTAINERS_STORAGE_CONF={folder}/storage.conf CONTAINERS_CONF={folder}/containers.conf \
             BUILDAH_ISOLATION=chroot TMPDIR={folder}/tmp; cd {folder}; {script}"
        );
        self.namespaces.run(&[], &["bash", "-euo", "pipefail", "-c", &script])
    }

    /// Writes a row.
    #[track_caller]
    fn write(&self, title: &str) {
        let insert = format!("INSERT INTO board_items (board_id, title) VALUES (5, '{title}')");
        self.run(&format!("podman exec tidings-postgres psql -qX app -c \"{insert}\""));
    }

    #[track_caller]
    fn wait_ready(&self) {
        until("the proxy is ready", || self.try_run("curl -fs http://127.0.0.1:8080/readyz").0);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // In order, so that no control group is left; the rest ends with the namespaces.
        self.try_run("podman rm --all --force");
        self.namespaces.end();
    }
}

/// The settings of the engine. They don't rely on systemd, nor on limits that this machine may lack.
fn configure(folder: &Path) {
    let (path, write) = (folder.display(), |name: &str, text: String| {
        fs::write(folder.join(name), text).expect("write the engine's settings");
    });
    let storage = format!("[storage]\ndriver = \"overlay\"\ngraphroot = \"{path}/images\"\nrunroot = \"{path}/run\"\n");
    write("storage.conf", storage);
    let containers = format!(
        "[containers]\ndefault_ulimits = [\"nofile=4096:4096\", \"nproc=4096:4096\"]\n[engine]\nruntime = \"runc\"\n\
         cgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nstatic_dir = \"{path}/static\"\n\
         tmp_dir = \"{path}/run/engine\"\nvolume_path = \"{path}/volumes\"\n"
    );
    write("containers.conf", containers);
}

/// Builds both images of these packages. The builder needs a network, which the containers then don't have.
fn build(folder: &Path) {
    let ours = ["postgresql-", "tidings-proxy_"].map(|word| named(&folder.join("dist"), word));
    let others = ["ca-certificates"];
    debian::with_base(&[&ours[0], &ours[1]], &others, |base| {
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(base).args(["--one-file-system", "--numeric-owner", "--exclude=./dev", "--exclude=./proc"]);
        run(tar.arg("-cf").arg(folder.join("base/root.tar")).arg("."));
    });
    fs::write(folder.join("base/Containerfile"), "FROM scratch\nADD root.tar /\n").expect("write a Containerfile");
    let namespaces = Namespaces::start(Network::Shared, &format!("{INIT}{WAIT}"), folder);
    let builder = Engine { folder: folder.to_owned(), namespaces };
    builder.run(&format!("buildah bud -t {BASE} base && rm -r base"));
    builder.run(&commands("images"));
}

#[test]
fn containers_of_both_packages_stream_an_event_end_in_time_and_keep_their_data() {
    let missing = ["buildah", "podman", "runc"].iter().any(|name| {
        let found = Command::new(name).arg("--version").output();
        !found.is_ok_and(|output| output.status.success())
    });
    let pg_config = std::env::var("PG_CONFIG").unwrap_or_default();
    let is_other = !pg_config.is_empty() && !pg_config.contains("/15/");
    let obstacle = Namespaces::obstacle()
        .or(missing.then_some("buildah, podman or runc is missing"))
        .or(is_other.then_some("they have Debian's Postgres 15"));
    if let Some(obstacle) = obstacle {
        return say_skipped("containers", obstacle);
    }
    let folder = fresh_path("containers");
    for name in ["base", "tmp"] {
        fs::create_dir_all(folder.join(name)).expect("create a folder");
    }
    configure(&folder);
    fs::rename(packages::make(), folder.join("dist")).expect("move the packages");
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
    run(Command::new("cp").arg("-r").arg(packaging).arg(&folder));
    build(&folder);

    let namespaces = Namespaces::start(Network::Own, &format!("{INIT}{WAIT}"), &folder);
    let engine = Engine { folder, namespaces };
    engine.run(&commands("postgres"));
    engine.run(&commands("containers"));
    engine.wait_ready();
    let said = engine.run("podman exec tidings-proxy tidings-proxy check");
    assert!(said.contains("✓ preload") && said.contains("✓ event") && !said.contains('✗'), "{said}");
    for name in ["tidings-postgres", "tidings-proxy"] {
        assert_ne!(engine.run(&format!("podman exec {name} stat -c %u /proc/1")).trim(), "0", "{name} runs as root");
    }
    let first = engine.run("podman exec tidings-proxy readlink /proc/1/exe");
    assert_eq!(first.trim(), "/usr/bin/tidings-proxy", "the proxy gets the signals");

    engine.run(
        "podman exec -i tidings-postgres psql -qX app << 'END'
CREATE TABLE board_items (id bigint GENERATED ALWAYS AS IDENTITY, board_id bigint, title text);
SELECT tidings.watch('board_items', topic => 'boards_{board_id}');
END",
    );
    engine.run(
        "setsid curl -sN 'http://127.0.0.1:8080/events?topic=boards_5&since=earliest' > stream 2>&1 < /dev/null &",
    );
    let stream = || fs::read_to_string(engine.folder.join("stream")).unwrap_or_default();
    let receives = |title: &str| {
        until(&format!("the stream has {title:?}"), || stream().contains(&format!("\"title\":\"{title}\"}}")));
    };
    engine.write("from a container");
    receives("from a container");

    // Another container has the same data. The old one ended although the proxy was connected, and the proxy waits.
    let state = "podman inspect --format '{{.State.ExitCode}}'";
    engine.run("podman stop --time 60 tidings-postgres");
    assert_eq!(engine.run(&format!("{state} tidings-postgres")).trim(), "0", "a shutdown in order");
    engine.run("podman rm tidings-postgres");
    engine.run(&commands("postgres"));
    until("the server is back", || engine.try_run("podman exec tidings-postgres psql -qX app -c 'SELECT 1'").0);
    engine.write("from the next container");
    receives("from the next container");

    // SIGTERM ends the proxy within --drain, with a client: otherwise the status would be that of SIGKILL.
    engine.run("podman stop --time 60 tidings-proxy");
    assert_eq!(engine.run(&format!("{state} tidings-proxy")).trim(), "0");
    assert!(engine.run("podman logs tidings-proxy").contains("draining"));
}
