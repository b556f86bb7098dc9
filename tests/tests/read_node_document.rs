//! docs/operations.md as a DBA would follow it to set up a standby: its commands are run as they are.

use std::path::Path;
use std::process::Command;

use tidings_tests::balancer::{Balancer, nobody};
use tidings_tests::cluster::free_port;
use tidings_tests::process::fresh_path;
use tidings_tests::sse::Request;
use tidings_tests::{Cluster, Proxy, Session, Sse, eventually, http, proxy, until};

use crate::{create_boards, has_psql, titles};

/// A server that the commands of the page have started. Dropping it ends it.
struct Server<'c>(&'c Cluster, std::path::PathBuf);

impl Drop for Server<'_> {
    fn drop(&mut self) {
        let _ = self.0.tool("pg_ctl").args(["-m", "immediate", "stop", "-D"]).arg(&self.1).status();
    }
}

/// The commands of the page's section about standbys.
fn commands() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let page = std::fs::read_to_string(page).expect("read the page");
    let section = page.split("## Proxies at a standby").nth(1).expect("the section");
    let block = section.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next());
    block.expect("a block of commands").to_owned()
}

#[test]
fn the_commands_of_the_documentation_set_up_a_standby_that_serves_streams_beside_the_primary() {
    if !has_psql() {
        return;
    }
    let primary = Cluster::start(&[]);
    let db = primary.database();
    create_boards(&db);
    let role = db.proxy_role();
    db.session().run(&format!("ALTER ROLE {role} RENAME TO tidings_proxy"));
    let (port, data) = (free_port(), primary.socket_dir().join("replica"));
    let connection = |port: u16| format!("host=127.0.0.1 port={port} dbname={}", db.name());
    let bin = primary.tool("psql").get_program().to_owned();
    let path = [Path::new(&bin).parent(), proxy::binary().canonicalize().expect("the proxy").parent()]
        .map(|folder| folder.expect("a folder").display().to_string())
        .join(":");
    let log = fresh_path("commands.log");
    let run = |mut command: Command| {
        let file = std::fs::File::create(&log).expect("create the output");
        command.env("PATH", format!("{path}:{}", std::env::var("PATH").expect("a PATH")));
        command
            .env("PRIMARY", format!("{} user=postgres", connection(primary.port())))
            .env("STANDBY", connection(port));
        command.env("DATA", &data).env("PORT", port.to_string());
        command.stdout(file.try_clone().expect("share the output")).stderr(file).status().expect("run the commands")
    };
    let mut shell = primary.tool("/bin/bash");
    shell.args(["-euo", "pipefail", "-c", &commands()]);
    let server = Server(&primary, data.clone());
    let status = run(shell);
    assert!(status.success(), "{}", std::fs::read_to_string(&log).unwrap_or_default());

    let url = |port: u16| format!("postgres://tidings_proxy@127.0.0.1:{port}/{}", db.name());
    let reports = url(primary.port());
    let at_standby = Proxy::start(&url(port), &["--report-url", &reports, "--max-lag", "1s"]);
    let at_primary = Proxy::start(&reports, &[]);
    let balancer = Balancer::haproxy([at_standby.address(), at_primary.address()], nobody());
    let mut direct = at_standby.live(&["boards_5"]);
    let mut session = db.session();
    session.run("INSERT INTO board_items VALUES (1, 5, 'to both')");
    assert_eq!(titles(&[direct.frame()]), ["to both"]);
    until("HAProxy uses both", || {
        drop(Sse::connect(balancer.address(), &Request::live(&["probe"])));
        [&at_standby, &at_primary].iter().all(|proxy| proxy.metric("tidings_streams_total") > 1.0)
    });
    // A standby that is behind gets no new clients.
    let mut there = Session::new(
        postgres::Client::connect(&format!("{} user=postgres", connection(port)), postgres::NoTls).expect("connect"),
    );
    there.run("SELECT pg_wal_replay_pause()");
    until("replay has paused", || there.one("SELECT pg_get_wal_replay_pause_state() = 'paused'"));
    session.run("INSERT INTO board_items VALUES (2, 5, 'late there')");
    until("it is not ready", || http::get(at_standby.address(), "/readyz").is_ok_and(|(head, _)| head.status == 503));
    let mut missed = eventually("a stream of the primary's proxy", || {
        let mut sse = Sse::connect(balancer.address(), &Request::resume(&["boards_5"], direct.last_id()?)).ok()?;
        (at_primary.metric("tidings_resumes_total") > 0.0).then(|| sse.frame())
    });
    missed.id = None;
    assert_eq!(titles(&[missed]), ["late there"]);
    there.run("SELECT pg_wal_replay_resume()");
    assert_eq!(titles(&[direct.frame()]), ["late there"]);
    drop(there);
    drop(server);
}
