//! A page of `docs/` as a reader would follow it: its blocks of code, and a terminal in which its commands run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cluster::Installation;
use crate::process::{Process, Signal, fresh_path};
use crate::wait::eventually;
use crate::{http, proxy};

/// The text of a page.
pub fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The blocks of a page between fences, each with the language that the fence names.
pub fn blocks(page: &str) -> Vec<(&str, &str)> {
    page.split("```").skip(1).step_by(2).map(|block| block.split_once('\n').expect("a fence and a text")).collect()
}

/// A terminal in its own folder, in which the proxy and the programs of Postgres are commands.
#[derive(Debug)]
pub struct Terminal {
    /// Where commands start.
    pub folder: PathBuf,
    /// The functions that have been defined.
    pub prelude: String,
    /// Variables of the environment.
    pub environment: Vec<(String, String)>,
}

impl Terminal {
    /// A terminal in a new folder.
    pub fn new() -> Self {
        let folder = fresh_path("terminal");
        fs::create_dir(&folder).expect("create a folder");
        Self { folder, prelude: String::new(), environment: Vec::new() }
    }

    fn command(&self, text: &str, output: &Path) -> Command {
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", &format!("{}\n{text}", self.prelude)]).current_dir(&self.folder);
        let proxy = proxy::binary().canonicalize().expect("the proxy's binary");
        let proxy = proxy.parent().expect("a folder").display();
        let path = std::env::var("PATH").expect("a PATH");
        // Debian's packages for Python and Ruby belong to Debian's interpreters, of which there may be others.
        command.env("PATH", format!("{proxy}:{}:/usr/bin:{path}", Installation::get().bin.display()));
        command.envs(self.environment.iter().cloned());
        let output = File::create(output).expect("create the output");
        command.stdin(Stdio::null()).stderr(output.try_clone().expect("share the output")).stdout(output);
        command
    }

    /// Starts a command that runs until it is ended.
    #[track_caller]
    pub fn start(&self, text: &str, output: &Path) -> Process {
        Process::spawn(&mut self.command(&format!("exec {text}"), output), Signal::SIGKILL).expect("start bash")
    }

    /// Starts a server in the same way, and waits until it answers with this status at this path.
    #[track_caller]
    pub fn serve(&self, text: &str, port: u16, path: &str, status: u16) -> Process {
        let log = fresh_path("server.log");
        let mut process = self.start(text, &log);
        eventually(&format!("an answer of {text}"), || {
            assert!(process.exited().is_none(), "it has ended: {text}\n{}", read(&log));
            let answer = http::get(([127, 0, 0, 1], port).into(), path);
            answer.is_ok_and(|(head, _)| head.status == status).then_some(())
        });
        process
    }

    /// Runs a command that ends by itself.
    #[track_caller]
    pub fn run(&self, text: &str, output: &Path) {
        let status = self.command(text, output).status().expect("run bash");
        assert!(status.success(), "{text}\n{}", read(output));
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

/// What a command has written so far.
pub fn read(output: &Path) -> String {
    String::from_utf8_lossy(&fs::read(output).expect("read an output")).into_owned()
}
