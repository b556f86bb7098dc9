//! What a trigger's arguments ask for, compiled against its table once and kept until either changes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::rc::Rc;

use pgrx::prelude::*;
use tidings_wire::template::{Piece, Template};
use tidings_wire::topic::check_name;

use crate::columns::Columns;
use crate::errors::WatchError;
use crate::payload::{self, OldRecord, Operation, Outline, Table, Tuple};
use crate::value::TooLong;

/// A compiled watch.
pub struct Watch {
    relation: pg_sys::Oid,
    /// The table whose name is told: another one if `relation` is a partition of it.
    named: pg_sys::Oid,
    /// The columns of the table.
    pub columns: Columns,
    topic: Vec<TopicPiece>,
    /// The event name.
    pub event: String,
    /// How the payload of each operation looks.
    outlines: [Outline; 4],
    /// What is sent instead of one that is too long.
    truncated: [Outline; 4],
}

enum TopicPiece {
    Text(String),
    Column(usize),
}

thread_local! {
    static WATCHES: RefCell<BTreeMap<u32, Rc<Watch>>> = const { RefCell::new(BTreeMap::new()) };
    /// Counts invalidations, so that a watch compiled while one came in is not kept.
    static INVALIDATIONS: Cell<u64> = const { Cell::new(0) };
    /// The tables whose columns the running statement has altered.
    static ALTERED: RefCell<Vec<pg_sys::Oid>> = const { RefCell::new(Vec::new()) };
}

/// Registers the callbacks; called from `_PG_init`, inherited by every backend.
pub fn init() {
    // SAFETY: the functions have the right signatures and live as long as the process.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::from(0));
        pg_sys::CacheRegisterSyscacheCallback(
            pg_sys::SysCacheIdentifier::NAMESPACEOID as i32,
            Some(anything_changed),
            pg_sys::Datum::from(0),
        );
        // A cast to `json` changes how the values of its type are written.
        pg_sys::CacheRegisterSyscacheCallback(
            pg_sys::SysCacheIdentifier::CASTSOURCETARGET as i32,
            Some(anything_changed),
            pg_sys::Datum::from(0),
        );
    }
}

/// The watch that a trigger asks for.
pub fn of(data: &pg_sys::TriggerData) -> Rc<Watch> {
    // SAFETY: Postgres gives a trigger function its trigger.
    let trigger = unsafe { &*data.tg_trigger };
    let key = trigger.tgoid.to_u32();
    if let Some(watch) = WATCHES.with_borrow(|watches| watches.get(&key).cloned()) {
        return watch;
    }
    let before = INVALIDATIONS.get();
    // SAFETY: the relation is open and locked by the executor.
    let watch = unsafe { compile(trigger, data.tg_relation) }.unwrap_or_else(|error| error.raise());
    let watch = Rc::new(watch);
    if before == INVALIDATIONS.get() {
        WATCHES.with_borrow_mut(|watches| watches.insert(key, watch.clone()));
    }
    watch
}

/// `tidings.check_watch(relation, name)`: compiles the triggers of a watch only to see whether it can be done.
#[pg_extern]
fn check_watch(relation: pg_sys::Oid, name: &str) {
    // SAFETY: look-ups in the system caches, inside a transaction.
    if unsafe { pg_sys::get_rel_namespace(relation) == pg_sys::get_namespace_oid(c"tidings".as_ptr(), true) } {
        WatchError::Own.raise();
    }
    let names = [format!("tidings_{name}"), format!("tidings_{name}_truncate")];
    check(relation, |trigger| {
        // SAFETY: a trigger's name is a C string.
        let own_name = unsafe { CStr::from_ptr(trigger.tgname) }.to_bytes();
        names.iter().any(|name| name.as_bytes() == own_name)
    });
}

/// Remembers a table of which a column was altered or dropped.
pub fn column_altered(relation: pg_sys::Oid) {
    ALTERED.with_borrow_mut(|altered| {
        if altered.last() != Some(&relation) {
            altered.push(relation);
        }
    });
}

/// Forgets such tables, at the end of the transaction.
pub fn forget_altered() {
    ALTERED.take();
}

/// Compiles the watches of the tables that a statement has altered, and raises an error if one can no longer do its work: it is
/// better that the ALTER fails than every write after it.
pub fn check_altered() {
    for relation in ALTERED.take() {
        // SAFETY: inside a transaction; what the statement did becomes visible to this one.
        unsafe { pg_sys::CommandCounterIncrement() };
        check(relation, is_watch);
    }
}

/// Whether a trigger calls `tidings.capture()`. Asks the caches and no SQL: whoever alters a table may have no rights in the
/// schema, and whatever search path.
fn is_watch(trigger: &pg_sys::Trigger) -> bool {
    // SAFETY: look-ups in the system caches, inside a transaction; a name that is there is a C string.
    unsafe {
        let namespace = pg_sys::get_namespace_oid(c"tidings".as_ptr(), true);
        if namespace == pg_sys::InvalidOid || pg_sys::get_func_namespace(trigger.tgfoid) != namespace {
            return false;
        }
        let name = pg_sys::get_func_name(trigger.tgfoid);
        !name.is_null() && CStr::from_ptr(name) == c"capture"
    }
}

/// Compiles those triggers of a table, if it is still there, and raises what is wrong with them.
fn check(relation: pg_sys::Oid, which: impl Fn(&pg_sys::Trigger) -> bool) {
    // SAFETY: inside a transaction, which keeps the lock until its end.
    let relation = unsafe { pg_sys::try_relation_open(relation, pg_sys::AccessShareLock as i32) };
    if relation.is_null() {
        return;
    }
    // SAFETY: the relation is open; its descriptor of triggers is null, or holds `numtriggers` of them. It is copied, into the
    // statement's memory: an invalidation that comes in while a trigger is compiled frees the original, whatever the lock.
    let triggers = unsafe {
        pg_sys::CopyTriggerDesc((*relation).trigdesc).as_ref().map_or(&[][..], |descriptor| {
            std::slice::from_raw_parts(descriptor.triggers.cast_const(), descriptor.numtriggers.unsigned_abs() as usize)
        })
    };
    for trigger in triggers.iter().filter(|trigger| which(trigger)) {
        // SAFETY: the relation is open and locked.
        if let Err(error) = unsafe { compile(trigger, relation) } {
            error.raise();
        }
    }
    // SAFETY: opened above; the lock is kept.
    unsafe { pg_sys::relation_close(relation, pg_sys::NoLock as i32) };
}

/// The arguments of a trigger, as they stand.
#[derive(Default)]
struct Arguments<'a> {
    topic: Option<&'a str>,
    event: Option<&'a str>,
    payload: Option<&'a str>,
    old_record: Option<&'a str>,
    columns: Vec<&'a str>,
    exclude: Vec<&'a str>,
}

impl<'a> Arguments<'a> {
    fn parse(arguments: impl Iterator<Item = &'a str>) -> Result<Self, WatchError> {
        let mut parsed = Self::default();
        for argument in arguments {
            let (key, value) = argument.split_once('=').ok_or_else(|| WatchError::Argument(argument.into()))?;
            let (slot, name) = match key {
                "column" | "exclude" => {
                    let list = if key == "column" { &mut parsed.columns } else { &mut parsed.exclude };
                    list.push(value);
                    continue;
                }
                "topic" => (&mut parsed.topic, "topic"),
                "event" => (&mut parsed.event, "event"),
                "payload" => (&mut parsed.payload, "payload"),
                "old_record" => (&mut parsed.old_record, "old_record"),
                _ => return Err(WatchError::Argument(key.into())),
            };
            if slot.replace(value).is_some() {
                return Err(WatchError::Repeated(name));
            }
        }
        Ok(parsed)
    }
}

/// Compiles a trigger against its table.
///
/// # Safety
/// The relation is open and locked, and the trigger is one of its own.
unsafe fn compile(trigger: &pg_sys::Trigger, relation: pg_sys::Relation) -> Result<Watch, WatchError> {
    let kind = trigger.tgtype.unsigned_abs() as u32;
    let (row, truncate) = (kind & pg_sys::TRIGGER_TYPE_ROW != 0, kind & pg_sys::TRIGGER_TYPE_TRUNCATE != 0);
    if kind & (pg_sys::TRIGGER_TYPE_BEFORE | pg_sys::TRIGGER_TYPE_INSTEAD) != 0 || row == truncate {
        return Err(WatchError::Trigger);
    }
    // SAFETY: tgargs holds tgnargs C strings in the server's encoding, which the install script requires to be UTF-8.
    let arguments = (0..trigger.tgnargs as usize).map(|i| unsafe { CStr::from_ptr(*trigger.tgargs.add(i)) });
    let arguments: Vec<_> = arguments.map(CStr::to_string_lossy).collect();
    let arguments = Arguments::parse(arguments.iter().map(AsRef::as_ref))?;

    // SAFETY: as the caller promises.
    let columns = unsafe { Columns::of(relation, &arguments.columns, &arguments.exclude) }?;
    let template = arguments.topic.ok_or(WatchError::NoTopic)?;
    let topic = compile_topic(template, &columns)?;
    if truncate && topic.iter().any(|piece| matches!(piece, TopicPiece::Column(_))) {
        return Err(WatchError::TruncateTopic);
    }
    let event = arguments.event.unwrap_or("changed");
    check_name(event).map_err(|error| WatchError::Event(event.into(), error))?;
    // SAFETY: as the caller promises.
    let (schema, table, named) = unsafe { watched_name(trigger, relation) };
    let old_record = match arguments.old_record {
        None | Some("changed") => OldRecord::Changed,
        Some("full") => OldRecord::Full,
        Some("none") => OldRecord::None,
        Some(other) => return Err(WatchError::OldRecord(other.into())),
    };
    let (json, truncated) = match arguments.payload {
        None => (payload::DEFAULT, payload::DEFAULT_TRUNCATED),
        Some(json) => (json, payload::TRUNCATED),
    };
    let table = Table { columns: &columns, schema: &schema, name: &table, old_record };
    let compile = |json| -> Result<[Outline; 4], WatchError> {
        let [insert, update, delete, truncate] =
            Operation::ALL.map(|operation| Outline::compile(json, &table, operation));
        Ok([insert?, update?, delete?, truncate?])
    };
    let (outlines, truncated) = (compile(json)?, compile(truncated)?);
    // SAFETY: as the caller promises.
    let relation = unsafe { (*relation).rd_id };
    Ok(Watch { relation, named, columns, topic, event: event.into(), outlines, truncated })
}

fn compile_topic(text: &str, columns: &Columns) -> Result<Vec<TopicPiece>, WatchError> {
    let template = Template::parse(text).map_err(|error| WatchError::Template(text.into(), error))?;
    let bad = |error| WatchError::Topic(text.into(), error);
    let mut pieces = Vec::new();
    for piece in template.pieces() {
        pieces.push(match piece {
            Piece::Text(literal) => {
                check_name(literal).map_err(bad)?;
                TopicPiece::Text(literal.clone())
            }
            Piece::Hole(name) => TopicPiece::Column(columns.find(name)?),
        });
    }
    Ok(pieces)
}

/// Schema, name and OID of the table that was watched: a partition's trigger is a copy of the one on the table that is
/// partitioned, and subscribers know that table only.
///
/// # Safety
/// The relation is open and locked, and the trigger is one of its own.
unsafe fn watched_name(trigger: &pg_sys::Trigger, relation: pg_sys::Relation) -> (String, String, pg_sys::Oid) {
    // SAFETY: as the caller promises; the names are copied before anything else runs.
    let own = unsafe {
        let class = &*(*relation).rd_rel;
        let schema = pg_sys::get_namespace_name(class.relnamespace);
        let schema =
            if schema.is_null() { String::new() } else { CStr::from_ptr(schema).to_string_lossy().into_owned() };
        (schema, CStr::from_ptr(class.relname.data.as_ptr()).to_string_lossy().into_owned(), (*relation).rd_id)
    };
    if !trigger.tgisclone {
        return own;
    }
    // The writer's search path holds here, so every name has its schema, the operators' too.
    let root = Spi::get_three_with_args::<String, String, pg_sys::Oid>(
        "WITH RECURSIVE up AS (
             SELECT tgrelid, tgparentid FROM pg_catalog.pg_trigger WHERE oid OPERATOR(pg_catalog.=) $1
             UNION ALL
             SELECT t.tgrelid, t.tgparentid FROM pg_catalog.pg_trigger t, up WHERE t.oid OPERATOR(pg_catalog.=) up.tgparentid)
         SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text, c.oid
         FROM up, pg_catalog.pg_class c, pg_catalog.pg_namespace n
         WHERE up.tgparentid OPERATOR(pg_catalog.=) 0::pg_catalog.oid AND c.oid OPERATOR(pg_catalog.=) up.tgrelid
           AND n.oid OPERATOR(pg_catalog.=) c.relnamespace",
        &[trigger.tgoid.into()],
    );
    match root {
        Ok((Some(schema), Some(table), Some(named))) => (schema, table, named),
        _ => own,
    }
}

impl Watch {
    /// Writes a row's topic; false if a column of it is NULL, which means no event.
    pub fn write_topic(&self, out: &mut Vec<u8>, row: Option<&Tuple>) -> Result<bool, TooLong> {
        for piece in &self.topic {
            match piece {
                TopicPiece::Text(text) => out.extend_from_slice(text.as_bytes()),
                TopicPiece::Column(index) => match row.and_then(|row| row.get(*index)) {
                    Some(value) => self.columns.writer(*index).text(out, value)?,
                    None => return Ok(false),
                },
            }
        }
        Ok(true)
    }

    /// How the payload of an operation looks.
    pub fn outline(&self, operation: Operation) -> &Outline {
        &self.outlines[operation as usize]
    }

    /// What is sent if that is too long.
    pub fn truncated(&self, operation: Operation) -> &Outline {
        &self.truncated[operation as usize]
    }

    /// Whether two versions of a row go to the same topic.
    pub fn same_topic(&self, old: &Tuple, new: &Tuple) -> bool {
        self.topic.iter().all(|piece| match piece {
            TopicPiece::Text(_) => true,
            TopicPiece::Column(index) => self.columns.same(*index, old, new),
        })
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
    forget(|watch| [pg_sys::InvalidOid, watch.relation, watch.named].contains(&relation));
}

#[pg_guard]
unsafe extern "C-unwind" fn anything_changed(_arg: pg_sys::Datum, _cache: i32, _hash: u32) {
    forget(|_| true);
}

fn forget(stale: impl Fn(&Watch) -> bool) {
    INVALIDATIONS.set(INVALIDATIONS.get() + 1);
    WATCHES.with_borrow_mut(|watches| watches.retain(|_, watch| !stale(watch)));
}
