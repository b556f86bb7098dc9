//! What takes part in a run, and what may go wrong in it: the bounds of what the checker explores.

use crate::rules::Rules;
use crate::state::Left;

/// What a writer does in its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Script {
    /// It was flushed early: it has two segments, and the first one is in the log long before the commit.
    pub is_large: bool,
    /// It waits for its commit as long as the relay would (see [`Scenario::standby_lags`]).
    pub waits: bool,
    /// PREPARE TRANSACTION, then COMMIT PREPARED.
    pub is_prepared: bool,
}

/// One segment, and waits for its commit.
pub const PLAIN: Script = Script { is_large: false, waits: true, is_prepared: false };
/// `synchronous_commit = off`; or `local`, where a standby is waited for.
pub const ASYNCHRONOUS: Script = Script { waits: false, ..PLAIN };
/// Flushed early.
pub const LARGE: Script = Script { is_large: true, ..PLAIN };
/// In two phases.
pub const PREPARED: Script = Script { is_prepared: true, ..PLAIN };

/// A run's bounds.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// One transaction each.
    pub writers: Vec<Script>,
    /// All writers change the same row, so each waits for the one before.
    pub same_row: bool,
    /// How many proxies there are.
    pub proxies: u8,
    /// How many clients.
    pub clients: u8,
    /// What may go wrong, and how often.
    pub left: Left,
    /// A crash is a failover to a standby that may lack anything. If not, a crash keeps what a waiting writer waited
    /// for: it is a crash of one server, where that is the flush, or a failover to a synchronous standby, where it is
    /// the answer of that standby. For the protocol the two are the same.
    pub standby_lags: bool,
    /// A tick reaches a proxy, and its clients, event by event; if not, all at once.
    pub piecemeal: bool,
    /// The relay takes a tick's number and looks for transactions that are about to end, and later takes the snapshot;
    /// if not, in one step.
    pub slow_cut: bool,
    /// A transaction is left for a later tick while one with an earlier stamp is about to become visible; if not, the
    /// tick is flushed first.
    pub holds_back: bool,
    /// As the code does it: a tick that is announced first has the transactions that ended up to its number, and this
    /// number stands for its snapshot. See `horizon.rs`.
    pub by_horizon: bool,
    /// There is a hot standby, and every second proxy begins there. Only with `by_horizon`. See `standby.rs`.
    pub has_standby: bool,
    /// Clients learn at once when a tick is complete; if not, they only know the ids of their events.
    pub heartbeats: bool,
    /// The rules that are followed.
    pub rules: Rules,
}

impl Scenario {
    /// Nothing goes wrong, with one proxy and one client.
    pub fn new(name: &'static str, writers: &[Script]) -> Self {
        Self {
            name,
            writers: writers.to_vec(),
            same_row: false,
            proxies: 1,
            clients: 1,
            left: Left::default(),
            standby_lags: false,
            piecemeal: false,
            slow_cut: false,
            holds_back: false,
            by_horizon: false,
            has_standby: false,
            heartbeats: true,
            rules: Rules::default(),
        }
    }
}

/// A proxy at the primary, and one at a hot standby.
pub fn with_standby(name: &'static str, writers: &[Script]) -> Scenario {
    Scenario { by_horizon: true, has_standby: true, proxies: 2, ..Scenario::new(name, writers) }
}

/// Some seconds in all: part of the tests.
pub fn small() -> Vec<Scenario> {
    let crash = Left { crashes: 1, ..Left::default() };
    let promotion = Left { promotions: 1, moves: 1, ..Left::default() };
    vec![
        Scenario { left: crash, ..Scenario::new("one crash", &[PLAIN, ASYNCHRONOUS]) },
        Scenario {
            proxies: 2,
            left: Left { cuts: 1, ..crash },
            ..Scenario::new("one crash, two proxies", &[PLAIN, PLAIN])
        },
        Scenario { left: Left { crashes: 2, cuts: 1, ..crash }, ..Scenario::new("two crashes", &[PLAIN, PLAIN]) },
        Scenario { standby_lags: true, left: Left { cuts: 1, ..crash }, ..Scenario::new("failover", &[PLAIN, PLAIN]) },
        Scenario {
            piecemeal: true,
            heartbeats: false,
            left: Left { cuts: 1, ..crash },
            ..Scenario::new("piecemeal", &[LARGE, PLAIN])
        },
        Scenario { left: crash, ..Scenario::new("two phases", &[PREPARED, PLAIN]) },
        Scenario { left: crash, standby_lags: true, ..Scenario::new("two phases, failover", &[PREPARED, PLAIN]) },
        Scenario { left: crash, same_row: true, ..Scenario::new("one row", &[PREPARED, ASYNCHRONOUS]) },
        Scenario {
            left: Left { removals: 1, cuts: 1, deaths: 1, ..crash },
            ..Scenario::new("retention", &[PLAIN, PLAIN])
        },
        Scenario { left: Left { starts: 1, ..crash }, ..Scenario::new("rows first", &[PLAIN, PLAIN]) },
        Scenario { slow_cut: true, holds_back: true, left: crash, ..Scenario::new("held back", &[PLAIN, PREPARED]) },
        Scenario { slow_cut: true, by_horizon: true, left: crash, ..Scenario::new("by horizon", &[PLAIN, PLAIN]) },
        Scenario { by_horizon: true, left: crash, ..Scenario::new("by horizon, two kinds", &[PREPARED, ASYNCHRONOUS]) },
        Scenario {
            by_horizon: true,
            standby_lags: true,
            left: Left { cuts: 1, ..crash },
            ..Scenario::new("by horizon, failover", &[PLAIN, PLAIN])
        },
        Scenario { left: Left { cuts: 1, ..crash }, ..with_standby("standby", &[PLAIN]) },
        Scenario { left: Left { cuts: 1, ..promotion }, ..with_standby("standby, promoted", &[ASYNCHRONOUS]) },
        Scenario {
            standby_lags: true,
            left: promotion,
            ..with_standby("standby that lags, promoted", &[PLAIN, PLAIN])
        },
        Scenario { left: Left { starts: 1, ..crash }, ..with_standby("standby, rows first", &[PLAIN]) },
        Scenario {
            standby_lags: true,
            left: Left { promotions: 1, starts: 1, ..Left::default() },
            ..with_standby("standby that lags, rows first", &[ASYNCHRONOUS])
        },
    ]
}

/// Some minutes in all: `make model`.
pub fn large() -> Vec<Scenario> {
    let crash = Left { crashes: 1, ..Left::default() };
    let promotion = Left { promotions: 1, moves: 1, ..Left::default() };
    let cut = Left { cuts: 1, ..crash };
    let all = Left { deaths: 1, ..cut };
    vec![
        Scenario {
            left: Left { crashes: 2, ..crash },
            ..Scenario::new("two crashes, three writers", &[PLAIN, PLAIN, PLAIN])
        },
        Scenario { proxies: 2, clients: 2, left: all, ..Scenario::new("two proxies, two clients", &[PLAIN, PLAIN]) },
        Scenario {
            proxies: 2,
            left: Left { crashes: 2, ..cut },
            ..Scenario::new("two crashes, two proxies", &[PLAIN, PLAIN])
        },
        Scenario {
            proxies: 2,
            left: crash,
            ..Scenario::new("three writers, two proxies", &[PLAIN, PLAIN, ASYNCHRONOUS])
        },
        Scenario {
            standby_lags: true,
            left: Left { crashes: 2, ..crash },
            ..Scenario::new("two failovers", &[PLAIN, PLAIN])
        },
        Scenario {
            proxies: 2,
            standby_lags: true,
            left: cut,
            ..Scenario::new("failover, two proxies", &[PLAIN, PLAIN])
        },
        Scenario {
            proxies: 2,
            piecemeal: true,
            heartbeats: false,
            left: cut,
            ..Scenario::new("event by event", &[LARGE, PLAIN])
        },
        Scenario {
            piecemeal: true,
            standby_lags: true,
            left: all,
            ..Scenario::new("failover, event by event", &[LARGE, PREPARED])
        },
        Scenario {
            same_row: true,
            left: Left { crashes: 2, ..crash },
            ..Scenario::new("one row, of all kinds", &[PREPARED, ASYNCHRONOUS, LARGE])
        },
        Scenario { left: crash, ..Scenario::new("of all kinds", &[LARGE, PREPARED, ASYNCHRONOUS]) },
        Scenario { proxies: 2, left: Left { removals: 1, ..all }, ..Scenario::new("retention", &[PLAIN, PLAIN]) },
        Scenario { proxies: 2, left: Left { starts: 1, ..cut }, ..Scenario::new("rows first", &[PLAIN, ASYNCHRONOUS]) },
        Scenario {
            standby_lags: true,
            left: Left { starts: 1, ..cut },
            ..Scenario::new("rows first, failover", &[PLAIN, PLAIN])
        },
        Scenario {
            slow_cut: true,
            holds_back: true,
            left: cut,
            ..Scenario::new("held back", &[PLAIN, PLAIN, PREPARED])
        },
        Scenario {
            by_horizon: true,
            left: crash,
            ..Scenario::new("by horizon, of all kinds", &[LARGE, PREPARED, ASYNCHRONOUS])
        },
        Scenario {
            slow_cut: true,
            by_horizon: true,
            left: Left { crashes: 2, ..crash },
            ..Scenario::new("by horizon, two crashes", &[PLAIN, PLAIN, PLAIN])
        },
        Scenario {
            by_horizon: true,
            proxies: 2,
            left: Left { crashes: 2, ..cut },
            ..Scenario::new("by horizon, two proxies", &[PLAIN, PLAIN])
        },
        Scenario {
            by_horizon: true,
            standby_lags: true,
            left: Left { crashes: 2, ..crash },
            ..Scenario::new("by horizon, two failovers", &[PLAIN, PREPARED])
        },
        Scenario { left: cut, ..with_standby("standby, two writers", &[PLAIN, PLAIN]) },
        Scenario {
            left: Left { promotions: 1, moves: 1, ..cut },
            ..with_standby("standby, crashed and promoted", &[PLAIN])
        },
        Scenario {
            left: Left { cuts: 1, ..promotion },
            ..with_standby("standby, promoted, two kinds", &[PLAIN, ASYNCHRONOUS])
        },
        Scenario {
            standby_lags: true,
            left: Left { cuts: 1, ..promotion },
            ..with_standby("standby that lags, cut off", &[PLAIN, PREPARED])
        },
        Scenario {
            left: Left { starts: 1, ..crash },
            ..with_standby("standby, rows first, two writers", &[PLAIN, PLAIN])
        },
        Scenario {
            standby_lags: true,
            left: Left { promotions: 1, starts: 1, ..Left::default() },
            ..with_standby("standby that lags, rows first, two writers", &[PLAIN, ASYNCHRONOUS])
        },
        Scenario {
            piecemeal: true,
            heartbeats: false,
            left: cut,
            ..with_standby("standby, event by event", &[LARGE, PLAIN])
        },
    ]
}
