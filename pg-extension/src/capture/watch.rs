//! A watch: a trigger's arguments, parsed and compiled against its table. [`crate::capture::watches`] caches compiled
//! watches.

use std::cell::RefCell;
use std::ffi::{CStr, c_char};

use pgrx::prelude::*;
use tidings_wire::template::{Ambiguous, Piece, Template, TemplateError, check_separated};
use tidings_wire::topic::{MAX_NAME, check_name};

use crate::capture::change::{Operation, Tuple};
use crate::capture::columns::Columns;
use crate::capture::payload::{self, OldRecord, PayloadPlan, WatchedTable};
use crate::errors::WatchError;
use crate::value::writer::NoText;
use crate::{catalog, preload};

/// Everything that a watch is compiled from. Equal sources compile to equal watches.
#[derive(PartialEq, Eq)]
pub struct Source {
    /// Whether it watches TRUNCATE instead of rows.
    truncate: bool,
    /// The arguments of the trigger.
    arguments: Vec<String>,
    /// The watched table: for the trigger of a partition, the partitioned table.
    pub named: pg_sys::Oid,
    /// Its schema and name.
    schema: String,
    table: String,
    /// The columns of the table that has the trigger: name, type, and how they are generated. `None` for dropped
    /// columns.
    columns: Vec<Option<(String, pg_sys::Oid, c_char)>>,
}

/// A compiled watch.
pub struct Watch {
    /// What it was compiled from.
    pub source: Source,
    /// The columns of the table.
    pub columns: Columns,
    topic: Vec<TopicPiece>,
    /// The topic template and what is wrong with it, if it is one that is not allowed for new watches.
    refused: Option<(String, TemplateError)>,
    /// Whether it is a guard: its events only make proxies ask again who may subscribe.
    pub is_guard: bool,
    /// The topic template as it was given.
    pub template: String,
    /// The event name.
    pub event: String,
    /// The payload of each operation.
    plans: [PayloadPlan; 4],
    /// What is sent for each operation instead of a payload that is too long.
    truncated_plans: [PayloadPlan; 4],
}

enum TopicPiece {
    Text(String),
    /// Text that the value before it must not contain.
    Separator(String),
    Column(usize),
}

/// Why a row has no topic.
#[derive(Debug, thiserror::Error)]
pub enum NoTopic {
    #[error(transparent)]
    Text(#[from] NoText),
    #[error(transparent)]
    Ambiguous(#[from] Ambiguous),
    /// An older version, which allowed this, created the watch.
    #[error("{0}: create the watch again")]
    Refused(TemplateError),
}

thread_local! {
    /// The tables of which the running statement has altered columns.
    static ALTERED: RefCell<Vec<pg_sys::Oid>> = const { RefCell::new(Vec::new()) };
}

/// `tidings.check_watch(relation, name)`: compiles the triggers of a watch, to find out whether that is possible.
#[pg_extern]
fn check_watch(relation: pg_sys::Oid, name: &str) {
    preload::require();
    // SAFETY: a look-up in the system caches, inside a transaction.
    if catalog::schema() == Some(unsafe { pg_sys::get_rel_namespace(relation) }) {
        WatchError::Own.raise();
    }
    let names = [format!("tidings_{name}"), format!("tidings_{name}_truncate")];
    let is_named = |trigger: &pg_sys::Trigger| {
        // SAFETY: the trigger is one of the relation's, and its name is a C string.
        let own_name = unsafe { CStr::from_ptr(trigger.tgname) }.to_bytes();
        names.iter().any(|name| name.as_bytes() == own_name)
    };
    check(relation, is_named, |watch| match watch.refused {
        Some((topic, error)) => Err(WatchError::Template(topic, error)),
        None => Ok(()),
    });
}

/// Remembers that a column of the table was altered or dropped.
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

/// Compiles the watches of the tables that a statement has altered, and raises an error if a watch no longer works: it
/// is better that the ALTER fails than every later write.
///
/// A statement that failed after it had altered a column leaves its table in the list. If that happened in a savepoint,
/// ROLLBACK TO comes here next, while the subtransaction is aborted. A lock that is taken then outlives its resource
/// owner, and the commit of the transaction brings the server down. There is nothing to check: the change is undone.
pub fn check_altered() {
    let altered = ALTERED.take();
    // SAFETY: reads a variable of this backend.
    if altered.is_empty() || !unsafe { pg_sys::IsTransactionState() } {
        return;
    }
    for relation in altered {
        // SAFETY: inside a transaction, between two statements. It makes the effects of the statement visible.
        unsafe { pg_sys::CommandCounterIncrement() };
        check(relation, is_watch, |_| Ok(()));
    }
}

/// Whether a trigger calls `tidings.capture()`. This looks into the system caches instead of using SQL, because the
/// role that alters a table may have no rights in the schema, and any search path.
fn is_watch(trigger: &pg_sys::Trigger) -> bool {
    let Some(schema) = catalog::schema() else { return false };
    // SAFETY: look-ups in the system caches, inside a transaction; a name that is not null is a C string.
    unsafe {
        if pg_sys::get_func_namespace(trigger.tgfoid) != schema {
            return false;
        }
        let name = pg_sys::get_func_name(trigger.tgfoid);
        !name.is_null() && CStr::from_ptr(name) == c"capture"
    }
}

/// Compiles the triggers of a table that `which` selects, if the table still exists. Raises their errors and those of
/// `and`.
fn check(
    relation: pg_sys::Oid,
    which: impl Fn(&pg_sys::Trigger) -> bool,
    and: impl Fn(Watch) -> Result<(), WatchError>,
) {
    with_triggers(relation, |trigger, relation| {
        if which(trigger) {
            // SAFETY: `with_triggers` passes an open and locked relation with one of its triggers.
            let watch = unsafe { Source::of(trigger, relation).and_then(|source| Watch::compile(source, relation)) };
            watch.and_then(&and).unwrap_or_else(|error| error.raise());
        }
    });
}

/// Visits the watches of a table, if it exists.
pub fn for_each(relation: pg_sys::Oid, mut body: impl FnMut(&pg_sys::Trigger)) {
    with_triggers(relation, |trigger, _| {
        if is_watch(trigger) {
            body(trigger);
        }
    });
}

/// Visits all triggers of a table, if it exists.
pub fn with_triggers(relation: pg_sys::Oid, mut body: impl FnMut(&pg_sys::Trigger, pg_sys::Relation)) {
    // SAFETY: inside a transaction, which holds the lock until its end.
    let relation = unsafe { pg_sys::try_relation_open(relation, pg_sys::AccessShareLock as i32) };
    if relation.is_null() {
        return;
    }
    // SAFETY: the relation is open. Its trigger descriptor is null or has `numtriggers` triggers. The descriptor is
    // copied into the statement's memory, because an invalidation that arrives while a trigger is compiled frees the
    // original in spite of the lock.
    let triggers = unsafe {
        pg_sys::CopyTriggerDesc((*relation).trigdesc).as_ref().map_or(&[][..], |descriptor| {
            std::slice::from_raw_parts(descriptor.triggers.cast_const(), descriptor.numtriggers.unsigned_abs() as usize)
        })
    };
    triggers.iter().for_each(|trigger| body(trigger, relation));
    // SAFETY: the relation was opened above. The lock is kept.
    unsafe { pg_sys::relation_close(relation, pg_sys::NoLock as i32) };
}

/// The arguments of a trigger, not yet checked.
#[derive(Default)]
struct Arguments<'a> {
    topic: Option<&'a str>,
    event: Option<&'a str>,
    payload: Option<&'a str>,
    old_record: Option<&'a str>,
    guard: Option<&'a str>,
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
                "guard" => (&mut parsed.guard, "guard"),
                _ => return Err(WatchError::Argument(key.into())),
            };
            if slot.replace(value).is_some() {
                return Err(WatchError::Repeated(name));
            }
        }
        Ok(parsed)
    }

    /// Whether they are those of a guard, whose events have no content.
    fn is_guard(&self) -> Result<bool, WatchError> {
        let Self { event, payload, old_record, columns, exclude, .. } = self;
        match self.guard {
            None => Ok(false),
            Some("true") if [event, payload, old_record].iter().any(|argument| argument.is_some()) => {
                Err(WatchError::Guard)
            }
            Some("true") if columns.is_empty() && exclude.is_empty() => Ok(true),
            Some(_) => Err(WatchError::Guard),
        }
    }

    /// The payload with its placeholders, and what is sent instead of one that is too long.
    fn payloads(&self) -> [&'a str; 2] {
        match self.payload {
            None => [payload::DEFAULT, payload::DEFAULT_TRUNCATED],
            Some(json) => [json, payload::TRUNCATED],
        }
    }
}

impl Source {
    /// The source of a trigger's watch.
    ///
    /// # Safety
    /// The relation is open and locked, and the trigger is one of its triggers.
    pub unsafe fn of(trigger: &pg_sys::Trigger, relation: pg_sys::Relation) -> Result<Self, WatchError> {
        let kind = trigger.tgtype.unsigned_abs() as u32;
        let (row, truncate) = (kind & pg_sys::TRIGGER_TYPE_ROW != 0, kind & pg_sys::TRIGGER_TYPE_TRUNCATE != 0);
        if kind & (pg_sys::TRIGGER_TYPE_BEFORE | pg_sys::TRIGGER_TYPE_INSTEAD) != 0 || row == truncate {
            return Err(WatchError::Trigger);
        }
        // SAFETY: a trigger has `tgnargs` arguments, which are C strings. Their encoding is UTF-8, because the install
        // script requires it of the database.
        let arguments = (0..trigger.tgnargs as usize).map(|i| unsafe { CStr::from_ptr(*trigger.tgargs.add(i)) });
        let arguments = arguments.map(|argument| argument.to_string_lossy().into_owned()).collect();
        // SAFETY: the relation is open and locked and has the trigger, as the caller promises.
        let (descriptor, (schema, table, named)) =
            unsafe { (pgrx::PgTupleDesc::from_pg_unchecked((*relation).rd_att), watched_name(trigger, relation)) };
        let columns = (0..descriptor.len()).map(|i| {
            let attribute = descriptor.get(i).filter(|attribute| !attribute.attisdropped)?;
            Some((attribute.name().to_owned(), attribute.atttypid, attribute.attgenerated))
        });
        Ok(Self { truncate, arguments, named, schema, table, columns: columns.collect() })
    }
}

impl Watch {
    /// Compiles a trigger's arguments.
    ///
    /// # Safety
    /// The relation is open and locked, and the source is of a trigger of it.
    pub unsafe fn compile(source: Source, relation: pg_sys::Relation) -> Result<Self, WatchError> {
        let arguments = Arguments::parse(source.arguments.iter().map(String::as_str))?;
        // SAFETY: the relation is open and locked, as the caller promises.
        let columns = unsafe { Columns::of(relation, &arguments.columns, &arguments.exclude) }?;
        let text = arguments.topic.ok_or(WatchError::NoTopic)?;
        let template = Template::parse_any(text).map_err(|error| WatchError::Template(shown(text), error))?;
        let topic = compile_topic(text, &template, &columns)?;
        let refused = template.check().err().map(|error| (shown(text), error));
        let is_guard = arguments.is_guard()?;
        // A guard's TRUNCATE is about all topics of its template.
        if source.truncate && !is_guard && topic.iter().any(|piece| matches!(piece, TopicPiece::Column(_))) {
            return Err(WatchError::TruncateTopic);
        }
        let event = arguments.event.unwrap_or("changed").to_owned();
        check_name(&event).map_err(|error| WatchError::Event(event.clone(), error))?;
        let old_record = match arguments.old_record {
            None | Some("changed") => OldRecord::Changed,
            Some("full") => OldRecord::Full,
            Some("none") => OldRecord::None,
            Some(other) => return Err(WatchError::OldRecord(other.into())),
        };
        let [json, truncated] = arguments.payloads();
        let table = WatchedTable { columns: &columns, schema: &source.schema, name: &source.table, old_record };
        let compile = |json| -> Result<[PayloadPlan; 4], WatchError> {
            let [insert, update, delete, truncate] =
                Operation::ALL.map(|operation| PayloadPlan::compile(json, &table, operation));
            Ok([insert?, update?, delete?, truncate?])
        };
        let (plans, truncated_plans) = (compile(json)?, compile(truncated)?);
        let template = text.to_owned();
        Ok(Self { source, columns, topic, refused, is_guard, template, event, plans, truncated_plans })
    }
}

/// A template as an error shows it: a long one is cut.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_NAME).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

fn compile_topic(text: &str, template: &Template, columns: &Columns) -> Result<Vec<TopicPiece>, WatchError> {
    let bad = |error| WatchError::Topic(shown(text), error);
    let mut pieces = Vec::new();
    for (index, piece) in template.pieces().iter().enumerate() {
        pieces.push(match piece {
            Piece::Text(literal) => {
                check_name(literal).map_err(bad)?;
                let is_separator = template.is_separator(index);
                if is_separator { TopicPiece::Separator(literal.clone()) } else { TopicPiece::Text(literal.clone()) }
            }
            Piece::Hole(name) => TopicPiece::Column(columns.find(name)?),
        });
    }
    Ok(pieces)
}

/// Schema, name and OID of the watched table. A partition's trigger is a copy of the partitioned table's trigger, and
/// subscribers know only the partitioned table.
///
/// # Safety
/// The relation is open and locked, and the trigger is one of its triggers.
unsafe fn watched_name(trigger: &pg_sys::Trigger, relation: pg_sys::Relation) -> (String, String, pg_sys::Oid) {
    // SAFETY: the relation is open, as the caller promises. The names are C strings, and copied before anything else
    // runs.
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
    // This runs with the writer's search path, so every name has its schema, and so has every operator.
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
    /// Appends a row's topic. Returns false if one of its columns is NULL: then there is no event.
    pub fn write_topic(&self, out: &mut Vec<u8>, row: Option<&Tuple>) -> Result<bool, NoTopic> {
        if let Some((_, error)) = &self.refused {
            return Err(NoTopic::Refused(*error));
        }
        let mut value_at = 0;
        for piece in &self.topic {
            match piece {
                TopicPiece::Text(text) => out.extend_from_slice(text.as_bytes()),
                TopicPiece::Separator(text) => {
                    out.extend_from_slice(text.as_bytes());
                    // A guard's topic need not be read again: all who are subscribed to this text are asked.
                    if !self.is_guard {
                        check_separated(&out[value_at..], text)?;
                    }
                }
                TopicPiece::Column(index) => match row.and_then(|row| self.columns.value(*index, row)) {
                    Some(value) => {
                        value_at = out.len();
                        self.columns.writer(*index).text(out, value)?;
                    }
                    None => return Ok(false),
                },
            }
        }
        Ok(true)
    }

    /// The payload of an operation.
    pub fn plan(&self, operation: Operation) -> &PayloadPlan {
        &self.plans[operation as usize]
    }

    /// What is sent if that payload is too long.
    pub fn truncated_plan(&self, operation: Operation) -> &PayloadPlan {
        &self.truncated_plans[operation as usize]
    }

    /// The payload of a row that is there, and what is sent if that is too long.
    pub fn snapshot_plans(&self) -> Result<[PayloadPlan; 2], WatchError> {
        let Source { schema, table, arguments, .. } = &self.source;
        let [json, truncated] = Arguments::parse(arguments.iter().map(String::as_str))?.payloads();
        let table = WatchedTable { columns: &self.columns, schema, name: table, old_record: OldRecord::None };
        let compile = |json| PayloadPlan::compile(json, &table, Operation::Snapshot);
        Ok([compile(json)?, compile(truncated)?])
    }

    /// The columns in the topic, in the order of the template's holes.
    pub fn topic_columns(&self) -> impl Iterator<Item = usize> {
        self.topic.iter().filter_map(|piece| match piece {
            TopicPiece::Column(index) => Some(*index),
            TopicPiece::Text(_) | TopicPiece::Separator(_) => None,
        })
    }

    /// Whether all columns in the topic have the same values in two versions of a row.
    pub fn same_topic(&self, old: &Tuple, new: &Tuple) -> bool {
        self.topic.iter().all(|piece| match piece {
            TopicPiece::Text(_) | TopicPiece::Separator(_) => true,
            TopicPiece::Column(index) => self.columns.same(*index, old, new),
        })
    }
}
