//! Random watches, and as SQL what a client of each must hold.

use fastrand::Rng;
use serde_json::{Value, json};

use super::schema::{Table, literal, quoted};

/// The shape of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The default.
    Default,
    /// The same under other names.
    Renamed,
    /// Single columns.
    Columns,
}

/// A watch of a table.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Its name.
    pub name: String,
    /// The name of its events, which no other watch has.
    pub event: String,
    /// The topic: texts and columns in turn, beginning and ending with a text.
    pieces: Vec<String>,
    shape: Shape,
    columns: Option<Vec<String>>,
    exclude: Option<Vec<String>>,
    operations: Vec<&'static str>,
    condition: Option<String>,
    old_record: &'static str,
    /// Whether whoever has seen all of its events has the rows of the table.
    pub is_exact: bool,
}

/// The members of a payload's shape that have the operation, the new row, the old one, and the old key.
#[derive(Clone, Copy, Debug)]
pub struct Members {
    pub kind: &'static str,
    pub record: &'static str,
    pub old_record: Option<&'static str>,
    pub old_key: Option<&'static str>,
}

impl Watch {
    /// Draws the watch with this number of a table.
    pub fn draw(random: &mut Rng, table: &Table, n: usize, prefix: &str) -> Self {
        let must_be_exact = table.is_wild;
        let any_columns = random.u8(..3);
        let key: Vec<String> = table.key_names().into_iter().map(str::to_owned).collect();
        let others: Vec<&str> = table.columns[key.len()..].iter().map(|column| column.name.as_str()).collect();
        let count = random.usize(1..=others.len());
        let some = random.choose_multiple(others.iter(), count);
        let some: Vec<String> = some.into_iter().map(|name| (*name).to_owned()).collect();
        let shape = [Shape::Default, Shape::Default, Shape::Renamed, Shape::Columns][random.usize(..4)];
        let (columns, exclude) = match any_columns {
            0 => (Some([key, some].concat()), None),
            1 => (None, Some(some)),
            _ => (None, None),
        };
        // A column that records have must be captured, or an UPDATE of it alone would make no event.
        let (columns, exclude) = match shape {
            Shape::Columns => {
                let with_n = |mut names: Vec<String>| {
                    names.retain(|name| name != "n");
                    [names, vec!["n".to_owned()]].concat()
                };
                let without_n = |mut names: Vec<String>| {
                    names.retain(|name| name != "n");
                    (!names.is_empty()).then_some(names)
                };
                (columns.map(with_n), exclude.and_then(without_n))
            }
            _ => (columns, exclude),
        };
        let (operations, condition) =
            if must_be_exact || random.bool() { (vec!["INSERT", "UPDATE", "DELETE"], None) } else { draw_part(random) };
        let mut watch = Self {
            name: format!("w{n}"),
            event: format!("{}_w{n}", table.name),
            pieces: draw_topic(random, table, prefix),
            shape,
            columns,
            exclude,
            operations,
            condition,
            old_record: ["changed", "changed", "full", "none"][random.usize(..4)],
            is_exact: false,
        };
        // A condition is about rows, which TRUNCATE does not have.
        if watch.pieces.len() == 1 && watch.condition.is_none() && (table.is_truncated || random.bool()) {
            watch.operations.push("TRUNCATE");
        }
        let shows = |operation| watch.operations.contains(&operation);
        watch.is_exact = ["INSERT", "UPDATE", "DELETE"].into_iter().all(shows)
            && watch.condition.is_none()
            && (!table.is_truncated || shows("TRUNCATE"));
        watch
    }

    /// Whether an UPDATE does not say what the key was.
    pub fn hides_old_key(&self) -> bool {
        self.old_record == "none" && self.shape != Shape::Columns
    }

    /// Whether it captures INSERT, so that `since=snapshot` gives its rows.
    pub fn has_state(&self) -> bool {
        self.operations.contains(&"INSERT")
    }

    /// The columns that it names.
    pub fn named_columns(&self) -> Vec<String> {
        let lists = [&self.columns, &self.exclude].into_iter().flatten().flatten();
        lists.chain(self.pieces.iter().skip(1).step_by(2)).cloned().collect()
    }

    /// Whether its records have a column that is added later.
    pub fn shows_new_columns(&self) -> bool {
        self.columns.is_none() && self.shape != Shape::Columns
    }

    /// A query of a topic that rows may have.
    pub fn sample(&self, random: &mut Rng, table: &Table) -> String {
        let value = |name: &String| {
            let column = table.column(name);
            let value = if column.is_topical { column.kind.few(random) } else { random.i32(1..10).to_string() };
            format!("{value} AS {}", quoted(name))
        };
        let mut values: Vec<String> = self.pieces.iter().skip(1).step_by(2).map(value).collect();
        values.dedup_by_key(|value| value.rsplit(" AS ").next().map(str::to_owned));
        values.push("1".into());
        format!("SELECT {} FROM (SELECT {}) new", self.topic_of(table), values.join(", "))
    }

    /// Where its payloads have what.
    pub fn members(&self) -> Members {
        match self.shape {
            Shape::Default => Members { kind: "type", record: "record", old_record: Some("old_record"), old_key: None },
            Shape::Renamed => Members { kind: "t", record: "r", old_record: Some("o"), old_key: None },
            Shape::Columns => Members { kind: "t", record: "v", old_record: None, old_key: Some("o") },
        }
    }

    /// The columns that records have, if not all.
    fn shown(&self, table: &Table) -> Option<Vec<String>> {
        match self.shape {
            Shape::Columns => {
                Some(table.key().iter().map(|column| column.name.clone()).chain(["n".to_owned()]).collect())
            }
            _ => self.columns.clone(),
        }
    }

    fn payload(&self, table: &Table) -> String {
        let payload = match self.shape {
            Shape::Default => return "NULL".into(),
            Shape::Renamed => {
                json!({"t": "$type", "r": "$record", "o": "$old_record", "x": ["$table", {"$$n": "$$n"}, 1.50]})
            }
            Shape::Columns => {
                let object = |form: &str| -> Value {
                    let names = self.shown(table).unwrap_or_default();
                    Value::Object(
                        names.into_iter().map(|name| (name.clone(), json!(format!("{form}{name}")))).collect(),
                    )
                };
                json!({"t": "$type", "v": object("$"), "o": object("$old.")})
            }
        };
        format!("{}::jsonb", literal(&payload.to_string()))
    }

    /// The statements that create it, and the oracle's own triggers where the table alone does not say what a client
    /// holds.
    pub fn statements(&self, table: &Table) -> Vec<String> {
        let list = |names: &Option<Vec<String>>| {
            let Some(names) = names else { return "NULL".to_owned() };
            format!("ARRAY[{}]", names.iter().map(|name| literal(name)).collect::<Vec<_>>().join(", "))
        };
        let mut statements = vec![format!(
            "SELECT tidings.watch('{}', topic => {}, name => '{}', event => '{}', payload => {}, \
             columns => {}, exclude => {}, operations => '{{{}}}', condition => {}, old_record => '{}')",
            table.name,
            literal(&self.template()),
            self.name,
            self.event,
            self.payload(table),
            list(&self.columns),
            list(&self.exclude),
            self.operations.join(","),
            self.condition.as_ref().map_or("NULL".into(), |condition| literal(condition)),
            self.old_record
        )];
        if self.is_exact {
            return statements;
        }
        let (rows, truncate): (Vec<&str>, Vec<&str>) = self.operations.iter().partition(|name| **name != "TRUNCATE");
        let when = self.condition.as_ref().map_or(String::new(), |condition| format!(" WHEN ({condition})"));
        let spec = json!({
            "watch": self.id(table), "topic": self.pieces, "key": table.key_names(), "columns": self.columns,
            "exclude": self.exclude, "shown": self.shown(table), "hidden": self.exclude,
        });
        // Members that are null count as absent.
        let spec = Value::Object(
            spec.as_object()
                .into_iter()
                .flatten()
                .filter(|(_, v)| !v.is_null())
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
        );
        statements.push(format!(
            "CREATE TRIGGER zz_{} AFTER {} ON {} FOR EACH ROW{when} EXECUTE FUNCTION oracle.note({})",
            self.name,
            rows.join(" OR "),
            table.name,
            literal(&spec.to_string())
        ));
        if !truncate.is_empty() {
            statements.push(format!(
                "CREATE TRIGGER zz_{}_truncate AFTER TRUNCATE ON {} EXECUTE FUNCTION oracle.note_truncate({})",
                self.name,
                table.name,
                literal(&self.id(table))
            ));
        }
        statements
    }

    /// What the oracle calls it: topics begin with a prefix that no other run has.
    fn id(&self, table: &Table) -> String {
        format!("{} {} {}", self.pieces[0], table.name, self.name)
    }

    fn template(&self) -> String {
        let piece = |(i, piece): (usize, &String)| match i % 2 {
            0 => piece.replace('{', "{{").replace('}', "}}"),
            _ => format!("{{{piece}}}"),
        };
        self.pieces.iter().enumerate().map(piece).collect()
    }

    /// The topic of a row called `new`, as an expression.
    pub fn topic_of(&self, table: &Table) -> String {
        let mut parts = vec![literal(&self.pieces[0])];
        let mut ambiguous = vec!["false".to_owned()];
        for i in (1..self.pieces.len()).step_by(2) {
            let column = table.column(&self.pieces[i]);
            let text = format!("({})", column.kind.topic_text(&format!("new.{}", quoted(&column.name))));
            let separator = literal(&self.pieces[i + 1]);
            if i + 2 < self.pieces.len() {
                ambiguous.push(format!("strpos({text} || {separator}, {separator}) <> length({text}) + 1"));
            }
            // format() makes an empty text of NULL.
            parts.push(format!("CASE WHEN new.{} IS NOT NULL THEN {text} END", quoted(&column.name)));
            parts.push(separator);
        }
        format!("CASE WHEN {} THEN NULL ELSE {} END", ambiguous.join(" OR "), parts.join(" || "))
    }

    /// A query of `key` and `record` of the rows that the topics in `$1` have now.
    pub fn rows(&self, table: &Table, with_condition: bool) -> String {
        let record = match (self.shown(table), &self.exclude) {
            (Some(names), _) => {
                let pairs: Vec<_> =
                    names.iter().map(|name| format!("{}, new.{}", literal(name), quoted(name))).collect();
                format!("jsonb_build_object({})", pairs.join(", "))
            }
            (None, Some(names)) => {
                let names: Vec<_> = names.iter().map(|name| literal(name)).collect();
                format!("to_jsonb(new) - ARRAY[{}]", names.join(", "))
            }
            (None, None) => "to_jsonb(new)".to_owned(),
        };
        let key: Vec<_> = table.key_names().iter().map(|name| format!("new.{name}")).collect();
        let condition = self.condition.as_ref().filter(|_| with_condition);
        format!(
            "SELECT jsonb_build_array({})::text AS key, {record} AS record FROM {} new WHERE {} = ANY ($1){}",
            key.join(", "),
            table.only(),
            self.topic_of(table),
            condition.map_or(String::new(), |condition| format!(" AND ({condition})"))
        )
    }

    /// The same of what a client holds that has seen all of its events, whatever the table has.
    pub fn held(&self, table: &Table) -> String {
        if self.is_exact {
            return self.rows(table, false);
        }
        format!("SELECT key, record FROM oracle.held WHERE watch = {} AND topic = ANY ($1)", literal(&self.id(table)))
    }
}

/// Operations that do not show every change, and a condition.
fn draw_part(random: &mut Rng) -> (Vec<&'static str>, Option<String>) {
    let of_new = ["NEW.n > 10", "NEW.n IS DISTINCT FROM 77", "NEW.id % 2 = 0 OR NEW.n IS NULL"][random.usize(..3)];
    let of_old = ["OLD.n > 10", "OLD.id < 6"][random.usize(..2)];
    let both = ["OLD.n IS DISTINCT FROM NEW.n", "NEW.n > OLD.n", "to_jsonb(OLD) IS DISTINCT FROM to_jsonb(NEW)"]
        [random.usize(..3)];
    let (operations, condition) = match random.u8(..7) {
        0 | 1 => (vec!["INSERT", "UPDATE"], Some(of_new)),
        2 => (vec!["UPDATE"], Some(both)),
        3 => (vec!["UPDATE", "DELETE"], Some(of_old)),
        4 => (vec!["INSERT", "DELETE"], None),
        5 => (vec!["INSERT"], Some(of_new)),
        _ => (vec!["INSERT", "UPDATE"], None),
    };
    (operations, condition.map(str::to_owned))
}

/// A topic of no, one or two columns. Several tables may have the same topics.
fn draw_topic(random: &mut Rng, table: &Table, prefix: &str) -> Vec<String> {
    let topical: Vec<&str> =
        table.columns.iter().filter(|column| column.is_topical).map(|column| column.name.as_str()).collect();
    let mut hole = || topical[random.usize(..topical.len())].to_owned();
    let (one, two) = (hole(), hole());
    let text = |text: &str| format!("{prefix}{text}");
    match random.u8(..7) {
        0 | 1 => vec![text("all")],
        2 => vec![text("b_"), one, "_".into(), two, String::new()],
        3 => vec![text("{/"), one, "_b_".into(), two, "/}".into()],
        4 => vec![text("in_"), "id".into(), "__".into(), one, String::new()],
        _ => vec![text("b_"), one, String::new()],
    }
}
