//! The extension in a folder of its own, outside of the server's tree, as from an image volume of a container.

use std::fs;
use std::path::Path;
use std::process::Command;

use tidings_tests::Cluster;
use tidings_tests::cluster::{Installation, Site};
use tidings_tests::packages::run;
use tidings_tests::process::fresh_path;
use tidings_tests::sse::Request;

use crate::{create_boards, skipped, titles};

#[test]
fn the_extension_runs_from_a_folder_outside_of_the_server() {
    // A server without the extension.
    let bin = Installation::get().copy();
    let of = |flag: &str| run(Command::new(bin.join("pg_config")).arg(flag)).trim().to_owned();
    let major = of("--version").split([' ', '.']).find_map(|word| word.parse::<u32>().ok());
    if major.is_some_and(|major| major < 18) {
        return skipped("extension_control_path, which Postgres has since version 18");
    }
    let (libdir, extension) = (of("--pkglibdir"), format!("{}/extension", of("--sharedir")));
    let library = Path::new(&libdir).join("tidings.so");
    let folder = fresh_path("extension");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let stage = Command::new(root.join("packaging/stage"))
        .args([folder.join("lib"), folder.join("share/extension"), library.clone()])
        .output();
    assert!(stage.is_ok_and(|output| output.status.success()));
    fs::remove_file(&library).expect("remove the library");
    for file in fs::read_dir(extension).expect("the folder of extensions").flatten() {
        if file.file_name().to_string_lossy().starts_with("tidings") {
            fs::remove_file(file.path()).expect("remove a script");
        }
    }
    // As docs/install.md has it.
    let control = format!("$system:{}", folder.join("share").display());
    let libraries = format!("$libdir:{}", folder.join("lib").display());
    let settings = [("extension_control_path", control.as_str()), ("dynamic_library_path", libraries.as_str())];
    let cluster = Cluster::start_at(Site { bin: Some(bin), ..Site::default() }, &settings);
    let db = cluster.database();
    let maps = fs::read_to_string(format!("/proc/{}/maps", cluster.pid())).expect("what the server has mapped");
    assert!(maps.lines().any(|line| line.ends_with(folder.join("lib/tidings.so").to_str().expect("a path of text"))));
    assert!(!library.exists());
    create_boards(&db);
    let position: String = db.session().one("SELECT tidings.position()");
    db.session().run("INSERT INTO board_items VALUES (1, 5, 'hello')");
    let proxy = db.proxy(&[]);
    let mut stream = proxy.open(&Request::since(&["boards_5"], &position));
    assert_eq!(titles(&[stream.frame()]), ["hello"]);
    // An update from a release finds its scripts there, too.
    let old = cluster.empty_database();
    old.session().run("CREATE EXTENSION tidings VERSION '0.1.1'; ALTER EXTENSION tidings UPDATE");
    old.wait_relay();
}
