//! A client's position: it can resume from it even if it has had no event yet, or none for a long time.

use tidings_tests::sse::Request;
use tidings_tests::{Cable, Cluster, Database, Frame, Item, Proxy, Sse, until};

use crate::boards;
use crate::clients::{Client, npm};
use crate::retention::retain;

/// npm packages that open a stream, lose it, and reconnect, each in its own way.
const PACKAGES: [&str; 4] = ["eventsource", "eventsource-2", "event-source-polyfill", "reconnecting-eventsource"];

/// What the clients listen to.
const NAMES: [&str; 3] = ["position", "message", "reset"];

/// A client behind a cable that has its stream and knows its position.
fn client(package: &str, proxy: &Proxy) -> (Client, Cable) {
    let cable = Cable::to(proxy.address());
    let url = format!("http://{}/events?topic=quiet", cable.address());
    let client = Client::start(npm(package, &url, &NAMES));
    client.wait_open();
    assert_eq!(client.frame().event, "position");
    (client, cable)
}

/// The next event that is more than a position.
fn event(client: &Client) -> Frame {
    loop {
        let frame = client.frame();
        if frame.event != "position" {
            return frame;
        }
    }
}

/// Publishes while the client can't be reached; the client gets that event once, and then live events.
fn misses_nothing(client: &Client, cable: &Cable, proxy: &Proxy, db: &Database<'_>) {
    cable.cut();
    db.session().publish("quiet", r#""missed""#);
    cable.join(proxy.address());
    assert_eq!(event(client).data, r#""missed""#);
    db.session().publish("quiet", r#""live""#);
    assert_eq!(event(client).data, r#""live""#);
}

#[test]
fn a_client_that_is_cut_off_before_its_first_event_misses_nothing() {
    for package in PACKAGES {
        let db = boards();
        let proxy = db.proxy(&["--retry", "100ms"]);
        let (client, cable) = client(package, &proxy);
        misses_nothing(&client, &cable, &proxy, &db);
    }
}

#[test]
fn the_position_of_a_client_of_a_quiet_topic_does_not_expire() {
    for package in PACKAGES {
        let cluster = Cluster::start(&[("tidings.retention", "1s")]);
        let db = cluster.database();
        let mut proxy = db.proxy(&["--retry", "100ms", "--heartbeat", "100ms"]);
        let (client, cable) = client(package, &proxy);
        let mut session = db.session();
        let first: String = session.one("SELECT tidings.position()");
        until("the position where the stream began has expired", || {
            session.run("SELECT tidings.publish('others', '1')");
            session.client().query("SELECT tidings.locate($1)", &[&first]).is_err()
        });
        let now = session.one::<String>("SELECT tidings.position()").parse::<tidings_wire::Position>().expect("one");
        until("a heartbeat has moved the client", || {
            client.frame().id().parse::<tidings_wire::Position>().expect("one").tick >= now.tick
        });
        // What the client misses must not expire before it tries again, which some do after seconds.
        retain(&mut session, "1h");
        // The proxy's memory must not help.
        cable.cut();
        proxy.kill();
        proxy.restart();
        misses_nothing(&client, &cable, &proxy, &db);
    }
}

/// Reads until the stream sends a position; no event comes before.
fn place(sse: &mut Sse) -> String {
    loop {
        match sse.item().expect("the stream continues") {
            Item::Position(id) => return id,
            Item::Frame(frame) => panic!("an event before the place: {frame:?}"),
            Item::Retry(_) | Item::Comment(_) => {}
        }
    }
}

#[test]
fn a_client_with_an_old_position_that_missed_nothing_gets_the_current_one() {
    let db = boards();
    let proxy = db.proxy(&["--heartbeat", "1h"]);
    let old = place(&mut proxy.live(&["quiet"]));
    let mut sse = proxy.live(&["others"]);
    db.session().publish("others", "1");
    let tick = sse.frame().place().0;
    for request in [Request::since(&["quiet"], &old), Request::resume(&["quiet"], &old)] {
        let now: tidings_wire::Position = place(&mut proxy.open(&request)).parse().expect("a position");
        assert_eq!(now.tick, tick);
    }
}
