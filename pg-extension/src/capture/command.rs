//! The order in which a transaction changed its rows. Postgres fires the triggers of rows in another order.
//!
//! The triggers of a row fire after its command has changed all of its rows. A trigger that writes runs an inner
//! command, whose triggers fire at its end. So the change of an inner command may be captured before the change for
//! which the trigger was fired. But each row version names the command that made it and the command that deleted it,
//! and commands are numbered as they begin. This number, the *rank*, orders the events.
//!
//! Functions and BEFORE triggers write while the outer command is changing its rows. Their changes have a higher
//! number, but must come before the row for which they were called. So an outer command with such inner changes gets
//! its rank only after it has changed its rows. If an inner command changed one of those rows, the outer command's rows
//! up to that row come before the inner change.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use pgrx::pg_sys;

use crate::foreign::executor::{standard_ExecutorFinish, standard_ExecutorRun};
use crate::foreign::get_partition_ancestors;
use crate::foreign::infallible::{
    GetCurrentCommandId, GetCurrentSubTransactionId, HeapTupleHeaderGetCmax, HeapTupleHeaderGetCmin, IsLogicalWorker,
    TransactionIdIsCurrentTransactionId,
};

/// An event's order in its transaction. Events of one rank are ordered as they were captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank(u64);

/// So many bits of an ordinal hold the number of earlier events, enough for 16 billion.
const COUNT_BITS: u32 = 34;

/// The ranks that fit into the rest of an ordinal, one for each of 268 million commands. Events beyond that are ordered
/// as they were captured.
const MAX_RANK: u64 = (1 << (63 - COUNT_BITS)) - 1;

/// The most rows of one command for which changes by inner commands are remembered one by one. With more of them, all
/// rows of the command come first.
const MAX_TOUCHED: usize = 10_000;

/// A row version: the table's OID, the block, and the line in the block.
type Version = (u32, u16, u16, u16);

/// A running command.
struct Command {
    number: pg_sys::CommandId,
    subxid: pg_sys::SubTransactionId,
    kind: Kind,
    phase: Phase,
    /// The rank of its events, once it is known.
    rank: Rank,
    /// The row versions made by this command that inner commands have changed.
    touched: Touched,
    /// The row version made by this command whose triggers are firing.
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
    /// It is changing rows.
    Running,
    /// It has changed its rows, with inner changes; its triggers will fire.
    Waiting,
    /// Its triggers are firing.
    Firing,
}

/// Row versions, each with the rank of the event that changed it.
#[derive(Default)]
struct Touched {
    by_version: BTreeMap<Version, Rank>,
    by_rank: BTreeSet<(Rank, Version)>,
    /// There were more than [`MAX_TOUCHED`], or it does not matter which: all rows of the command come first.
    is_full: bool,
}

thread_local! {
    /// The running commands, the outer ones first. An error leaves some of them here until their subtransaction ends.
    static COMMANDS: RefCell<Vec<Command>> = const { RefCell::new(Vec::new()) };
}

static mut PREVIOUS_RUN: pg_sys::ExecutorRun_hook_type = None;
static mut PREVIOUS_FINISH: pg_sys::ExecutorFinish_hook_type = None;

/// Installs the hooks; called from `_PG_init`.
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
    /// The lowest rank.
    pub const FIRST: Self = Self(0);

    fn of(command: pg_sys::CommandId) -> Self {
        // There is one more rank between those of any two commands.
        Self((2 * u64::from(command)).min(MAX_RANK))
    }

    /// The rank of a call of `publish`, or of a change that does not say which command made it.
    pub fn now() -> Self {
        let changes_rows = |command: &Command| command.phase == Phase::Running && command.kind != Kind::Truncate;
        // As what commands inside change, it comes before the rows of those outside that are still changing them.
        let is_inside = COMMANDS.with_borrow(|commands| commands.iter().any(changes_rows));
        if is_inside { Self::next().before() } else { Self::next() }
    }

    /// Of the next command.
    fn next() -> Self {
        // SAFETY: a plain variable of this backend.
        Self::of(unsafe { GetCurrentCommandId(false) })
    }

    /// The rank of TRUNCATE, whose trigger is running.
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

    /// The rank between the command before and this one.
    fn before(self) -> Self {
        if self.0 == MAX_RANK { self } else { Self(self.0.saturating_sub(1)) }
    }

    /// The number that segments are sorted by; `count` events were captured before.
    pub fn ordinal(self, count: i64) -> i64 {
        ((self.0 as i64) << COUNT_BITS) | count.min((1 << COUNT_BITS) - 1)
    }
}

/// Whether any command is still running, other than the one whose trigger is running.
pub fn is_nested(by_trigger: bool) -> bool {
    // Changes that logical replication applies are not commands of the executor.
    // SAFETY: a plain variable of this backend.
    let own = usize::from(by_trigger && !unsafe { IsLogicalWorker() });
    COMMANDS.with_borrow(|commands| commands.iter().filter(|command| command.phase != Phase::Waiting).count() > own)
}

/// Forgets the commands of a subtransaction that was rolled back, and of those inside it.
pub fn abort_subtransaction(subxid: pg_sys::SubTransactionId) {
    COMMANDS.with_borrow_mut(|commands| commands.truncate(commands.partition_point(|command| command.subxid < subxid)));
}

/// Forgets all commands, at the end of the transaction.
pub fn reset() {
    COMMANDS.with_borrow_mut(Vec::clear);
}

impl Command {
    /// Whether there were no inner changes while it changed its rows.
    fn is_plain(&self) -> bool {
        self.rank == Rank::of(self.number) && self.touched.by_rank.is_empty()
    }

    /// The rank of one of its rows. Rows come in the order in which they were changed, once for each of their watches.
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

    /// Its rows have been changed. If commands ran inside it, its rows come after theirs, and before the next command,
    /// which may be one of its own triggers'.
    fn settle(&mut self) {
        let next = Rank::next();
        if self.touched.is_full {
            self.touched = Touched::default();
        } else if next > self.rank {
            self.rank = next.before();
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
                    // COPY has no hook for the moment when its triggers begin to fire; its first row is that moment. A
                    // trigger before it may have written.
                    // SAFETY: the relation is open.
                    own.touched.is_full |= !unsafe { has_triggers_before(relation) };
                    own.settle();
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

/// Whether triggers fire before rows are copied into a table, or before those of the whole that it is a part of.
///
/// # Safety
/// The relation is open, and its transaction holds locks on all that it is a part of, as COPY does.
unsafe fn has_triggers_before(relation: pg_sys::Relation) -> bool {
    // SAFETY: as the caller promises; a table without triggers has no description of them. The list has as many OIDs as it says.
    unsafe {
        let has = |relation: pg_sys::Relation| {
            let triggers = (*relation).trigdesc.as_ref();
            triggers.is_some_and(|triggers| triggers.trig_insert_before_row || triggers.trig_insert_before_statement)
        };
        if has(relation) || !(*(*relation).rd_rel).relispartition {
            return has(relation);
        }
        let wholes = get_partition_ancestors((*relation).rd_id);
        let count = wholes.as_ref().map_or(0, |wholes| wholes.length as usize);
        (0..count).any(|i| {
            let whole = pg_sys::RelationIdGetRelation((*(*wholes).elements.add(i)).oid_value);
            if whole.is_null() {
                return false;
            }
            let found = has(whole);
            pg_sys::RelationClose(whole);
            found
        })
    }
}

/// Whether the current transaction made a row version.
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

/// A command begins to change rows. Returns its index, for [`leave`].
fn enter(number: pg_sys::CommandId, kind: Kind, phase: Phase) -> usize {
    // SAFETY: a plain variable of this backend.
    let subxid = unsafe { GetCurrentSubTransactionId() };
    COMMANDS.with_borrow_mut(|commands| {
        let (rank, touched) = (Rank::of(number), Touched::default());
        commands.push(Command { number, subxid, kind, phase, rank, touched, row: None });
        commands.len() - 1
    })
}

/// A statement that changes rows without a query begins: COPY or TRUNCATE.
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

/// The command with this index has ended, and so have inner ones that an error left here.
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

/// Runs a query. Like the other hooks here it has no guard and nothing to drop, so an error passes through it
/// unaffected.
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
            command.settle();
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

/// The triggers of a query fire, except those of a foreign key's query, whose rows' triggers fire with those of the
/// outer query.
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
