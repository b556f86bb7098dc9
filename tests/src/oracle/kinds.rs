//! The types of columns, and random values of each as SQL.

use fastrand::Rng;

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Small,
    Int,
    Big,
    Numeric,
    Real,
    Double,
    Bool,
    Text,
    /// A text that Postgres stores beside the row, or compressed.
    Long,
    Varchar,
    Char,
    Date,
    Timestamp,
    Timestamptz,
    Time,
    Interval,
    Uuid,
    Jsonb,
    Json,
    Bytea,
    Ints,
    Texts,
    Enum,
    Domain,
    Composite,
    Inet,
    Point,
    Range,
    Bits,
}

/// All of them.
const ALL: [Kind; 29] = [
    Kind::Small,
    Kind::Int,
    Kind::Big,
    Kind::Numeric,
    Kind::Real,
    Kind::Double,
    Kind::Bool,
    Kind::Text,
    Kind::Long,
    Kind::Varchar,
    Kind::Char,
    Kind::Date,
    Kind::Timestamp,
    Kind::Timestamptz,
    Kind::Time,
    Kind::Interval,
    Kind::Uuid,
    Kind::Jsonb,
    Kind::Json,
    Kind::Bytea,
    Kind::Ints,
    Kind::Texts,
    Kind::Enum,
    Kind::Domain,
    Kind::Composite,
    Kind::Inet,
    Kind::Point,
    Kind::Range,
    Kind::Bits,
];

/// Those of columns that topics name.
const OF_TOPICS: [Kind; 10] = [
    Kind::Int,
    Kind::Big,
    Kind::Text,
    Kind::Varchar,
    Kind::Date,
    Kind::Timestamp,
    Kind::Enum,
    Kind::Domain,
    Kind::Uuid,
    Kind::Numeric,
];

impl Kind {
    /// Any of them.
    pub fn any(random: &mut Rng) -> Self {
        ALL[random.usize(..ALL.len())]
    }

    /// One whose values may be in a topic.
    pub fn of_topic(random: &mut Rng) -> Self {
        OF_TOPICS[random.usize(..OF_TOPICS.len())]
    }

    /// Its name in SQL.
    pub fn sql(self) -> &'static str {
        match self {
            Self::Small => "smallint",
            Self::Int => "int",
            Self::Big => "bigint",
            Self::Numeric => "numeric",
            Self::Real => "real",
            Self::Double => "double precision",
            Self::Bool => "boolean",
            Self::Text | Self::Long => "text",
            Self::Varchar => "varchar(20)",
            Self::Char => "char(5)",
            Self::Date => "date",
            Self::Timestamp => "timestamp",
            Self::Timestamptz => "timestamptz",
            Self::Time => "time",
            Self::Interval => "interval",
            Self::Uuid => "uuid",
            Self::Jsonb => "jsonb",
            Self::Json => "json",
            Self::Bytea => "bytea",
            Self::Ints => "int[]",
            Self::Texts => "text[]",
            Self::Enum => "oracle.mood",
            Self::Domain => "oracle.positive",
            Self::Composite => "oracle.pair",
            Self::Inet => "inet",
            Self::Point => "point",
            Self::Range => "int4range",
            Self::Bits => "bit varying",
        }
    }

    /// The text of a value of this expression as topics have it: as in JSON for dates and times, otherwise as the
    /// type's output function writes it.
    pub fn topic_text(self, value: &str) -> String {
        match self {
            Self::Date | Self::Timestamp => format!("to_jsonb({value}) #>> '{{}}'"),
            _ => format!("format('%s', {value})"),
        }
    }

    /// One of few values, or NULL: for columns that topics name, so that several rows share a topic.
    pub fn few(self, random: &mut Rng) -> String {
        if random.u8(..8) == 0 {
            return "NULL".into();
        }
        let n = random.usize(..4);
        let text = match self {
            Self::Text | Self::Varchar => ["a", "b_", "a_b", "ü {%"][n].to_owned(),
            Self::Date => ["2024-02-29", "infinity", "0044-03-15 BC", "1999-12-31"][n].to_owned(),
            Self::Timestamp => ["2024-02-29 12:00", "1999-12-31 23:59:59.5", "infinity", "2000-01-01"][n].to_owned(),
            Self::Uuid => format!("00000000-0000-0000-0000-00000000000{n}"),
            Self::Enum => ["fine", "bad", "so_so", "fine"][n].to_owned(),
            Self::Numeric => ["1.0", "1.00", "-7", "12345678901234567890.5"][n].to_owned(),
            _ => (n + 1).to_string(),
        };
        format!("'{text}'::{}", self.sql())
    }

    /// Any value, or NULL.
    pub fn value(self, random: &mut Rng) -> String {
        if random.u8(..6) == 0 {
            return "NULL".into();
        }
        format!("'{}'::{}", self.text(random).replace('\'', "''"), self.sql())
    }

    /// A value's text. No two texts are of the same value as JSON but of different values for Postgres: then it would
    /// be open whether an UPDATE from one to the other makes an event.
    fn text(self, random: &mut Rng) -> String {
        let n = random.i32(-50..1000);
        match self {
            Self::Small | Self::Int => n.to_string(),
            Self::Big => (i64::from(n) * 9_007_199_254_740_993 % 9_000_000_000_000_000_000).to_string(),
            Self::Numeric => ["1.10", "NaN", "0.00000000000000000001", "123456789012345678901234567890", "-5", "7.000"]
                [random.usize(..6)]
            .to_owned(),
            Self::Real | Self::Double => {
                ["1.5", "NaN", "-Infinity", "0.1", "1e30", "123456.75"][random.usize(..6)].into()
            }
            Self::Bool => random.bool().to_string(),
            Self::Text | Self::Varchar => {
                ["", "plain", "it's \"so\"", "back\\slash", "Zażółć 🎈", "two\nlines\r", "\t\u{1}\u{7f}"]
                    [random.usize(..7)]
                .into()
            }
            Self::Long => ["long ", "länger "][random.usize(..2)].repeat(random.usize(1..2000)),
            Self::Char => ["ab", "", "ü", "abcde"][random.usize(..4)].into(),
            Self::Date => ["2024-02-29", "0001-01-01", "infinity", "-infinity", "9999-12-31"][random.usize(..5)].into(),
            Self::Timestamp | Self::Timestamptz => {
                ["2024-02-29 12:34:56.789", "infinity", "1970-01-01", "0044-03-15 BC", "2024-10-27 01:30"]
                    [random.usize(..5)]
                .into()
            }
            Self::Time => ["00:00", "23:59:59.999999", "12:00"][random.usize(..3)].into(),
            Self::Interval => ["1 day", "2 months 3 days 04:05:06.7", "-1 hour", "0"][random.usize(..4)].into(),
            Self::Uuid => format!("aaaaaaaa-0000-4000-8000-{:012}", random.u32(..100)),
            Self::Jsonb | Self::Json => {
                [r#"{"a":[1,2,{"b":null}]}"#, "[]", "null", "12.50", r#""a \" quote""#, r#"{"k":"ü","z":true}"#]
                    [random.usize(..6)]
                .into()
            }
            Self::Bytea => ["\\x", "\\x00ff", "\\xdeadbeef"][random.usize(..3)].into(),
            Self::Ints => ["{}", "{1,2,NULL}", "{{1,2},{3,4}}"][random.usize(..3)].into(),
            Self::Texts => ["{}", r#"{"a,b",NULL,"quote\""}"#, "{ü}"][random.usize(..3)].into(),
            Self::Enum => ["fine", "bad", "so_so"][random.usize(..3)].into(),
            Self::Domain => (n.unsigned_abs() + 1).to_string(),
            Self::Composite => ["(1,x)", "(,)", r#"(2,"a ""b""")"#][random.usize(..3)].into(),
            Self::Inet => ["10.0.0.1", "10.0.0.0/8", "::1"][random.usize(..3)].into(),
            Self::Point => ["(1,2)", "(-0.5,1e10)"][random.usize(..2)].into(),
            Self::Range => ["empty", "[1,5)", "(,)", "[3,)"][random.usize(..4)].into(),
            Self::Bits => ["", "101", "00000000"][random.usize(..3)].into(),
        }
    }
}
