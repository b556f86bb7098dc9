//! `/channels/NAME`: plain LISTEN for many clients over one connection, also in a database without the extension.

use std::time::Instant;

use tidings_tests::http::{self, Response};
use tidings_tests::sse::Parser;
use tidings_tests::{DEADLINE, Database, Frame, Item, Proxy, shared, until};

/// A stream of a channel.
pub struct Channel {
    response: Response,
    parser: Parser,
    items: std::collections::VecDeque<Item>,
}

impl Channel {
    /// Opens it and waits until the proxy listens.
    #[track_caller]
    pub fn open(proxy: &Proxy, name: &str) -> Self {
        let path = format!("/channels/{}", http::escape(name));
        let response = http::open(proxy.address(), &path, &[("Accept", "text/event-stream")]).expect("an answer");
        assert_eq!(response.head.status, 200);
        let mut channel = Self { response, parser: Parser::default(), items: Default::default() };
        channel.wait_listening();
        channel
    }

    #[track_caller]
    fn wait_listening(&mut self) {
        while self.item() != Item::Comment("tidings".into()) {}
    }

    #[track_caller]
    fn item(&mut self) -> Item {
        while self.items.is_empty() {
            let mut bytes = Vec::new();
            assert!(self.response.read(&mut bytes).expect("more"), "the stream has ended");
            let items = &mut self.items;
            self.parser.feed(&bytes, &mut |item| items.push_back(item)).expect("an event stream");
        }
        self.items.pop_front().expect("an item")
    }

    /// The next notification.
    #[track_caller]
    pub fn frame(&mut self) -> Frame {
        loop {
            if let Item::Frame(frame) = self.item() {
                return frame;
            }
        }
    }
}

/// A proxy of a database without the extension, with a role that may only log in.
fn proxy(db: &Database<'_>, args: &[&str]) -> Proxy {
    Proxy::start(&db.cluster().url(db.name(), &db.role("listener")), args)
}

fn notify(db: &Database<'_>, channel: &str, payload: &str) {
    db.session().with("SELECT pg_notify($1, $2)", &[&channel, &payload]);
}

/// The last statement of each of the proxy's connections that has to do with this channel. It has others: for a test of
/// notifications when it starts, and for its reports from the second second on.
fn last_statements(db: &Database<'_>, channel: &str) -> Vec<String> {
    let role = format!("{}_listener", db.name());
    let rows =
        db.session().all("SELECT query FROM pg_stat_activity WHERE usename = $1 AND datname IS NOT NULL", &[&role]);
    let statements = rows.iter().map(|row| row.get::<_, String>(0));
    statements.filter(|statement| statement.ends_with(&format!("LISTEN \"{channel}\""))).collect()
}

#[test]
fn a_notification_reaches_the_clients_of_its_channel_and_no_others() {
    let db = shared().empty_database();
    let proxy = proxy(&db, &["--channel", "board_*", "--channel", "News&\"more\""]);
    let mut one = Channel::open(&proxy, "board_5");
    let mut two = Channel::open(&proxy, "board_5");
    let mut other = Channel::open(&proxy, "board_6");
    let mut odd = Channel::open(&proxy, "News&\"more\"");
    for (channel, payload) in
        [("board_5", "a\r\nb"), ("board_6", "for another"), ("board_5", ""), ("News&\"more\"", "odd")]
    {
        notify(&db, channel, payload);
    }
    notify(&db, "board_5", "last");
    for channel in [&mut one, &mut two] {
        let frames = [channel.frame(), channel.frame(), channel.frame()];
        assert_eq!(frames.each_ref().map(|frame| frame.data.as_str()), ["a\nb", "", "last"]);
        assert!(frames.iter().all(|frame| frame.id.is_none() && frame.event == "message"), "{frames:?}");
    }
    assert_eq!(other.frame().data, "for another");
    assert_eq!(odd.frame().data, "odd");
}

#[test]
fn the_proxy_listens_from_the_first_client_to_the_last() {
    let db = shared().empty_database();
    let proxy = proxy(&db, &["--channel", "*"]);
    let streams = [Channel::open(&proxy, "board_5"), Channel::open(&proxy, "board_5")];
    assert_eq!(last_statements(&db, "board_5"), ["LISTEN \"board_5\""]);
    let [one, two] = streams;
    drop(one);
    proxy.wait_clients(1);
    let mut two = two;
    notify(&db, "board_5", "still here");
    assert_eq!(two.frame().data, "still here");
    drop(two);
    until("it listens no more", || last_statements(&db, "board_5") == ["UNLISTEN \"board_5\""]);
    let mut again = Channel::open(&proxy, "board_5");
    notify(&db, "board_5", "again");
    assert_eq!(again.frame().data, "again");
    assert_eq!(last_statements(&db, "board_5"), ["LISTEN \"board_5\""], "all over the one connection");
}

#[test]
fn hundreds_of_channels_that_open_at_once_all_receive_also_after_a_reconnect() {
    const NAMES: usize = 400;
    let db = shared().empty_database();
    let proxy = proxy(&db, &["--channel", "*"]);
    let mut stays = Channel::open(&proxy, "stays");
    let open = |n: usize| {
        let path = format!("/channels/board_{n}");
        let response = http::open(proxy.address(), &path, &[("Accept", "text/event-stream")]).expect("an answer");
        Channel { response, parser: Parser::default(), items: Default::default() }
    };
    for round in 0..2 {
        let mut channels: Vec<Channel> = (0..NAMES).map(open).collect();
        for channel in &mut channels {
            channel.wait_listening();
        }
        db.session().run("SELECT pg_notify('board_' || n, n::text) FROM generate_series(0, 399) n");
        for (n, channel) in channels.iter_mut().enumerate() {
            assert_eq!(channel.frame().data, n.to_string());
        }
        drop(channels);
        proxy.wait_clients(1);
        notify(&db, "stays", &round.to_string());
        assert_eq!(stays.frame().data, round.to_string());
    }
}

#[test]
fn after_the_database_was_away_clients_get_a_reset_and_then_notifications() {
    let db = shared().empty_database();
    let proxy = proxy(&db, &["--channel", "*"]);
    let mut channel = Channel::open(&proxy, "board_5");
    for round in 0..3 {
        let role = format!("{}_listener", db.name());
        db.session().with("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", &[&role]);
        let reset = channel.frame();
        assert_eq!((reset.event.as_str(), reset.data.as_str()), ("reset", "{\"reason\":\"upstream\"}"));
        channel.wait_listening();
        notify(&db, "board_5", &round.to_string());
        assert_eq!(channel.frame().data, round.to_string());
    }
}

#[test]
fn only_channels_that_match_a_pattern_are_served() {
    let db = shared().empty_database();
    let proxy = proxy(&db, &["--channel", "board_*"]);
    let long = "board_".to_owned() + &"x".repeat(60);
    for (name, status) in
        [("board_5", 200), ("boards_5", 403), ("Board_5", 403), ("", 400), (long.as_str(), 400), ("board_\n", 400)]
    {
        let path = format!("/channels/{}", http::escape(name));
        let response = http::open(proxy.address(), &path, &[]).expect("an answer");
        assert_eq!(response.head.status, status, "{name:?}");
    }
}

#[test]
fn a_burst_of_notifications_in_one_transaction_arrives_whole() {
    let db = shared().empty_database();
    let proxy = proxy(&db, &["--channel", "*"]);
    let mut channel = Channel::open(&proxy, "board_5");
    db.session().run("SELECT pg_notify('board_5', n::text) FROM generate_series(1, 20000) n");
    for n in 1..=20_000 {
        assert_eq!(channel.frame().data, n.to_string());
    }
    assert_eq!(proxy.metrics()["tidings_notifications_total{result=\"dropped\"}"], 0.0);
}

#[test]
fn a_channel_name_outside_the_databases_encoding_affects_no_other_channel() {
    for encoding in ["LATIN1", "EUC_JP"] {
        let db = shared().database_of(&format!("ENCODING '{encoding}' LOCALE 'C'"));
        let proxy = proxy(&db, &["--channel", "*"]);
        let (name, lacking) =
            if encoding == "LATIN1" { ("caf\u{e9}", "\u{20ac}") } else { ("\u{6771}\u{4eac}", "\u{1f600}") };
        let mut channel = Channel::open(&proxy, name);
        let path = format!("/channels/{}", http::escape(lacking));
        let mut response = http::open(proxy.address(), &path, &[]).expect("an answer");
        // The first client waits for the database, and its stream ends; later ones get the error at once.
        let start = Instant::now();
        while response.read(&mut Vec::new()).expect("the end") {
            assert!(start.elapsed() < DEADLINE, "the stream continues");
        }
        let (head, problem) = http::get(proxy.address(), &path).expect("an answer");
        assert_eq!(head.status, 400, "{problem}");
        assert!(problem.contains("encoding"), "{problem}");
        notify(&db, name, "still here");
        assert_eq!(channel.frame().data, "still here");
        assert_eq!(proxy.metric("tidings_upstream_reconnects_total"), 0.0, "{}", proxy.log_tail());
    }
}
