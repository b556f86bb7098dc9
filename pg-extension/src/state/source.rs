//! Where the rows of a topic come from: each source is one query, and how its rows become events.
//!
//! A watch that captures INSERT gives the rows of its table whose topic is the requested one. The query compares the
//! values in the topic's holes with the columns, by the columns' own types, so that it can use an index. It may find
//! other rows too (`05` equals 5, and some types ignore case), so each row's topic is rendered and compared as well.

use std::ffi::{CStr, CString, c_int};
use std::rc::Rc;

use pgrx::prelude::*;
use tidings_wire::Template;

use crate::capture::change::Operation;
use crate::capture::columns::Columns;
use crate::capture::payload::{self, PayloadPlan, WatchedTable};
use crate::capture::watch::{self, Watch};
use crate::capture::watches;
use crate::errors;
use crate::log::table::Table;
use crate::subscriber::{as_user, c_string};
use crate::value::user_code;

/// What the database has for the topics.
pub struct Found {
    /// The DBA's queries, in the order of the topics.
    pub queries: Vec<Query>,
    /// All watches that capture INSERT.
    watches: Vec<Trigger>,
}

/// A query that replaces the rows of the watches.
pub struct Query {
    /// The requested topic.
    pub topic: String,
    /// The name of the events.
    event: String,
    /// Its SQL, with `$1` for the values of the holes.
    sql: String,
    /// These values.
    holes: Vec<Option<String>>,
    /// The `search_path` under which its names are looked up.
    search_path: String,
}

/// The trigger of a watch.
struct Trigger {
    trigger: u32,
    relation: u32,
    /// Its arguments, in hexadecimal digits: each ends with a zero byte.
    arguments: String,
}

/// A watch whose template matches a topic.
#[derive(Clone, Copy)]
pub struct Matching<'f> {
    trigger: &'f Trigger,
    template: &'f Template,
}

/// The templates of the watches' topics, parsed.
pub struct Templates<'f>(Vec<(&'f Trigger, Template)>);

impl Found {
    /// Finds the sources of the topics: the watches and queries that exist now, even if the transaction's snapshot is
    /// older.
    pub fn of(topics: &[String]) -> Self {
        let Some(queries) = Table::open(c"snapshot_query", pg_sys::AccessShareLock) else {
            error!("tidings.snapshot_query does not exist");
        };
        let owner = queries.owner();
        let topics = topics.to_vec().into_datum().unwrap_or_else(pg_sys::Datum::null);
        // SAFETY: a query with one parameter of this type; its only row has one text.
        let json = as_user(owner, || unsafe { one_text(c"SELECT tidings.row_sources($1)", topics) });
        type Queries = Vec<(String, String, String, Vec<Option<String>>, String)>;
        let (queries, watches): (Queries, Vec<(u32, u32, String)>) = serde_json::from_str(&json)
            .unwrap_or_else(|error| error!("tidings.row_sources() gave no sources: {error}"));
        let query = |(topic, event, sql, holes, search_path)| Query { topic, event, sql, holes, search_path };
        let trigger = |(trigger, relation, arguments)| Trigger { trigger, relation, arguments };
        Self { queries: queries.into_iter().map(query).collect(), watches: watches.into_iter().map(trigger).collect() }
    }

    /// The templates of the watches.
    pub fn templates(&self) -> Templates<'_> {
        let parsed =
            self.watches.iter().filter_map(|trigger| Some((trigger, Template::parse(&trigger.topic()?).ok()?)));
        Templates(parsed.collect())
    }
}

impl<'f> Templates<'f> {
    /// The watches whose template matches.
    pub fn matching<'t>(&'t self, topic: &str) -> impl Iterator<Item = Matching<'t>> {
        self.0
            .iter()
            .filter(move |(_, template)| template.matches(topic).is_some())
            .map(|(trigger, template)| Matching { trigger, template })
    }
}

impl Trigger {
    fn topic(&self) -> Option<String> {
        let digits = self.arguments.as_bytes().chunks_exact(2);
        let bytes: Option<Vec<u8>> =
            digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect();
        let bytes = bytes?;
        let topic = bytes.split(|byte| *byte == 0).find_map(|argument| argument.strip_prefix(b"topic="))?;
        String::from_utf8(topic.to_vec()).ok()
    }
}

/// The only text of the only row of a query with a text[] as its parameter. The query sees what is committed by now.
///
/// # Safety
/// The query is of this form.
unsafe fn one_text(query: &CStr, parameter: pg_sys::Datum) -> String {
    // SAFETY: as the caller promises; the text is copied before SPI frees it.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
        pg_sys::SPI_connect();
        let (mut types, mut values) = ([pg_sys::TEXTARRAYOID], [parameter]);
        pg_sys::SPI_execute_with_args(
            query.as_ptr(),
            1,
            types.as_mut_ptr(),
            values.as_mut_ptr(),
            std::ptr::null(),
            true,
            1,
        );
        let table = pg_sys::SPI_tuptable;
        let mut is_null = true;
        let text = match pg_sys::SPI_processed {
            0 => None,
            _ => String::from_datum(pg_sys::SPI_getbinval(*(*table).vals, (*table).tupdesc, 1, &mut is_null), is_null),
        };
        pg_sys::SPI_finish();
        pg_sys::PopActiveSnapshot();
        text.unwrap_or_default()
    }
}

/// One query, and how its rows become events.
pub struct Source {
    /// The topic.
    pub topic: String,
    /// The name of the events.
    pub event: String,
    /// The query, its parameters and their types.
    pub sql: CString,
    pub types: Vec<pg_sys::Oid>,
    pub values: Vec<pg_sys::Datum>,
    /// The `search_path` under which its names are looked up, if it is not that of the reading.
    pub search_path: Option<CString>,
    /// How rows are rendered. For a DBA's query, this is known only once its cursor is open.
    pub shape: Option<Shape>,
}

/// How the rows of a query become payloads.
pub struct Shape {
    rows: Rows,
    /// For each column of the query, its index in the row.
    pub places: Vec<usize>,
    pub plan: PayloadPlan,
    pub truncated_plan: PayloadPlan,
}

enum Rows {
    /// The rows of a watched table.
    Watched(Rc<Watch>),
    /// The rows of a DBA's query.
    Queried(Columns),
}

impl Shape {
    /// The columns of a row.
    pub fn columns(&self) -> &Columns {
        match &self.rows {
            Rows::Watched(watch) => &watch.columns,
            Rows::Queried(columns) => columns,
        }
    }

    /// The watch, if the rows come from a watched table.
    pub fn watch(&self) -> Option<&Watch> {
        match &self.rows {
            Rows::Watched(watch) => Some(watch),
            Rows::Queried(_) => None,
        }
    }

    /// How the rows of a DBA's query are rendered: a single JSON value is the payload, other rows become objects.
    pub fn of_query(descriptor: &pgrx::PgTupleDesc<'_>) -> Self {
        let columns = Columns::of_descriptor(descriptor, &[], &[]).unwrap_or_else(|error| error.raise());
        let is_json = |attribute: &pg_sys::FormData_pg_attribute| {
            // SAFETY: a look-up in the system caches, inside a transaction.
            [pg_sys::JSONOID, pg_sys::JSONBOID].contains(&unsafe { pg_sys::getBaseType(attribute.atttypid) })
        };
        let is_value = descriptor.len() == 1 && descriptor.get(0).is_some_and(is_json);
        let table = WatchedTable { columns: &columns, schema: "", name: "", old_record: payload::OldRecord::None };
        let compile =
            |json| PayloadPlan::compile(json, &table, Operation::Snapshot).unwrap_or_else(|error| error.raise());
        let plan = if is_value { PayloadPlan::of_column(0) } else { compile("\"$record\"") };
        let truncated_plan = compile(payload::TRUNCATED);
        Self { places: (0..columns.count()).collect(), rows: Rows::Queried(columns), plan, truncated_plan }
    }
}

impl Source {
    /// The source of a DBA's query.
    pub fn of_query(query: Query) -> Self {
        let holes = query.holes.into_datum().unwrap_or_else(pg_sys::Datum::null);
        Self {
            topic: query.topic,
            event: query.event,
            sql: c_string(&query.sql),
            types: vec![pg_sys::TEXTARRAYOID],
            values: vec![holes],
            search_path: Some(c_string(&query.search_path)),
            shape: None,
        }
    }

    /// The source of a watch; `None` if no row of its table can have the topic. Names in the query are looked up as the
    /// current user, with the current search path.
    pub fn of_watch(topic: &str, matching: Matching<'_>) -> Option<Self> {
        let Matching { trigger: found, template } = matching;
        let (mut is_there, mut source) = (false, None);
        watch::with_triggers(found.relation.into(), |trigger, relation| {
            if trigger.tgoid.to_u32() == found.trigger {
                is_there = true;
                // SAFETY: the relation is open and locked, and the trigger is one of its own.
                source = unsafe { watched(topic, template, trigger, relation) };
            }
        });
        if !is_there {
            // Without this error, the list would lack a whole table and look complete.
            errors::raise(
                PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
                "a watch was removed or replaced meanwhile",
                "Try again.",
            );
        }
        source
    }
}

/// # Safety
/// The relation is open and locked, and the trigger is one of its own.
unsafe fn watched(
    topic: &str,
    template: &Template,
    trigger: &pg_sys::Trigger,
    relation: pg_sys::Relation,
) -> Option<Source> {
    // SAFETY: as the caller promises.
    let (watch, descriptor) =
        unsafe { (watches::of_trigger(trigger, relation), pgrx::PgTupleDesc::from_pg_unchecked((*relation).rd_att)) };
    let [plan, truncated_plan] = watch.snapshot_plans().unwrap_or_else(|error| error.raise());
    let mut places: Vec<usize> = watch.topic_columns().chain(plan.columns()).collect();
    places.sort_unstable();
    places.dedup();
    let column = |index: usize| {
        let attribute = descriptor.get(index).expect("a compiled watch names columns of its table");
        (format!("new.{}", quoted(attribute.name())), attribute.atttypid)
    };
    let (mut types, mut values, mut conditions) = (Vec::new(), Vec::new(), Vec::new());
    for (index, text) in watch.topic_columns().zip(template.matches(topic)?) {
        let (column, type_oid) = column(index);
        // SAFETY: a look-up in the system caches, inside a transaction.
        let base = unsafe { pg_sys::getBaseType(type_oid) };
        let value = parsed(base, text)?;
        if let Some(equals) = equality(base) {
            types.push(base);
            values.push(value);
            conditions.push(format!("{column} {equals} ${}", types.len()));
        }
    }
    // SAFETY: as the caller promises.
    unsafe { conditions.extend(condition(trigger, relation).map(|condition| format!("({condition})"))) };
    let columns: Vec<String> = places.iter().map(|index| column(*index).0).collect();
    // SAFETY: as the caller promises.
    let mut sql = format!("SELECT {} FROM {} AS new", columns.join(", "), unsafe { table_name(relation) });
    for (n, condition) in conditions.iter().enumerate() {
        sql += if n == 0 { " WHERE " } else { " AND " };
        sql += condition;
    }
    Some(Source {
        topic: topic.into(),
        event: watch.event.clone(),
        sql: c_string(&sql),
        types,
        values,
        search_path: None,
        shape: Some(Shape { rows: Rows::Watched(watch), places, plan, truncated_plan }),
    })
}

/// A text as a value of the type, which is not a domain; `None` if the type does not accept the text.
fn parsed(base: pg_sys::Oid, text: &str) -> Option<pg_sys::Datum> {
    let text = CString::new(text).ok()?;
    let (mut input, mut parameter) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
    // SAFETY: the input function of an existing type takes a C string; its result lies in the current context.
    let parse = || unsafe {
        pg_sys::getTypeInputInfo(base, &mut input, &mut parameter);
        pg_sys::OidInputFunctionCall(input, text.as_ptr().cast_mut(), parameter, -1)
    };
    user_code::run(parse).ok()
}

/// The equality operator of the type, which its indexes support; `None` if the type has none.
fn equality(base: pg_sys::Oid) -> Option<String> {
    // SAFETY: look-ups in the system caches, inside a transaction; a tuple of `pg_operator` has its form, and is
    // released after it.
    unsafe {
        let operator = (*pg_sys::lookup_type_cache(base, pg_sys::TYPECACHE_EQ_OPR as c_int)).eq_opr;
        if operator == pg_sys::InvalidOid {
            return None;
        }
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::OPEROID as i32, operator.into());
        if tuple.is_null() {
            return None;
        }
        let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_operator>();
        let (name, namespace) = (name_data_to_str(&form.oprname).to_owned(), form.oprnamespace);
        pg_sys::ReleaseSysCache(tuple);
        let schema = pg_sys::get_namespace_name(namespace);
        if schema.is_null() {
            return None;
        }
        Some(format!("OPERATOR({}.{name})", quoted(&CStr::from_ptr(schema).to_string_lossy())))
    }
}

/// The condition of a trigger, as SQL about a row that is called `new`.
///
/// # Safety
/// The relation is open and locked, and the trigger is one of its own, for INSERT, so that its condition has no OLD.
unsafe fn condition(trigger: &pg_sys::Trigger, relation: pg_sys::Relation) -> Option<String> {
    if trigger.tgqual.is_null() {
        return None;
    }
    // SAFETY: as the caller promises. The stored expression refers to NEW, the second of two rows.
    unsafe {
        let expression = pg_sys::stringToNode(trigger.tgqual).cast::<pg_sys::Node>();
        pg_sys::ChangeVarNodes(expression, pg_sys::PRS2_NEW_VARNO as c_int, 1, 0);
        let context = pg_sys::deparse_context_for(c"new".as_ptr(), (*relation).rd_id);
        let text = pg_sys::deparse_expression(expression, context, true, false);
        Some(CStr::from_ptr(text).to_string_lossy().into_owned())
    }
}

/// The table as it stands after FROM. A partitioned table is read with its partitions, which inherit its watches. A
/// table that others inherit from is read alone (ONLY), because they inherit no triggers.
///
/// # Safety
/// The relation is open and locked.
unsafe fn table_name(relation: pg_sys::Relation) -> String {
    // SAFETY: as the caller promises; the names are copied at once.
    unsafe {
        let class = &*(*relation).rd_rel;
        let schema = pg_sys::get_namespace_name(class.relnamespace);
        let full = pg_sys::quote_qualified_identifier(schema, class.relname.data.as_ptr());
        let only = if class.relkind as u8 == pg_sys::RELKIND_PARTITIONED_TABLE { "" } else { "ONLY " };
        format!("{only}{}", CStr::from_ptr(full).to_string_lossy())
    }
}

/// A name as it stands in SQL.
fn quoted(identifier: &str) -> String {
    let identifier = c_string(identifier);
    // SAFETY: takes and returns a C string, which is copied at once.
    unsafe { CStr::from_ptr(pg_sys::quote_identifier(identifier.as_ptr())).to_string_lossy().into_owned() }
}
