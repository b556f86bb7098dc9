//! The packages of `make package`, and what docs/install.md does with them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::page::page;
use crate::process::fresh_path;

/// Runs a program that must succeed, and returns its output.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Makes the packages of what is built, and returns their folder.
#[track_caller]
pub fn make() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let out = fresh_path("dist");
    run(Command::new(root.join("packaging/build")).arg(&out));
    out
}

/// The Debian package whose name begins with this word.
#[track_caller]
pub fn named(folder: &Path, word: &str) -> PathBuf {
    let files = fs::read_dir(folder).expect("the folder").map(|file| file.expect("a file").path());
    let is_wanted = |file: &PathBuf| {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(word) && name.ends_with(".deb")
    };
    files.into_iter().find(is_wanted).unwrap_or_else(|| panic!("no package {word}"))
}

/// The commands after this mark in docs/install.md.
#[track_caller]
pub fn commands(mark: &str) -> String {
    let text = page("install.md");
    let block = text.split(&format!("<!-- {mark} -->\n```sh\n")).nth(1).and_then(|rest| rest.split("\n```").next());
    block.unwrap_or_else(|| panic!("docs/install.md has no commands {mark}")).to_owned()
}
