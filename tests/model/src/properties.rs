//! The properties: what must hold in every state that can be reached.
//!
//! A client is *settled* while it is at a proxy that is connected to the running server. After a crash, a client may
//! for a while have events that are lost or lack events that exist, until its proxy has connected or it comes to one
//! that has.

use stateright::Property;

use crate::actions::Action;
use crate::protocol::Protocol;
use crate::state::*;

/// Every event up to the place of a settled client's proxy reached the client, or the client was reset after it.
pub const COMPLETE: &str = "every event arrives";
/// No event comes twice, and none comes that lay before the position of the client's last `reset`.
pub const ONCE: &str = "no event comes twice";
/// What a settled client has got, or has read after a `reset`, is committed: nothing that it saw is gone.
pub const KEPT: &str = "nothing shown is lost";
/// If a crash keeps what a waiting writer waited for, nothing that a client ever saw is lost.
pub const DURABLE: &str = "a crash takes back nothing shown";
/// A client is reset for one of these reasons only: its position is older than what is retained; the tick of its id is
/// lost, and the proxy that it comes to did not hear that tick, or has died since, or passed over later events of it,
/// or the id has the long form; its proxy heard a lost tick only in part, or began at its end, or heard it without a
/// snapshot because it was flushed first; something that its proxy has published, or that it has read with its
/// position, is gone.
pub const NO_NEEDLESS_RESET: &str = "no reset without a reason";
/// Two events that two settled clients have both got came in the same order, which is that of the log.
pub const ONE_ORDER: &str = "one order for all";
/// Events of one row come in the order in which it was changed.
pub const ROW_ORDER: &str = "the order of a row's changes";
/// A transaction's events come without others between them.
pub const TOGETHER: &str = "transactions stay together";
/// When only faults can still happen, every proxy is connected, and every client is at one and has every event.
pub const NEVER_STUCK: &str = "never stuck";

/// All of them.
pub fn all() -> Vec<Property<Protocol>> {
    vec![
        Property::always(COMPLETE, is_complete),
        Property::always(ONCE, is_once),
        Property::always(KEPT, is_kept),
        Property::always(DURABLE, is_durable),
        Property::always(NO_NEEDLESS_RESET, |_, s: &State| !s.clients.iter().any(|client| client.wronged)),
        Property::always(ONE_ORDER, is_one_order),
        Property::always(ROW_ORDER, is_row_order),
        Property::always(TOGETHER, |_, s: &State| s.clients.iter().all(|client| is_together(&client.got))),
        Property::always(NEVER_STUCK, is_never_stuck),
    ]
}

fn settled(s: &State) -> impl Iterator<Item = (u8, &Client)> {
    let at = s.clients.iter().filter_map(|client| client.at.map(|p| (p, client)));
    at.filter(|(p, _)| s.proxies[*p as usize].connected)
}

fn has(client: &Client, event: &Event) -> bool {
    client.got.contains(event) || client.base.contains(event)
}

fn is_complete(protocol: &Protocol, s: &State) -> bool {
    settled(s).all(|(p, client)| protocol.behind(&protocol.shown_at(s, p), p).iter().all(|event| has(client, event)))
}

fn is_once(_: &Protocol, s: &State) -> bool {
    s.clients.iter().all(|client| {
        let mut got = client.got.iter().enumerate();
        got.all(|(i, event)| !client.got[..i].contains(event) && !client.base.contains(event))
    })
}

fn is_kept(_: &Protocol, s: &State) -> bool {
    let is_there = |(w, _): &Event| s.is_shown(*w);
    settled(s).all(|(_, client)| client.got.iter().chain(&client.base).all(is_there))
}

fn is_durable(protocol: &Protocol, s: &State) -> bool {
    let is_there = |(w, _): &Event| s.is_shown(*w);
    protocol.scenario.standby_lags || s.clients.iter().all(|client| client.got.iter().chain(&client.base).all(is_there))
}

/// Whether the events that both have are in the same order.
fn agree(one: &[Event], other: &[Event]) -> bool {
    let places = one.iter().filter_map(|event| other.iter().position(|same| same == event));
    places.is_sorted()
}

fn is_one_order(protocol: &Protocol, s: &State) -> bool {
    if settled(s).all(|(_, client)| client.got.len() < 2) {
        return true;
    }
    let log: Vec<Event> =
        s.database.rows().iter().skip(1).chain(&s.database.hidden).flat_map(|tick| protocol.events(s, tick)).collect();
    settled(s)
        .enumerate()
        .all(|(i, (_, one))| agree(&one.got, &log) && settled(s).take(i).all(|(_, other)| agree(&one.got, &other.got)))
}

fn is_row_order(_: &Protocol, s: &State) -> bool {
    let turn = |(w, _): &Event| s.row.iter().position(|writer| writer == w);
    s.clients.iter().all(|client| client.got.iter().filter_map(turn).is_sorted())
}

fn is_together(got: &[Event]) -> bool {
    got.iter().enumerate().all(|(i, (w, _))| {
        let rest = got[i..].iter().position(|(other, _)| other != w);
        rest.is_none_or(|rest| got[i + rest..].iter().all(|(other, _)| other != w))
    })
}

fn is_never_stuck(protocol: &Protocol, s: &State) -> bool {
    let is_busy = s.writers.iter().any(|writer| writer.is_ending() || writer.phase == Phase::Idle);
    if is_busy || !s.database.relay {
        return true;
    }
    let mut actions = Vec::new();
    protocol.enabled(s, &mut actions);
    let is_quiet = !actions.into_iter().any(Action::is_progress);
    let are_connected = s.proxies.iter().all(|proxy| proxy.connected);
    !is_quiet || are_connected && s.clients.iter().all(|client| client.at.is_some() && has_everything(s, client))
}

fn has_everything(s: &State, client: &Client) -> bool {
    (0u8..)
        .zip(&s.writers)
        .filter(|(_, writer)| writer.phase == Phase::Committed)
        .all(|(w, writer)| (0..writer.stamps.len() as u8).all(|n| has(client, &(w, n))))
}
