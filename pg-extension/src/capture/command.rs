//! The order in which a transaction changed its rows. Postgres fires the triggers of the rows in a different order.
//!
//! The triggers of a row fire after its command has changed all of its rows. A trigger that writes runs an inner
//! command, whose triggers fire when the inner command ends. So the change of an inner command may be captured before
//! the change that fired the outer trigger. But each row version records the command that made it and the command that
//! deleted it, and commands are numbered in the order in which they begin. This number, the *rank*, orders the events.
//!
//! Functions and BEFORE triggers write while the outer command is changing its rows. Their changes have a higher
//! number, but must come before the row for which they were called. So an outer command with such inner changes gets
//! its rank only after it has changed its rows. If an inner command changed one of those rows, the outer command's rows
//! up to that row come before the inner change. And if an inner command made a row with the key that a row of the outer
//! command had, that row was gone before. So its DELETE comes before the inner change. If it was an UPDATE of the key,
//! it becomes a DELETE, which comes before, and an INSERT, which keeps its place: an earlier row of the outer command
//! may have had the new key.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use pgrx::pg_sys;

use crate::capture::key::{Key, Name, key};
use crate::capture::rank::{Places, Rank};
use crate::capture::version::{Version, changed_by, is_own, last_written, version};
use crate::foreign::infallible::{
    GetCurrentCommandId, GetCurrentSubTransactionId, HeapTupleHeaderGetCmax, HeapTupleHeaderGetCmin, IsLogicalWorker,
};
use crate::foreign::{find_all_inheritors, get_partition_ancestors};

/// The most rows of one command for which changes by inner commands are remembered one by one. If there are more, each
/// row has its own place: its new version comes before the command that has changed it, and a key that it frees is gone
/// before all inner changes.
const MAX_TOUCHED: usize = 10_000;

/// The most keys of rows made by inner commands that are remembered one by one for one command. Of each table with
/// further keys, only the first rank is remembered.
const MAX_KEYS: usize = 10_000;

/// A running command.
struct Command {
    number: pg_sys::CommandId,
    subxid: pg_sys::SubTransactionId,
    kind: Kind,
    phase: Phase,
    /// The rank of its events; see [`Command::settle`].
    rank: Rank,
    /// The row versions made by this command that inner commands have changed.
    touched: Touched,
    /// The keys of the rows that inner commands have made while this one was changing rows, each with the lowest rank
    /// of an event that made it. Rows that a savepoint took back may be among them.
    made: BTreeMap<Name, Rank>,
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
    /// Its triggers are firing.
    Firing,
}

/// Row versions, each with the rank of the event that changed it.
#[derive(Default)]
struct Touched {
    by_version: BTreeMap<Version, Rank>,
    by_rank: BTreeSet<(Rank, Version)>,
    /// There were more than [`MAX_TOUCHED`], so none is remembered.
    is_full: bool,
}

/// Commands that have changed their rows, while inner commands have changed rows, too. Their triggers will fire: those
/// of a command that a foreign key runs together with those of the outer command. There may be one for each of its
/// rows.
struct Waiting {
    by_number: BTreeMap<pg_sys::CommandId, Command>,
    /// How many of them may have freed keys.
    freeing: usize,
}

thread_local! {
    /// The running commands, outer ones first. After an error, some stay here until their subtransaction ends.
    static COMMANDS: RefCell<Vec<Command>> = const { RefCell::new(Vec::new()) };
    /// The highest number of a query that has begun to change rows.
    static LATEST: Cell<pg_sys::CommandId> = const { Cell::new(0) };
    static WAITING: RefCell<Waiting> = const { RefCell::new(Waiting { by_number: BTreeMap::new(), freeing: 0 }) };
}

impl Rank {
    /// The rank of a call of `publish`, or of a change that does not say which command made it.
    pub fn now() -> Self {
        let changes_rows = |command: &Command| command.phase == Phase::Running && command.kind != Kind::Truncate;
        // Like a change by an inner command, it comes before the rows of outer commands that are still changing rows.
        let outer = COMMANDS.with_borrow(|commands| {
            commands.iter().rev().find(|command| changes_rows(command)).map(|command| command.number)
        });
        outer.map_or_else(Self::next, |number| Self::next_inside(number).before())
    }

    /// The rank of the next command inside of the command with this number. The counter may still have the number of
    /// the last inner command: a function in SQL does not increment it after its last statement.
    fn next_inside(outer: pg_sys::CommandId) -> Self {
        let latest = LATEST.get();
        if latest > outer { Self::next().max(Self::of(latest.saturating_add(1))) } else { Self::next() }
    }

    /// The rank of the next command.
    fn next() -> Self {
        // SAFETY: called inside a transaction; with `false` the function only reads a variable of this backend.
        Self::of(unsafe { GetCurrentCommandId(false) })
    }

    /// The rank of TRUNCATE, whose trigger is running. A BEFORE trigger may have written before the tables got their
    /// new files. A table that is new in this transaction, or was truncated in it, keeps its file.
    ///
    /// # Safety
    /// The relation is that of the running trigger.
    pub unsafe fn of_truncate(relation: pg_sys::Relation) -> Self {
        let truncate = COMMANDS.with_borrow(|commands| {
            commands.iter().rev().find(|command| command.kind == Kind::Truncate).map(|command| command.number)
        });
        let Some(number) = truncate else { return Self::now() };
        // SAFETY: the relation is open, as the caller promises. A partitioned table has no file, but its partitions
        // have. Only their rows in the catalog are read, which takes no lock. The list has `length` OIDs.
        let written = unsafe {
            let tables = find_all_inheritors((*relation).rd_id, pg_sys::NoLock as i32, std::ptr::null_mut());
            let count = tables.as_ref().map_or(0, |tables| tables.length as usize);
            (0..count).filter_map(|i| last_written((*(*tables).elements.add(i)).oid_value)).max()
        };
        Self::of(number.max(written.unwrap_or_default()))
    }

    /// The places of the change of a row. `new` is the version that it made, `old` the one that it replaced or deleted.
    ///
    /// # Safety
    /// The tuples are those of the running trigger, and the relation is the trigger's.
    pub unsafe fn of_row(
        relation: pg_sys::Relation,
        new: Option<pg_sys::HeapTuple>,
        old: Option<pg_sys::HeapTuple>,
    ) -> Places {
        // SAFETY: the tuples and the relation are valid, as the caller promises. Only in heap tables do tuples have the
        // command where it is read here.
        let number = unsafe {
            match (new, old) {
                _ if (*(*relation).rd_rel).relam != pg_sys::HEAP_TABLE_AM_OID => return Self::now().into(),
                (Some(new), _) => HeapTupleHeaderGetCmin((*new).t_data),
                (None, Some(old)) => HeapTupleHeaderGetCmax((*old).t_data),
                (None, None) => return Self::now().into(),
            }
        };
        COMMANDS.with_borrow_mut(|commands| match commands.as_slice() {
            [] => Self::of(number).into(),
            [only] if only.number == number && only.phase == Phase::Firing && only.is_plain() => {
                Self::of(number).into()
            }
            // SAFETY: the tuples and the relation are those of the running trigger, as the caller promises.
            _ => unsafe { places_inside(commands, number, relation, new, old) },
        })
    }
}

/// Whether an event that is captured later may come before one that was captured already: commands are still running,
/// apart from the one whose trigger is running, or the rows of a command are not all in one place.
pub fn is_nested(by_trigger: bool) -> bool {
    // Changes that logical replication applies are not commands of the executor.
    // SAFETY: the function reads a variable of this backend.
    let own = usize::from(by_trigger && !unsafe { IsLogicalWorker() });
    COMMANDS.with_borrow(|commands| commands.len() > own || commands.iter().any(Command::may_have_freed))
        || WAITING.with_borrow(|waiting| waiting.freeing > 0)
}

/// Forgets the commands of a subtransaction that was rolled back, and those of its children.
pub fn abort_subtransaction(subxid: pg_sys::SubTransactionId) {
    COMMANDS.with_borrow_mut(|commands| commands.truncate(commands.partition_point(|command| command.subxid < subxid)));
    WAITING.with_borrow_mut(|waiting| waiting.forget_last(|command| command.subxid >= subxid));
}

/// Forgets all commands, at the end of the transaction.
pub fn reset() {
    COMMANDS.with_borrow_mut(Vec::clear);
    LATEST.set(0);
    WAITING.with_borrow_mut(|waiting| waiting.forget_last(|_| true));
}

impl Command {
    /// Whether no inner command has changed rows while it changed its own.
    fn is_plain(&self) -> bool {
        self.rank == Rank::of(self.number) && self.touched.by_rank.is_empty() && !self.touched.is_full
    }

    /// The places of one of its rows. This is called for the rows in the order in which they were changed, once for
    /// each watch. `freed` is the key that the row no longer has, and `changed_by` the command that has changed `new`
    /// since.
    fn places_of(
        &mut self,
        new: Option<Version>,
        freed: Option<Name>,
        changed_by: impl FnOnce() -> Option<pg_sys::CommandId>,
    ) -> Places {
        if self.touched.is_full {
            let new = changed_by().map_or(self.rank, |by| Rank::of(by).before().min(self.rank));
            return Places { old: freed.map_or(new, |_| Rank::of(self.number)), new };
        }
        if self.row != new {
            if let Some(version) = self.row
                && let Some(by) = self.touched.by_version.remove(&version)
            {
                self.touched.by_rank.remove(&(by, version));
            }
            self.row = new;
        }
        let new = self.touched.by_rank.first().map_or(self.rank, |(rank, _)| rank.before());
        let made = freed.and_then(|key| self.made(key));
        Places { old: made.map_or(new, |rank| rank.before().min(new)), new }
    }

    /// The lowest rank of an event by which an inner command may have made a row with this key.
    fn made(&self, key: Name) -> Option<Rank> {
        match key {
            (_, Some(_)) => self.made.get(&key).into_iter().chain(self.made.get(&(key.0, None))).min().copied(),
            (table, None) => self.made.range((table, None)..=(table, Some(u64::MAX))).map(|(_, rank)| *rank).min(),
        }
    }

    /// Notes that an inner command made a row with this key.
    fn add_made(&mut self, key: Name, by: Rank) {
        let is_known = self.made.len() < MAX_KEYS || self.made.contains_key(&key);
        let rank = self.made.entry(if is_known { key } else { (key.0, None) }).or_insert(by);
        // Events are not captured in the order of their ranks.
        *rank = (*rank).min(by);
    }

    /// Whether rows of this command may have had keys that inner commands have used again.
    fn may_have_freed(&self) -> bool {
        !self.made.is_empty() || self.touched.is_full
    }

    /// Whether it is changing rows, and may free keys, while the command with this number runs inside.
    fn is_outside(&self, number: pg_sys::CommandId) -> bool {
        self.phase == Phase::Running && self.kind == Kind::Query && self.number != number
    }

    /// Determines its rank, when all of its rows have been changed. If inner commands ran, its rows come after theirs
    /// and before the next command, which one of its own triggers may run.
    fn settle(&mut self) {
        let next = Rank::next_inside(self.number);
        if next > self.rank {
            self.rank = next.before();
        }
    }
}

impl Waiting {
    fn add(&mut self, command: Command) {
        self.freeing += usize::from(command.may_have_freed());
        self.by_number.insert(command.number, command);
    }

    fn take(&mut self, number: pg_sys::CommandId) -> Option<Command> {
        let command = self.by_number.remove(&number)?;
        self.freeing -= usize::from(command.may_have_freed());
        Some(command)
    }

    /// Forgets the last ones, as long as they are of this kind.
    fn forget_last(&mut self, is_over: impl Fn(&Command) -> bool) {
        while let Some((&number, command)) = self.by_number.last_key_value()
            && is_over(command)
        {
            self.take(number);
        }
    }
}

impl Touched {
    fn add(&mut self, version: Version, by: Rank) {
        if self.by_rank.len() == MAX_TOUCHED {
            *self = Self { is_full: true, ..Self::default() };
        }
        // A change before it was rolled back if the version is there already.
        let before = self.by_version.get(&version).copied();
        if !self.is_full && before.is_none_or(|before| by < before) {
            self.by_version.insert(version, by);
            self.by_rank.insert((by, version));
            if let Some(before) = before {
                self.by_rank.remove(&(before, version));
            }
        }
    }
}

/// As [`Rank::of_row`], while other commands are running.
///
/// # Safety
/// The tuples are those of the running trigger, and the relation is the trigger's.
unsafe fn places_inside(
    commands: &mut [Command],
    number: pg_sys::CommandId,
    relation: pg_sys::Relation,
    new: Option<pg_sys::HeapTuple>,
    old: Option<pg_sys::HeapTuple>,
) -> Places {
    // SAFETY: the tuples and the relation are those of the running trigger, as the caller promises.
    let places_of = |own: &mut Command| unsafe { places_in(own, relation, new, old) };
    let own = commands.iter_mut().rev().find(|command| command.number == number && command.kind != Kind::Truncate);
    let places = match own {
        Some(own) => Some(places_of(own)),
        None => WAITING.with_borrow_mut(|waiting| waiting.by_number.get_mut(&number).map(places_of)),
    };
    let places = places.unwrap_or_else(|| Rank::of(number).into());
    if let Some(new) = new
        && commands.iter().any(|command| command.is_outside(number))
    {
        // SAFETY: the tuples and the relation are those of the running trigger.
        let (made, had) = unsafe { (key(relation, new), old.map(|old| key(relation, old))) };
        if Some(made) != had {
            for outer in commands.iter_mut().filter(|command| command.is_outside(number)) {
                outer.add_made(made.name(), places.new);
            }
        }
    }
    if let Some(old) = old
        && commands.iter().any(|command| command.phase == Phase::Running)
    {
        // SAFETY: the tuple is that of the running trigger, so it is alive. It has a valid command if this transaction
        // made it.
        let (made_by, version) = unsafe { (is_own(old).then(|| HeapTupleHeaderGetCmin((*old).t_data)), version(old)) };
        let is_outer = |command: &&mut Command| {
            command.phase == Phase::Running && Some(command.number) == made_by.filter(|by| *by != number)
        };
        if let Some(outer) = commands.iter_mut().find(is_outer) {
            outer.touched.add(version, places.old);
        }
    }
    places
}

/// The places of a row of this command.
///
/// # Safety
/// The tuples are those of the running trigger, and the relation is the trigger's.
unsafe fn places_in(
    own: &mut Command,
    relation: pg_sys::Relation,
    new: Option<pg_sys::HeapTuple>,
    old: Option<pg_sys::HeapTuple>,
) -> Places {
    if own.kind == Kind::Copy && own.phase == Phase::Running {
        // There is no hook for the moment when the triggers of COPY begin to fire, so its first row marks it. A BEFORE
        // trigger may have written.
        // SAFETY: the relation is the trigger's, so it is open, and COPY holds the locks.
        if unsafe { has_triggers_before(relation) } {
            own.settle();
        } else {
            own.touched = Touched::default();
        }
        own.phase = Phase::Firing;
    }
    // SAFETY: the tuples and the relation are those of the running trigger, so they are alive and open.
    unsafe {
        let freed = old.filter(|_| own.may_have_freed()).map(|old| key(relation, old));
        let freed = freed.filter(|freed| new.map(|new| key(relation, new)) != Some(*freed));
        own.places_of(new.map(|tuple| version(tuple)), freed.map(Key::name), || new.and_then(|new| changed_by(new)))
    }
}

/// Whether a table has triggers that fire before COPY inserts rows, or a partitioned table that it belongs to has.
///
/// # Safety
/// The relation is open, and the transaction holds locks on all partitioned tables that it belongs to, as COPY does.
unsafe fn has_triggers_before(relation: pg_sys::Relation) -> bool {
    // SAFETY: the relation is open and its ancestors are locked, as the caller promises. The trigger descriptor is null
    // for a table without triggers. The list has `length` OIDs.
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

/// Notes that a command begins to change rows. Returns its index, for [`leave`].
fn enter(number: pg_sys::CommandId, kind: Kind, phase: Phase) -> usize {
    // SAFETY: called inside a transaction; the function reads a variable of this backend.
    let subxid = unsafe { GetCurrentSubTransactionId() };
    if kind == Kind::Query {
        LATEST.set(LATEST.get().max(number));
    }
    COMMANDS.with_borrow_mut(|commands| {
        let (rank, touched, made) = (Rank::of(number), Touched::default(), BTreeMap::new());
        commands.push(Command { number, subxid, kind, phase, rank, touched, made, row: None });
        commands.len() - 1
    })
}

/// Notes that a statement begins that changes rows without the executor: COPY or TRUNCATE. Returns its index, for
/// [`leave`].
///
/// # Safety
/// `node` is a statement.
pub unsafe fn enter_statement(node: *mut pg_sys::Node) -> Option<usize> {
    // SAFETY: `node` is a statement, as the caller promises, and its tag says which struct it is.
    let kind = unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_CopyStmt if (*node.cast::<pg_sys::CopyStmt>()).is_from => Kind::Copy,
            pg_sys::NodeTag::T_TruncateStmt => Kind::Truncate,
            _ => return None,
        }
    };
    // SAFETY: inside a transaction; with `false` the function only reads a variable of this backend.
    Some(enter(unsafe { GetCurrentCommandId(false) }, kind, Phase::Running))
}

/// Notes that the command with this index has ended. Inner ones that an error left here are forgotten too.
pub fn leave(place: usize) {
    COMMANDS.with_borrow_mut(|commands| {
        if let Some(number) = commands.get(place).map(|command| command.number) {
            WAITING.with_borrow_mut(|waiting| waiting.forget_last(|command| command.number >= number));
        }
        commands.truncate(place);
    });
}

/// Notes that the executor begins to run a query that changes rows. Returns its index, for [`query_has_run`].
pub fn enter_query(number: pg_sys::CommandId) -> usize {
    enter(number, Kind::Query, Phase::Running)
}

/// Notes that the query with this index has changed its rows; its triggers will fire.
pub fn query_has_run(place: usize) {
    COMMANDS.with_borrow_mut(|commands| {
        commands.truncate(place + 1);
        if let Some(mut command) = commands.pop() {
            command.settle();
            if !command.is_plain() {
                WAITING.with_borrow_mut(|waiting| waiting.add(command));
            }
        }
    });
}

/// Notes that the triggers of a query begin to fire. Returns its index, for [`leave`].
pub fn enter_triggers(number: pg_sys::CommandId) -> usize {
    let Some(mut command) = WAITING.with_borrow_mut(|waiting| waiting.take(number)) else {
        return enter(number, Kind::Query, Phase::Firing);
    };
    command.phase = Phase::Firing;
    COMMANDS.with_borrow_mut(|commands| {
        commands.push(command);
        commands.len() - 1
    })
}
