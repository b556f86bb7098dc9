//! The order in which a transaction has changed its rows, which is not the order in which Postgres fires their triggers.
//!
//! The triggers of a row fire when its command has changed all of its rows. One that writes runs a command inside, and the triggers
//! of that one fire at its end: so a change that a trigger makes may be captured before the change that the trigger is called for.
//! But each row version names the command that made it, and the one that deleted it, and commands are numbered as they begin.
//! That number, the *rank*, puts events in order.
//!
//! Functions and BEFORE triggers write while the rows of the outer command are being changed. What they change has a higher number,
//! and yet comes before the row that they are called for. So an outer command with such changes inside gets its rank when its
//! rows have been changed; and where a command inside has changed one of those rows, they come before it up to that one.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use pgrx::pg_sys;

use crate::foreign::executor::{standard_ExecutorFinish, standard_ExecutorRun};
use crate::foreign::infallible::{
    GetCurrentCommandId, GetCurrentSubTransactionId, HeapTupleHeaderGetCmax, HeapTupleHeaderGetCmin, IsLogicalWorker,
    TransactionIdIsCurrentTransactionId,
};

/// Where an event stands in its transaction. Events of one rank stand in the order in which they were captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank(u64);

/// So many bits of an ordinal hold the number of events before; 16 billion events fill them.
const COUNT_BITS: u32 = 34;

/// The ranks that fit into the rest of an ordinal. Beyond the 268 million commands that have one each, events stand as they were captured.
const MAX_RANK: u64 = (1 << (63 - COUNT_BITS)) - 1;

/// Rows of one command that commands inside have changed, remembered one by one. With more of them, all of the command's rows come first.
const MAX_TOUCHED: usize = 10_000;

/// A row version: the table's number, the block and the line in it.
type Version = (u32, u16, u16, u16);

/// A command that is at work.
struct Command {
    number: pg_sys::CommandId,
    subxid: pg_sys::SubTransactionId,
    kind: Kind,
    phase: Phase,
    /// The rank of its events, once it is known.
    rank: Rank,
    /// The row versions made by it that commands inside have changed.
    touched: Touched,
    /// The version made by it whose triggers are firing.
    row: Option<Version>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// INSERT, UPDATE, DELETE, MERGE.
    Query,
    Copy,
    Truncate,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It changes rows.
    Running,
    /// It has changed its rows, and had changes inside; its triggers will fire.
    Waiting,
    /// Its triggers fire.
    Firing,
}

/// Row versions, each with the rank of the event that changed it.
#[derive(Default)]
struct Touched {
    by_version: BTreeMap<Version, Rank>,
    by_rank: BTreeSet<(Rank, Version)>,
    /// There were more than [`MAX_TOUCHED`], or which ones does not matter: all of the command's rows come first.
    is_full: bool,
}

thread_local! {
    /// The commands at work, the outer ones first. An error leaves some behind, until their subtransaction ends.
    static COMMANDS: RefCell<Vec<Command>> = const { RefCell::new(Vec::new()) };
}

static mut PREVIOUS_RUN: pg_sys::ExecutorRun_hook_type = None;
static mut PREVIOUS_FINISH: pg_sys::ExecutorFinish_hook_type = None;

/// Puts the hooks in; called from `_PG_init`.
pub fn init() {
    // SAFETY: in the postmaster, before there is anyone else.
    unsafe {
        PREVIOUS_RUN = pg_sys::ExecutorRun_hook;
        pg_sys::ExecutorRun_hook = Some(run);
        PREVIOUS_FINISH = pg_sys::ExecutorFinish_hook;
        pg_sys::ExecutorFinish_hook = Some(finish);
    }
}

impl Rank {
    /// The first of all.
    pub const FIRST: Self = Self(0);

    fn of(command: pg_sys::CommandId) -> Self {
        // Between those of any two commands there is one more.
        Self((2 * u64::from(command)).min(MAX_RANK))
    }

    /// Of what happens now: of a call of `publish`, or of a change that does not say which command made it.
    pub fn now() -> Self {
        // SAFETY: a plain variable of this backend.
        Self::of(unsafe { GetCurrentCommandId(false) })
    }

    /// Of TRUNCATE, whose trigger is running.
    pub fn of_truncate() -> Self {
        COMMANDS.with_borrow(|commands| {
            let truncate = commands.iter().rev().find(|command| command.kind == Kind::Truncate);
            truncate.map_or_else(Self::now, |command| Self::of(command.number))
        })
    }

    /// Of the change of a row: `new` is the version that it made, `old` the one that it replaced or deleted.
    ///
    /// # Safety
    /// The tuples are those of the trigger that is running, and the relation is the one that it belongs to.
    pub unsafe fn of_row(
        relation: pg_sys::Relation,
        new: Option<pg_sys::HeapTuple>,
        old: Option<pg_sys::HeapTuple>,
    ) -> Self {
        // SAFETY: as the caller promises; another table access method may keep anything where heap keeps the command.
        let number = unsafe {
            match (new, old) {
                _ if (*(*relation).rd_rel).relam != pg_sys::HEAP_TABLE_AM_OID => return Self::now(),
                (Some(new), _) => HeapTupleHeaderGetCmin((*new).t_data),
                (None, Some(old)) => HeapTupleHeaderGetCmax((*old).t_data),
                (None, None) => return Self::now(),
            }
        };
        COMMANDS.with_borrow_mut(|commands| match commands.as_slice() {
            [] => Self::of(number),
            [only] if only.number == number && only.phase == Phase::Firing && only.is_plain() => Self::of(number),
            // SAFETY: as the caller promises.
            _ => unsafe { rank_inside(commands, number, relation, new, old) },
        })
    }

    /// The place between those of the command before and this one.
    fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The number by which segments are sorted; `count` events were captured before.
    pub fn ordinal(self, count: i64) -> i64 {
        ((self.0 as i64) << COUNT_BITS) | count.min((1 << COUNT_BITS) - 1)
    }
}

/// Whether a command other than the one whose trigger is running, or other than none for a call, has not ended.
pub fn is_nested(by_trigger: bool) -> bool {
    // The changes that logical replication applies are no commands of the executor.
    // SAFETY: a plain variable of this backend.
    let own = usize::from(by_trigger && !unsafe { IsLogicalWorker() });
    COMMANDS.with_borrow(|commands| commands.iter().filter(|command| command.phase != Phase::Waiting).count() > own)
}

/// Forgets the commands of a subtransaction that was rolled back, and of those inside.
pub fn abort_subtransaction(subxid: pg_sys::SubTransactionId) {
    COMMANDS.with_borrow_mut(|commands| commands.truncate(commands.partition_point(|command| command.subxid < subxid)));
}

/// Forgets all of them, at the end of the transaction.
pub fn reset() {
    COMMANDS.with_borrow_mut(Vec::clear);
}

impl Command {
    /// Whether nothing was changed while it changed its rows.
    fn is_plain(&self) -> bool {
        self.rank == Rank::of(self.number) && self.touched.by_rank.is_empty()
    }

    /// The rank of one of its rows; rows come in the order in which they were changed, each once for each of its watches.
    fn rank_of(&mut self, new: Option<Version>) -> Rank {
        if self.row != new {
            if let Some(version) = self.row
                && let Some(by) = self.touched.by_version.remove(&version)
            {
                self.touched.by_rank.remove(&(by, version));
            }
            self.row = new;
        }
        self.touched.by_rank.first().map_or(self.rank, |(rank, _)| rank.before())
    }

    /// Its rows have been changed.
    fn settle(&mut self, rank: Rank) {
        if self.touched.is_full {
            self.touched = Touched::default();
        } else {
            self.rank = rank;
        }
    }
}

impl Touched {
    fn add(&mut self, version: Version, by: Rank) {
        if self.by_rank.len() == MAX_TOUCHED {
            *self = Self { is_full: true, ..Self::default() };
        }
        if !self.is_full && !self.by_version.contains_key(&version) {
            self.by_version.insert(version, by);
            self.by_rank.insert((by, version));
        }
    }
}

/// As [`Rank::of_row`], while other commands are at work.
///
/// # Safety
/// See there.
unsafe fn rank_inside(
    commands: &mut [Command],
    number: pg_sys::CommandId,
    relation: pg_sys::Relation,
    new: Option<pg_sys::HeapTuple>,
    old: Option<pg_sys::HeapTuple>,
) -> Rank {
    let rank =
        match commands.iter_mut().rev().find(|command| command.number == number && command.kind != Kind::Truncate) {
            Some(own) => {
                if own.kind == Kind::Copy && own.phase == Phase::Running {
                    // COPY has no hook that says when the triggers begin to fire: its first row does. A trigger before it may have written.
                    // SAFETY: the relation is open; a trigger of it is running, so it has a description of its triggers.
                    let may_write_before = unsafe { (*(*relation).trigdesc).trig_insert_before_row };
                    own.touched.is_full |= !may_write_before;
                    own.settle(Rank::now());
                    own.phase = Phase::Firing;
                }
                // SAFETY: as the caller promises.
                own.rank_of(new.map(|tuple| unsafe { version(tuple) }))
            }
            None => Rank::of(number),
        };
    if let Some(old) = old
        && commands.iter().any(|command| command.phase == Phase::Running)
    {
        // SAFETY: as the caller promises; the command that made a version is known if this transaction did.
        let (made_by, version) = unsafe { (is_own(old).then(|| HeapTupleHeaderGetCmin((*old).t_data)), version(old)) };
        let is_outer = |command: &&mut Command| {
            command.phase == Phase::Running && Some(command.number) == made_by.filter(|by| *by != number)
        };
        if let Some(outer) = commands.iter_mut().find(is_outer) {
            outer.touched.add(version, rank);
        }
    }
    rank
}

/// Whether the running transaction has made a row version.
///
/// # Safety
/// The tuple is alive.
unsafe fn is_own(tuple: pg_sys::HeapTuple) -> bool {
    // SAFETY: as the caller promises; a tuple of a table has the fields of a heap.
    unsafe {
        let header = (*tuple).t_data;
        let is_frozen = u32::from((*header).t_infomask) & pg_sys::HEAP_XMIN_FROZEN == pg_sys::HEAP_XMIN_FROZEN;
        !is_frozen && TransactionIdIsCurrentTransactionId((*header).t_choice.t_heap.t_xmin)
    }
}

/// # Safety
/// The tuple is alive.
unsafe fn version(tuple: pg_sys::HeapTuple) -> Version {
    // SAFETY: as the caller promises.
    let pg_sys::HeapTupleData { t_self, t_tableOid, .. } = unsafe { *tuple };
    (t_tableOid.to_u32(), t_self.ip_blkid.bi_hi, t_self.ip_blkid.bi_lo, t_self.ip_posid)
}

/// A command begins to change rows; gives its place, for [`leave`].
fn enter(number: pg_sys::CommandId, kind: Kind, phase: Phase) -> usize {
    // SAFETY: a plain variable of this backend.
    let subxid = unsafe { GetCurrentSubTransactionId() };
    COMMANDS.with_borrow_mut(|commands| {
        let (rank, touched) = (Rank::of(number), Touched::default());
        commands.push(Command { number, subxid, kind, phase, rank, touched, row: None });
        commands.len() - 1
    })
}

/// A statement that changes rows by no query begins: COPY or TRUNCATE.
///
/// # Safety
/// `node` is a statement.
pub unsafe fn enter_statement(node: *mut pg_sys::Node) -> Option<usize> {
    // SAFETY: as the caller promises; a node's tag says which struct it is.
    let kind = unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_CopyStmt if (*node.cast::<pg_sys::CopyStmt>()).is_from => Kind::Copy,
            pg_sys::NodeTag::T_TruncateStmt => Kind::Truncate,
            _ => return None,
        }
    };
    // SAFETY: a plain variable of this backend.
    Some(enter(unsafe { GetCurrentCommandId(false) }, kind, Phase::Running))
}

/// The command with this place has ended, and what an error has left behind of those inside.
pub fn leave(place: usize) {
    COMMANDS.with_borrow_mut(|commands| commands.truncate(place));
}

/// The number of a query that changes rows.
///
/// # Safety
/// The query has been started.
unsafe fn number_of(query: *mut pg_sys::QueryDesc) -> Option<pg_sys::CommandId> {
    // SAFETY: as the caller promises.
    unsafe {
        let is_read = (*query).operation == pg_sys::CmdType::CMD_SELECT && !(*(*query).plannedstmt).hasModifyingCTE;
        (!is_read).then(|| (*(*query).estate).es_output_cid)
    }
}

/// Runs a query. Like the other hooks here it has no guard, and nothing to drop: an error passes it as if it weren't there.
///
/// # Safety
/// The query has been started.
unsafe fn run_as(query: *mut pg_sys::QueryDesc, run: impl FnOnce()) {
    // SAFETY: as the caller promises.
    let Some(number) = (unsafe { number_of(query) }) else { return run() };
    let place = enter(number, Kind::Query, Phase::Running);
    run();
    COMMANDS.with_borrow_mut(|commands| {
        commands.truncate(place + 1);
        if let Some(command) = commands.last_mut() {
            command.settle(Rank::now());
            command.phase = Phase::Waiting;
            if command.is_plain() {
                commands.pop();
            }
        }
    });
}

#[cfg(not(feature = "pg18"))]
unsafe extern "C-unwind" fn run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    once: bool,
) {
    // SAFETY: the arguments are passed on as they came, to the hook before this one or to the standard.
    unsafe { run_as(query, || PREVIOUS_RUN.unwrap_or(standard_ExecutorRun)(query, direction, count, once)) }
}

#[cfg(feature = "pg18")]
unsafe extern "C-unwind" fn run(query: *mut pg_sys::QueryDesc, direction: pg_sys::ScanDirection::Type, count: u64) {
    // SAFETY: as above.
    unsafe { run_as(query, || PREVIOUS_RUN.unwrap_or(standard_ExecutorRun)(query, direction, count)) }
}

/// The triggers of a query fire, unless it is one of a foreign key's: those of its rows fire with those of the outer query.
unsafe extern "C-unwind" fn finish(query: *mut pg_sys::QueryDesc) {
    // SAFETY: the argument is passed on as it came, to the hook before this one or to the standard.
    unsafe {
        let next = PREVIOUS_FINISH.unwrap_or(standard_ExecutorFinish);
        let fires_later = (*(*query).estate).es_top_eflags & pg_sys::EXEC_FLAG_SKIP_TRIGGERS as i32 != 0;
        let Some(number) = number_of(query).filter(|_| !fires_later) else { return next(query) };
        let waiting = COMMANDS.with_borrow_mut(|commands| {
            let last = commands.len().checked_sub(1)?;
            let command =
                commands.last_mut().filter(|command| command.number == number && command.phase == Phase::Waiting)?;
            command.phase = Phase::Firing;
            Some(last)
        });
        let place = waiting.unwrap_or_else(|| enter(number, Kind::Query, Phase::Firing));
        next(query);
        leave(place);
    }
}
