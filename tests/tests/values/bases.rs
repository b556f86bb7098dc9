//! The built-in types, and values of each in its text form.

use proptest::prelude::*;

/// Which values a built-in type has.
#[derive(Clone, Copy, Debug)]
pub enum Family {
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

pub const BASES: &[(&str, Family)] = &[
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
pub fn text(most: usize) -> BoxedStrategy<String> {
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
    pub fn value(self) -> BoxedStrategy<String> {
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
