//! The pages of `docs/` about frameworks, as a reader would follow them, and what they promise: the application's own
//! rule decides, and someone who is no longer a member gets nothing that is committed after that.

mod guide;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use guide::Guide;
use tidings_tests::cluster::Installation;
use tidings_tests::page::read;
use tidings_tests::process::fresh_path;
use tidings_tests::sse::Request;
use tidings_tests::{Session, SetAtTheEnd, Sse, http, until};

/// The names of the tables on a page.
struct Tables {
    boards: &'static str,
    members: &'static str,
    items: &'static str,
    users: &'static str,
    /// The column of `users` with the name.
    name: &'static str,
}

const RAILS: Tables =
    Tables { boards: "boards", members: "members", items: "board_items", users: "users", name: "name" };
const NODE: Tables = RAILS;
const DJANGO: Tables = Tables {
    boards: "boards_board",
    members: "boards_member",
    items: "boards_item",
    users: "auth_user",
    name: "username",
};

/// Whether the pages whose commands call psql and pg_dump can be followed.
fn has_psql() -> bool {
    let runs = Installation::get().has_psql();
    if !runs {
        eprintln!("SKIPPED: a page that needs psql, which does not run in this installation");
    }
    runs
}

#[test]
fn rails() {
    if !has_psql() {
        return;
    }
    let mut guide = Guide::new("rails.md", 3000, "teamboard_development", "/sign_in/Ben");
    // What `rails new` asks of the network, this test takes from Debian's packages.
    fs::write(guide.terminal.folder.join(".railsrc"), "--skip-bundle --skip-git --skip-listen --skip-sprockets\n")
        .expect("write .railsrc");
    guide.environment("HOME", &guide.terminal.folder.display().to_string());
    guide.follow(|guide, text| {
        if text.starts_with("rails new") {
            guide.shell(text);
            guide.terminal.folder.push("teamboard");
            fs::write(guide.path("Gemfile"), "source 'https://rubygems.org'\ngem 'rails'\ngem 'pg'\ngem 'puma'\n")
                .expect("write the Gemfile");
            guide.shell("bundle install --local --quiet");
        } else if text.starts_with("# in config/application.rb") {
            a_structure_file_keeps_watch_and_guard(guide, text);
        } else {
            return false;
        }
        true
    });
    let schema = fs::read_to_string(guide.path("db/schema.rb")).expect("read schema.rb");
    assert!(schema.contains("guard"), "{schema}");
    the_page_shows_items_and_continues_from_there(&guide, &RAILS);
    members_are_cut_off_where_they_are_removed(&guide, &RAILS);
}

#[test]
fn django() {
    let mut guide = Guide::new("django.md", 8000, "teamboard", "/sign_in/Ben");
    guide.follow(|_, _| false);
    the_page_shows_items_and_continues_from_there(&guide, &DJANGO);
    members_are_cut_off_where_they_are_removed(&guide, &DJANGO);
}

#[test]
fn node() {
    if !has_psql() {
        return;
    }
    let mut guide = Guide::new("node.md", 3000, "teamboard", "/sign_in?name=Ben");
    guide.follow(|guide, text| {
        if !text.starts_with("npm install") {
            return false;
        }
        // `make frameworks` has installed it.
        let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("frameworks/node_modules");
        assert!(modules.join("pg").exists(), "`make frameworks` installs pg");
        std::os::unix::fs::symlink(modules, guide.path("node_modules")).expect("link the packages");
        true
    });
    let mut tests = guide.cluster.session("teamboard_test", "postgres");
    let watches = "SELECT string_agg(relation || ' ' || topic, ', ' ORDER BY relation::text) FROM tidings.watches";
    assert_eq!(tests.one::<String>(watches), guide.session().one::<String>(watches));
    members_are_cut_off_where_they_are_removed(&guide, &NODE);
}

/// Follows the part of docs/rails.md about `structure.sql`, and goes back to `schema.rb`.
fn a_structure_file_keeps_watch_and_guard(guide: &Guide, text: &str) {
    let file = guide.path("config/application.rb");
    let before = fs::read_to_string(&file).expect("read application.rb");
    let (class, ends) = before.rsplit_once("  end\nend").expect("the end of the class");
    let lines: String = text.lines().skip(1).map(|line| format!("    {line}\n")).collect();
    fs::write(&file, format!("{class}{lines}  end\nend{ends}")).expect("write application.rb");
    guide.shell("bin/rails db:migrate:redo db:test:prepare");
    let mut tests = guide.cluster.session("teamboard_test", "postgres");
    let exported = "SELECT string_agg(statement, '') FROM tidings.export() AS statement";
    assert_eq!(tests.one::<String>(exported), guide.session().one::<String>(exported));
    drop(tests);
    fs::write(&file, before).expect("write application.rb");
    fs::remove_file(guide.path("db/structure.sql")).expect("remove structure.sql");
    guide.shell("bin/rails db:drop RAILS_ENV=test");
    guide.shell("bin/rails db:create");
}

/// Reads the page of a board, and the stream that it opens.
fn the_page_shows_items_and_continues_from_there(guide: &Guide, tables: &Tables) {
    let ben = guide.sign_in("Ben");
    let address = ([127, 0, 0, 1], guide.application).into();
    let page = http::open(address, "/boards/1", &[("Cookie", &ben), ("Connection", "close")]);
    let (_, page) = page.and_then(http::Response::whole).expect("the page of a board");
    assert!(page.contains("<li id=\"item_1\">Lanterns</li>"), "{page}");
    let (_, rest) = page.split_once("new EventSource(\"").expect("a stream");
    let path = rest.split('"').next().expect("its end").to_owned();
    assert!(path.starts_with("/events?") && !path.contains("&amp;"), "{path}");
    let Tables { items, .. } = tables;
    guide.session().run(&format!("INSERT INTO {items} (board_id, title) VALUES (1, 'Music')"));
    let stream = fresh_path("stream");
    let url = format!("http://127.0.0.1:{}{path}", guide.proxy);
    let _curl = guide.terminal.start(&format!("curl -s -N -H 'Cookie: {ben}' '{url}'"), &stream);
    until("the next item", || read(&stream).contains("Music"));
    let stream = read(&stream);
    assert!(!stream.contains("Lanterns") && !stream.contains("event: reset"), "{stream}");
}

/// Removes a member many times, while others write, and looks at all streams.
fn members_are_cut_off_where_they_are_removed(guide: &Guide, tables: &Tables) {
    const ROUNDS: usize = 8;
    // Only the guard makes it ask again. On a busy machine an answer may take long, and Ada's stream is not read during
    // a round.
    let patience = ["--auth-timeout", "60s", "--client-queue-bytes", "1GiB", "--heartbeat", "1h"];
    let proxy = guide.another_proxy(&[&["--reauthorize", "1h"], &patience[..]].concat());
    let (ada, ben) = (guide.sign_in("Ada"), guide.sign_in("Ben"));
    let Tables { boards, members, items, users, name } = tables;
    let member = |word: &str| format!("(SELECT id FROM {users} WHERE {name} = '{word}')");
    let join = |session: &mut Session, word: &str| {
        session.run(&format!(
            "INSERT INTO {members} (board_id, user_id) SELECT id, {0} FROM {boards} WHERE id = 1
             AND NOT EXISTS (SELECT FROM {members} WHERE user_id = {0})",
            member(word)
        ));
    };
    let add = |session: &mut Session, title: &str| {
        session.run(&format!("INSERT INTO {items} (board_id, title) VALUES (1, '{title}')"));
    };
    let open = |cookie: &str| -> Sse {
        proxy.open(&Request { cookie: Some(cookie.to_owned()), ..Request::live(&["boards_1"]) })
    };
    let mut session = guide.session();
    join(&mut session, "Ada");
    let mut hers = open(&ada);
    for round in 0..ROUNDS {
        join(&mut session, "Ben");
        let mut his = open(&ben);
        let (is_removed, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut session = guide.session();
                    while !is_over.load(SeqCst) {
                        add(&mut session, if is_removed.load(SeqCst) { "after" } else { "before" });
                    }
                });
            }
            let _over = SetAtTheEnd(&is_over);
            let first = his.frame();
            assert!(first.data.contains("before"), "{first:?}");
            session.run(&format!("DELETE FROM {members} WHERE user_id = {}", member("Ben")));
            is_removed.store(true, SeqCst);
            add(&mut session, "after");
            loop {
                let frame = his.frame();
                assert!(!frame.data.contains("after"), "round {round}: {frame:?}");
                if frame.event == "unauthorized" {
                    assert_eq!(frame.data, r#"{"reason":"revoked"}"#);
                    break;
                }
            }
            assert_eq!(his.rest(), []);
        });
        add(&mut session, &format!("the last of round {round}"));
        let seen = hers.before(|frame| frame.data.contains(&format!("the last of round {round}")));
        assert!(seen.iter().any(|frame| frame.data.contains("after")), "round {round}: she misses nothing");
        assert!(!seen.iter().any(|frame| ["unauthorized", "reset"].contains(&&*frame.event)), "{seen:?}");
    }
    let rows: i64 = session.one(&format!("SELECT count(*) FROM {items} WHERE title IN ('before', 'after')"));
    assert!(rows > 2 * ROUNDS as i64);
    // A new attempt is refused.
    let refused = http::open(proxy.address(), "/events?topic=boards_1", &[("Cookie", &ben)]).expect("an answer");
    assert_eq!(refused.head.status, 403);
}
