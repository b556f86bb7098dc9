//! Values in an event are what `to_jsonb` makes of the row, whatever the type and the session's settings.
//!
//! The property test draws tables over all families of types and rows with all that is odd, and lets Postgres judge.
//! `PROPTEST_CASES` sets how many; a failure prints the table and is shrunk first.

use std::cell::RefCell;
use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use tidings_tests::{Session, shared};

use crate::log::{Event, Log};

/// A column's type.
#[derive(Clone, Debug)]
enum Type {
    /// A built-in one: its name, and how its values are drawn.
    Base(&'static str, Family),
    /// An array; the number of dimensions of its values.
    Array(Box<Type>, usize),
    Domain(Box<Type>),
    Composite(Vec<Type>),
    Enum(Vec<String>),
    /// A range over text, and its multirange.
    TextRange,
}

/// Which values a built-in type has.
#[derive(Clone, Copy, Debug)]
enum Family {
    OneOf(&'static [&'static str]),
    Int(i64, i64),
    Numeric,
    Float4,
    Float8,
    Text(usize),
    Bytes,
    Bits(usize, usize),
    Uuid,
    Date,
    Time(&'static str),
    Timestamp(&'static str),
    Interval,
    Json,
    Range(&'static str, &'static str),
}

use Family::*;

const BASES: &[(&str, Family)] = &[
    ("bool", OneOf(&["t", "f"])),
    ("int2", Int(i16::MIN as i64, i16::MAX as i64)),
    ("int4", Int(i32::MIN as i64, i32::MAX as i64)),
    ("int8", Int(i64::MIN, i64::MAX)),
    ("oid", Int(0, u32::MAX as i64)),
    ("numeric", Numeric),
    ("float4", Float4),
    ("float8", Float8),
    ("money", OneOf(&["0", "-0.01", "12.34", "92233720368547758.07", "-92233720368547758.08"])),
    ("text", Text(40)),
    ("text", Text(9000)),
    ("varchar(20)", Text(20)),
    ("char(20)", Text(20)),
    ("name", Text(15)),
    ("\"char\"", OneOf(&["", "a", "\"", "\\"])),
    ("bytea", Bytes),
    ("uuid", Uuid),
    ("date", Date),
    ("time", Time("")),
    ("timetz(3)", Time("+05:30")),
    ("timestamp", Timestamp("")),
    ("timestamptz", Timestamp("-03:30")),
    ("timestamptz(0)", Timestamp("Z")),
    ("interval", Interval),
    ("inet", OneOf(&["10.1.2.3", "10.1.2.3/8", "::1", "2001:db8::ff00:42:8329/64", "0.0.0.0/0"])),
    ("cidr", OneOf(&["10.0.0.0/8", "2001:db8::/32", "255.255.255.255"])),
    ("macaddr", OneOf(&["08:00:2b:01:02:03", "ff-ff-ff-ff-ff-ff"])),
    ("macaddr8", OneOf(&["08:00:2b:01:02:03:04:05"])),
    ("bit(7)", Bits(7, 7)),
    ("varbit", Bits(0, 70)),
    ("point", OneOf(&["(0,0)", "(-1.5e-300,2e300)", "(NaN,Infinity)", "(0.1,-0)"])),
    ("line", OneOf(&["{1,2,3}", "{-1.5,0,0.3}"])),
    ("lseg", OneOf(&["[(0,0),(1,1)]"])),
    ("box", OneOf(&["(1,1),(0,0)", "(1e10,2),(-1,-2.25)"])),
    ("path", OneOf(&["((0,0),(1,1),(2,0))", "[(0,0),(1,1)]"])),
    ("polygon", OneOf(&["((0,0),(1,1),(2,0))", "((0.1,0.2))"])),
    ("circle", OneOf(&["<(0,0),1>", "<(1.5,-2.5),0>"])),
    ("json", Json),
    ("jsonb", Json),
    ("jsonpath", OneOf(&["$.a[*] ? (@ > 1)", "strict $.\"x\\\"y\""])),
    ("tsvector", OneOf(&["", "'a':1A,2 'b c':3B", "'''' '\\\\':7", "fat cat"])),
    ("tsquery", OneOf(&["'a' & !('b' | 'c':*)", "'it''s' <-> 'x':AB"])),
    ("int4range", Range("-5", "2147483646")),
    ("int8range", Range("-9223372036854775808", "17")),
    ("numrange", Range("-1.50", "1e20")),
    ("daterange", Range("2000-02-29", "2024-12-31")),
    ("tsrange", Range("2000-02-29 00:00", "2024-12-31 23:59:59.999999")),
    ("tstzrange", Range("2000-02-29 00:00Z", "2024-12-31 23:59:59Z")),
    ("int4multirange", OneOf(&["{}", "{[1,3),[5,7)}", "{(,)}"])),
    ("tstzmultirange", OneOf(&["{}", "{[2000-01-01 00:00Z,2000-01-02 00:00Z),[2024-06-01 12:00Z,)}"])),
    ("pg_lsn", OneOf(&["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"])),
    ("xid", OneOf(&["0", "4294967295"])),
    ("xid8", OneOf(&["0", "18446744073709551615"])),
    ("tid", OneOf(&["(0,1)", "(4294967295,65535)"])),
    ("pg_snapshot", OneOf(&["10:20:10,14,15"])),
    ("oidvector", OneOf(&["", "1 2 3"])),
    ("int2vector", OneOf(&["", "-1 2"])),
    ("regclass", OneOf(&["pg_class", "pg_catalog.pg_type"])),
    ("regtype", OneOf(&["int4", "timestamptz"])),
    ("aclitem", OneOf(&["postgres=arwdDxt/postgres"])),
    ("refcursor", Text(10)),
    (
        "xml",
        OneOf(&[
            "",
            "<a/>",
            "<a b=\"1\">&lt;é</a>",
            "text &amp; more",
            "<?xml version=\"1.0\"?><a/>",
            "<a>\n\t\"'</a>",
        ]),
    ),
];

/// Text with everything that JSON, SQL, arrays and composites have to escape.
fn text(most: usize) -> BoxedStrategy<String> {
    let odd = prop::sample::select(
        "\"'\\/{}()[],;:$%&<>\n\r\t\u{8}\u{c}\u{1}\u{1f}\u{7f}\u{85}\u{2028} aZ0éßИ中\u{200d}👩🏽\u{10ffff}\u{feff}"
            .chars()
            .collect::<Vec<_>>(),
    );
    let odd = odd.prop_filter("no NUL", |c| *c != '\0');
    let short = prop::collection::vec(odd, 0..=most.min(20)).prop_map(String::from_iter);
    if most < 1000 {
        return prop_oneof![short, Just("null".to_owned()), Just(String::new())].boxed();
    }
    // Long ones are compressed and moved out of line.
    (short, 1..=most / 3).prop_map(|(unit, times)| unit.repeat(times / unit.len().max(1))).boxed()
}

fn identifier() -> BoxedStrategy<String> {
    let long = "[\"'\\\\ .$a-zÉ中👩]{1,63}";
    // `t` is the table's own name.
    let name = prop_oneof![prop::sample::select(vec!["select", "t"]).prop_map(str::to_owned), long];
    name.prop_map(|mut name| {
        while name.len() > 63 {
            name.pop();
        }
        name
    })
    .boxed()
}

fn json() -> BoxedStrategy<String> {
    let string = |text: String| serde_json::to_string(&text).expect("a string is JSON");
    let leaf = prop_oneof![
        prop::sample::select(vec![
            "null",
            "true",
            " false",
            "0",
            "-0",
            "-1.50",
            "1E5",
            "1e-7",
            "123456789012345678901234567890.0",
            "[]",
            "{ }"
        ])
        .prop_map(str::to_owned),
        text(20).prop_map(string),
        Just("\"\\u00e9\\ud83d\\ude00\\/\"".to_owned()),
    ];
    leaf.prop_recursive(3, 12, 4, move |inner| {
        let key = prop_oneof![Just("a".to_owned()), text(5)].prop_map(string);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(" ,\n"))),
            // Keys may repeat: `to_jsonb` keeps the last.
            prop::collection::vec((key, inner), 0..4).prop_map(|members| {
                let members: Vec<_> = members.into_iter().map(|(key, value)| format!("{key} : {value}")).collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    })
    .boxed()
}

fn digits(most: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(prop::char::range('0', '9'), 1..=most).prop_map(String::from_iter)
}

impl Family {
    fn value(self) -> BoxedStrategy<String> {
        match self {
            OneOf(values) => prop::sample::select(values).prop_map(str::to_owned).boxed(),
            Int(low, high) => {
                prop_oneof![Just(low), Just(high), Just(0), low..=high].prop_map(|i| i.to_string()).boxed()
            }
            Numeric => prop_oneof![
                prop::sample::select(vec!["NaN", "Infinity", "-Infinity", "0.000", "-0.0", "1e1000", "1e-1000"])
                    .prop_map(str::to_owned),
                (any::<bool>(), digits(50), digits(50))
                    .prop_map(|(minus, whole, part)| format!("{}{whole}.{part}", if minus { "-" } else { "" })),
            ]
            .boxed(),
            Float4 => prop_oneof![
                prop::sample::select(vec!["NaN", "Infinity", "-Infinity", "-0", "3.4028235e38", "1e-45"])
                    .prop_map(str::to_owned),
                any::<f32>().prop_map(|f| format!("{f:e}")),
            ]
            .boxed(),
            Float8 => prop_oneof![
                prop::sample::select(vec![
                    "NaN",
                    "Infinity",
                    "-Infinity",
                    "-0",
                    "1.7976931348623157e308",
                    "5e-324",
                    "0.1",
                    "1e15",
                    "1e16"
                ])
                .prop_map(str::to_owned),
                any::<f64>().prop_map(|f| format!("{f:e}")),
            ]
            .boxed(),
            Text(most) => text(most),
            Bytes => prop::collection::vec(any::<u8>(), 0..40)
                .prop_map(|bytes| bytes.iter().fold("\\x".to_owned(), |hex, byte| format!("{hex}{byte:02x}")))
                .boxed(),
            Bits(least, most) => {
                prop::collection::vec(prop::char::range('0', '1'), least..=most).prop_map(String::from_iter).boxed()
            }
            Uuid => any::<u128>().prop_map(|uuid| format!("{uuid:032x}")).boxed(),
            Date => prop_oneof![
                prop::sample::select(vec!["infinity", "-infinity", "4713-01-01 BC", "5874897-12-31", "2000-02-29"])
                    .prop_map(str::to_owned),
                (1..9999, 1..=12, 1..=28).prop_map(|(y, m, d)| format!("{y:04}-{m:02}-{d:02}")),
            ]
            .boxed(),
            Time(zone) => prop_oneof![
                Just("24:00:00".to_owned()),
                (0..24, 0..60, 0..60_000_000).prop_map(|(h, m, us)| format!(
                    "{h:02}:{m:02}:{:02}.{:06}",
                    us / 1_000_000,
                    us % 1_000_000
                ))
            ]
            .prop_map(move |time| format!("{time}{zone}"))
            .boxed(),
            Timestamp(zone) => prop_oneof![
                prop::sample::select(vec![
                    "infinity",
                    "-infinity",
                    "0044-03-15 12:00:00 BC",
                    "294276-12-31 12:59:59.999999"
                ])
                .prop_map(str::to_owned),
                (1..9999, 1..=12, 1..=28, 0..24, 0..1_000_000)
                    .prop_map(move |(y, m, d, h, us)| format!("{y:04}-{m:02}-{d:02} {h:02}:30:01.{us:06}{zone}")),
            ]
            .boxed(),
            Interval => prop_oneof![
                prop::sample::select(vec!["0", "-178000000 years", "1 mon -1 day -00:00:00.000001"])
                    .prop_map(str::to_owned),
                (-50..50, -50..50, -100..100, -1_000_000_000..1_000_000_000)
                    .prop_map(|(y, m, d, ms)| format!("{y} years {m} mons {d} days {ms} milliseconds")),
            ]
            .boxed(),
            Json => json(),
            Range(low, high) => prop::sample::select(vec![
                "empty".to_owned(),
                "(,)".to_owned(),
                format!("[\"{low}\",\"{high}\"]"),
                format!("(\"{low}\",)"),
                format!("[,\"{high}\")"),
            ])
            .boxed(),
        }
    }
}

fn any_type(has_xml: bool) -> BoxedStrategy<Type> {
    let bases: Vec<_> = BASES.iter().copied().filter(|(name, _)| has_xml || *name != "xml").collect();
    let base = prop::sample::select(bases).prop_map(|(name, family)| Type::Base(name, family));
    let labels = prop::collection::btree_set(identifier(), 1..4);
    let leaf = prop_oneof![
        20 => base,
        1 => labels.prop_map(|labels| Type::Enum(labels.into_iter().collect())),
        1 => Just(Type::TextRange),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            2 => (inner.clone(), 1..=3usize).prop_map(|(of, dimensions)| match of {
                // Postgres knows no array of arrays: the domain in between makes it two types.
                Type::Array(..) => Type::Array(Box::new(Type::Domain(Box::new(of))), dimensions),
                of => Type::Array(Box::new(of), dimensions),
            }),
            1 => inner.clone().prop_map(|of| Type::Domain(Box::new(of))),
            1 => prop::collection::vec(inner, 0..4).prop_map(Type::Composite),
        ]
    })
    .boxed()
}

impl Type {
    /// The name of the type; what has to be created for it goes into `ddl`.
    fn create(&self, ddl: &mut Vec<String>) -> String {
        let name = |ddl: &Vec<String>| format!("\"t {}\"", ddl.len());
        match self {
            Self::Base(base, _) => (*base).to_owned(),
            Self::Array(of, _) => format!("{}[]", of.create(ddl)),
            Self::Domain(of) => {
                let of = of.create(ddl);
                let name = name(ddl);
                ddl.push(format!("CREATE DOMAIN {name} AS {of}"));
                name
            }
            Self::Composite(fields) => {
                let fields: Vec<_> = fields.iter().map(|field| field.create(ddl)).collect();
                let fields: Vec<_> =
                    fields.iter().enumerate().map(|(i, field)| format!("\"f\"\"{i}\" {field}")).collect();
                let name = name(ddl);
                ddl.push(format!("CREATE TYPE {name} AS ({})", fields.join(", ")));
                name
            }
            Self::Enum(labels) => {
                let name = name(ddl);
                let labels: Vec<_> = labels.iter().map(|label| literal(label)).collect();
                ddl.push(format!("CREATE TYPE {name} AS ENUM ({})", labels.join(", ")));
                name
            }
            Self::TextRange => {
                let name = name(ddl);
                ddl.push(format!(
                    "CREATE TYPE {name} AS RANGE (subtype = text, collation = \"C\", multirange_type_name = \"m {}\")",
                    ddl.len()
                ));
                name
            }
        }
    }

    /// What stands between the elements of an array of the type.
    fn delimiter(&self) -> &'static str {
        match self {
            Self::Base("box", _) => ";",
            // Arrays and domains take it over from what they are made of.
            Self::Array(of, _) | Self::Domain(of) => of.delimiter(),
            _ => ",",
        }
    }

    /// A value in the type's text form.
    fn value(&self) -> BoxedStrategy<String> {
        match self {
            Self::Base(_, family) => family.value(),
            Self::Domain(of) => of.value(),
            Self::Enum(labels) => prop::sample::select(labels.clone()).boxed(),
            Self::TextRange => {
                prop_oneof![Just("empty".to_owned()), text(8).prop_map(|bound| format!("[{},)", quoted(&bound))),]
                    .boxed()
            }
            Self::Composite(fields) => {
                let values: Vec<_> = fields.iter().map(|field| field.nullable()).collect();
                let field = |value: Option<String>| value.map_or(String::new(), |value| quoted(&value));
                values
                    .prop_map(move |values| {
                        format!("({})", values.into_iter().map(field).collect::<Vec<_>>().join(","))
                    })
                    .boxed()
            }
            Self::Array(of, dimensions) => {
                let (delimiter, dimensions) = (of.delimiter(), *dimensions);
                let elements = prop::collection::vec(of.nullable(), 0..=4);
                (elements, 1..=2usize, any::<bool>())
                    .prop_map(move |(elements, times, shifted)| {
                        if elements.is_empty() {
                            return "{}".to_owned();
                        }
                        let (length, mut lengths) = (elements.len(), Vec::new());
                        let elements = elements.into_iter().map(|e| e.map_or("NULL".to_owned(), |e| quoted(&e)));
                        let mut text = format!("{{{}}}", elements.collect::<Vec<_>>().join(delimiter));
                        lengths.push(length);
                        for _ in 1..dimensions {
                            text = format!("{{{}}}", vec![text; times].join(delimiter));
                            lengths.insert(0, times);
                        }
                        if shifted {
                            let bounds = lengths.iter().map(|length| format!("[-1:{}]", *length as i64 - 2));
                            text = format!("{}={text}", bounds.collect::<String>());
                        }
                        text
                    })
                    .boxed()
            }
        }
    }

    fn nullable(&self) -> BoxedStrategy<Option<String>> {
        prop::option::weighted(0.8, self.value()).boxed()
    }
}

/// As an element of an array or a field of a composite.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn literal(text: &str) -> String {
    let text = text.replace('\'', "''");
    // With backslashes doubled it is the same whatever standard_conforming_strings says.
    if text.contains('\\') { format!("E'{}'", text.replace('\\', "\\\\")) } else { format!("'{text}'") }
}

fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A table, its rows twice (as inserted and as updated), and what the session is set to.
#[derive(Clone, Debug)]
struct Case {
    names: Vec<String>,
    types: Vec<Type>,
    rows: Vec<Vec<Option<String>>>,
    settings: Vec<String>,
}

fn case(has_xml: bool) -> BoxedStrategy<Case> {
    let column = (identifier(), any_type(has_xml));
    let columns = prop::collection::vec(column, 1..8).prop_map(|mut columns| {
        let mut seen = BTreeSet::from(["n".to_owned()]);
        columns.retain(|(name, _)| seen.insert(name.clone()));
        columns.into_iter().unzip::<_, _, Vec<_>, Vec<_>>()
    });
    let pick = |name: &'static str, values: &'static [&'static str]| {
        prop::sample::select(values).prop_map(move |value| format!("SET LOCAL {name} = {value}"))
    };
    let settings = (
        pick("DateStyle", &["'ISO, MDY'", "'ISO, DMY'", "'SQL, DMY'", "'SQL, MDY'", "'Postgres, DMY'", "German"]),
        pick(
            "TimeZone",
            &["'UTC'", "'Europe/Berlin'", "'America/St_Johns'", "'Asia/Kathmandu'", "'<+13>-13'", "'Africa/Monrovia'"],
        ),
        pick("IntervalStyle", &["postgres", "postgres_verbose", "sql_standard", "iso_8601"]),
        pick("extra_float_digits", &["1", "0", "-15", "3"]),
        pick("bytea_output", &["hex", "escape"]),
        pick("xmloption", &["content"]),
        pick("standard_conforming_strings", &["on", "off"]),
    );
    let settings = settings.prop_map(|(a, b, c, d, e, f, g)| vec![a, b, c, d, e, f, g]);
    (columns, settings)
        .prop_flat_map(|((names, types), settings)| {
            let row: Vec<_> = types.iter().map(Type::nullable).collect();
            (Just(names), Just(types), prop::collection::vec(row, 2..5), Just(settings))
        })
        .prop_map(|(names, types, rows, settings)| Case { names, types, rows, settings })
        .boxed()
}

/// Writes the rows, updates each to the next one's values, deletes them; gives what Postgres says of each step.
fn write(session: &mut Session, case: &Case) -> Vec<(String, Option<String>, Option<String>)> {
    let mut ddl = Vec::new();
    let types: Vec<_> = case.types.iter().map(|of| of.create(&mut ddl)).collect();
    let columns: Vec<_> = case.names.iter().zip(&types).map(|(name, of)| format!("{} {of}", ident(name))).collect();
    ddl.push(format!("CREATE TABLE v.t (n int, {})", columns.join(", ")));
    // A case before may have failed in the middle.
    session.run("ROLLBACK");
    session.run(&format!(
        "BEGIN; DROP SCHEMA IF EXISTS v CASCADE; CREATE SCHEMA v; SET LOCAL search_path = v, pg_catalog; {};
         SELECT tidings.watch('v.t', topic => 'full', old_record => 'full');
         SELECT tidings.watch('v.t', topic => 'changed', name => 'changed')",
        ddl.join(";\n")
    ));
    session.run(&case.settings.join(";"));
    let mut steps = Vec::new();
    let value = |value: &Option<String>| value.as_deref().map_or("NULL".to_owned(), literal);
    for (n, row) in case.rows.iter().enumerate() {
        let values: Vec<_> = row.iter().map(value).collect();
        let new =
            session.one(&format!("INSERT INTO t VALUES ({n}, {}) RETURNING to_jsonb(t.*)::text", values.join(", ")));
        steps.push(("INSERT".to_owned(), Some(new), None));
    }
    for n in 0..case.rows.len() {
        let row = &case.rows[(n + 1) % case.rows.len()];
        let set: Vec<_> =
            case.names.iter().zip(row).map(|(name, v)| format!("{} = {}", ident(name), value(v))).collect();
        let old: String = session.one(&format!("SELECT to_jsonb(t.*)::text FROM t WHERE n = {n}"));
        session.run("CREATE TEMPORARY TABLE before ON COMMIT DROP AS SELECT ROW(t.*)::v.t AS t FROM t");
        let new: String =
            session.one(&format!("UPDATE t SET {} WHERE n = {n} RETURNING to_jsonb(t.*)::text", set.join(", ")));
        let changed: bool =
            session.one(&format!("SELECT before.t *<> t.* FROM before, t WHERE (before.t).n = {n} AND t.n = {n}"));
        session.run("DROP TABLE before");
        if changed {
            steps.push(("UPDATE".to_owned(), Some(new), Some(old)));
        }
    }
    for n in 0..case.rows.len() {
        let old = session.one(&format!("DELETE FROM t WHERE n = {n} RETURNING to_jsonb(t.*)::text"));
        steps.push(("DELETE".to_owned(), None, Some(old)));
    }
    session.run("COMMIT");
    steps
}

/// A member of a payload as Postgres's `jsonb` has it.
fn member(session: &mut Session, event: &Event, name: &str) -> Option<String> {
    let sql = "SELECT nullif($1::text::jsonb -> $2, 'null')::text";
    session.all(sql, &[&event.payload, &name])[0].get(0)
}

fn check(session: &mut Session, log: &RefCell<Log>, case: &Case) -> Result<(), TestCaseError> {
    let steps = write(session, case);
    let events = log.borrow_mut().news();
    let (full, changed): (Vec<_>, Vec<_>) = events.iter().partition(|event| event.topic == "full");
    prop_assert_eq!(full.len(), steps.len());
    prop_assert_eq!(changed.len(), steps.len());
    for ((operation, new, old), (full, changed)) in steps.iter().zip(full.iter().zip(changed)) {
        prop_assert_eq!(member(session, full, "type"), Some(format!("\"{operation}\"")));
        prop_assert_eq!(&member(session, full, "record"), new);
        prop_assert_eq!(&member(session, full, "old_record"), old);
        prop_assert_eq!(&member(session, changed, "record"), new);
        if let (Some(new), Some(old)) = (new, old) {
            let told = member(session, changed, "old_record").unwrap_or_default();
            let rows = session.all(
                "SELECT $1::text::jsonb <@ $2::text::jsonb, -- what is told is the old row's
                        NOT EXISTS (SELECT FROM jsonb_each($2::text::jsonb) o JOIN jsonb_each($3::text::jsonb) n USING (key)
                                    WHERE o.value IS DISTINCT FROM n.value AND NOT $1::text::jsonb ? key), -- and what differs is told
                        NOT $1::text::jsonb ? 'n'",
                &[&told, old, new],
            );
            let verdict: [bool; 3] = [rows[0].get(0), rows[0].get(1), rows[0].get(2)];
            prop_assert_eq!(verdict, [true; 3], "told {} of {} that became {}", told, old, new);
        }
    }
    Ok(())
}

#[test]
fn values_are_what_to_jsonb_says_for_any_table_row_and_setting() {
    let db = shared().database();
    let session = RefCell::new(db.session());
    let has_xml = crate::has_xml(&mut session.borrow_mut());
    let log = RefCell::new(Log::from_here(&db));
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(150);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 300, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let result = runner.run(&case(has_xml), |case| check(&mut session.borrow_mut(), &log, &case));
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn times_of_the_same_second_keep_their_own_fractions_and_zones() {
    let db = shared().database();
    let mut session = db.session();
    let mut log = Log::from_here(&db);
    session.run("CREATE TABLE times (zoned timestamptz, plain timestamp, day date)");
    session.run("SELECT tidings.watch('times', topic => 'times')");
    for zone in ["UTC", "Asia/Kathmandu", "Europe/Amsterdam", "America/St_Johns"] {
        session.run(&format!("TRUNCATE times; SET TimeZone = '{zone}'"));
        let sql = "INSERT INTO times
             SELECT v::timestamptz, v::timestamp, v::timestamp::date FROM unnest(ARRAY[
                 '2024-02-29 23:59:59', '2024-02-29 23:59:59.5', '2024-02-29 23:59:59.999999', '2024-02-29 23:59:59.000001',
                 '2024-02-29 23:59:59.10', '2024-03-01 00:00:00', '1899-12-31 23:59:59.25', '1899-12-31 23:59:59.250001',
                 '2000-01-01 00:00:00', '1999-12-31 23:59:59.999999', '1999-12-31 23:59:59', '0044-03-15 12:00:00.5 BC',
                 '0044-03-15 12:00:00.75 BC', '4714-11-25 00:00:00.000001 BC', '-infinity', 'infinity', '294276-12-30 23:59:59.999999',
                 '20240-10-27 00:30:00.125', '2024-10-27 00:30:00.125', '2024-10-27 01:30:00.125']) v
             RETURNING to_jsonb(times)::text";
        let expected: Vec<Option<String>> = session.all(sql, &[]).iter().map(|row| row.get(0)).collect();
        let told: Vec<_> = log.news().iter().map(|event| member(&mut session, event, "record")).collect();
        assert_eq!(told, expected, "{zone}");
    }
}
