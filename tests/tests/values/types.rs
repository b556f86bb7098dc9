//! Types of all kinds, some made from others, and values of each in its text form.

use proptest::prelude::*;

use super::bases::{BASES, Family, text};

/// A column's type.
#[derive(Clone, Debug)]
pub enum Type {
    /// A built-in type: its name, and how its values are drawn.
    Base(&'static str, Family),
    /// An array; the number of dimensions of its values.
    Array(Box<Type>, usize),
    Domain(Box<Type>),
    Composite(Vec<Type>),
    Enum(Vec<String>),
    /// A range over text, and its multirange.
    TextRange,
}

pub fn identifier() -> BoxedStrategy<String> {
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

pub fn any_type(has_xml: bool) -> BoxedStrategy<Type> {
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
                // Postgres has no array of arrays; the domain in between makes it two types.
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
    /// The name of the type; the statements that create it are added to `ddl`.
    pub fn create(&self, ddl: &mut Vec<String>) -> String {
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

    /// The separator between the elements of an array of the type.
    fn delimiter(&self) -> &'static str {
        match self {
            Self::Base("box", _) => ";",
            // Arrays and domains inherit it from what they are made of.
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

    pub fn nullable(&self) -> BoxedStrategy<Option<String>> {
        prop::option::weighted(0.8, self.value()).boxed()
    }
}

/// As an element of an array or a field of a composite.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

pub fn literal(text: &str) -> String {
    let text = text.replace('\'', "''");
    // With backslashes doubled it is the same with any standard_conforming_strings.
    if text.contains('\\') { format!("E'{}'", text.replace('\\', "\\\\")) } else { format!("'{text}'") }
}
