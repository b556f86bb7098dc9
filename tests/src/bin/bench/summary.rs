//! `docs/benchmarks/summary.json`: the figures of all parts for programs, and a comparison of two such files.
//!
//! A part says which commit was measured, when and where, because its figures may be from another run than those of the
//! other parts.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::page::{lines, name, text_of};
use crate::report::round;

/// Fewer rounds show no range that a figure could be outside of.
const ROUNDS: u64 = 3;

/// The summary of the parts' records, with one line for each figure.
pub fn summarize(records: &[(&str, Value)]) -> String {
    let parts: Vec<String> = records.iter().map(|(part, record)| summary_of(part, record)).collect();
    format!("{{\"parts\": [\n{}\n]}}\n", parts.join(",\n"))
}

fn summary_of(part: &str, record: &Value) -> String {
    let figures: Vec<String> = lines(record).iter().map(|line| format!("    {}", figure_of(line))).collect();
    format!(
        "  {{\"part\": {}, \"commit\": {}, \"date\": {},\n   \"machine\": {},\n   \"versions\": {},\n   \
         \"left_out\": {},\n   \"figures\": [\n{}\n  ]}}",
        json!(part),
        record["commit"],
        record["date"],
        record["machine"],
        record["versions"],
        record["left_out"],
        figures.join(",\n")
    )
}

fn figure_of(line: &Value) -> String {
    let number = |name: &str| line[name].as_f64().map(significant);
    let target = Some(text_of(&line["target"])).filter(|target| !target.is_empty());
    let fields = [
        ("name", json!(name(line))),
        ("unit", line["unit"].clone()),
        ("median", json!(number("median"))),
        ("lowest", json!(number("low"))),
        ("highest", json!(number("high"))),
        ("rounds", json!(line["values"].as_array().map_or(0, Vec::len))),
        ("target", json!(target)),
        ("reached", line["reached"].clone()),
    ];
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
    format!("{{{}}}", fields.join(", "))
}

/// Five significant digits: more of them are noise.
fn significant(figure: f64) -> f64 {
    format!("{figure:.4e}").parse().unwrap_or(figure)
}

/// What differs between two summaries, one line for each figure that two runs share, and what only one of them has.
pub fn compare(a: &Value, b: &Value) -> String {
    let mut text = String::new();
    let (mut shared, mut marks) = (0, [("better", 0), ("worse", 0), ("differs", 0)]);
    for part in parts(a) {
        let part_name = text_of(&part["part"]);
        let Some(other) = parts(b).iter().find(|other| other["part"] == part["part"]) else {
            put(&mut text, format_args!("{part_name}: only in A"));
            continue;
        };
        put(&mut text, format_args!("{part_name}: A is {}, B is {}", origin(part), origin(other)));
        if part["machine"] != other["machine"] {
            put(&mut text, format_args!("  the machines differ: {} and {}", part["machine"], other["machine"]));
        }
        for figure in figures(part) {
            let Some(new) = figures(other).iter().find(|new| new["name"] == figure["name"]) else {
                put(&mut text, format_args!("  only in A: {}", text_of(&figure["name"])));
                continue;
            };
            shared += 1;
            if shown(figure) == shown(new) {
                continue;
            }
            let mark = mark(figure, new);
            marks.iter_mut().filter(|(name, _)| *name == mark).for_each(|(_, count)| *count += 1);
            put(&mut text, format_args!("  {mark:7} {} → {}  {}", shown(figure), shown(new), text_of(&figure["name"])));
        }
        for new in figures(other).iter().filter(|new| !figures(part).iter().any(|old| old["name"] == new["name"])) {
            put(&mut text, format_args!("  only in B: {}", text_of(&new["name"])));
        }
    }
    for part in parts(b).iter().filter(|part| !parts(a).iter().any(|old| old["part"] == part["part"])) {
        put(&mut text, format_args!("{}: only in B", text_of(&part["part"])));
    }
    let outside = marks.map(|(name, count)| format!("{count} {name}")).join(", ");
    put(&mut text, format_args!("{shared} figures in both; outside of both ranges of rounds: {outside}"));
    text
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("write to memory");
}

fn parts(summary: &Value) -> &[Value] {
    summary["parts"].as_array().map_or(&[], Vec::as_slice)
}

fn figures(part: &Value) -> &[Value] {
    part["figures"].as_array().map_or(&[], Vec::as_slice)
}

/// The commit and the day of a part.
fn origin(part: &Value) -> String {
    format!("{} of {}", part["commit"].as_str().unwrap_or("an unknown commit"), text_of(&part["date"]))
}

/// A figure as the page shows it, with its range.
fn shown(figure: &Value) -> String {
    let number = |name: &str| round(figure[name].as_f64().unwrap_or(f64::NAN));
    let unit = text_of(&figure["unit"]);
    let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
    format!("{}{unit} ({} to {})", number("median"), number("lowest"), number("highest"))
}

/// A word, if each median is outside of the range of the other figure's rounds.
fn mark(a: &Value, b: &Value) -> &'static str {
    let number = |figure: &Value, name: &str| figure[name].as_f64().unwrap_or(f64::NAN);
    let outside = |figure: &Value, range: &Value| {
        let median = number(figure, "median");
        median < number(range, "lowest") || median > number(range, "highest")
    };
    let few = [a, b].iter().any(|figure| figure["rounds"].as_u64().unwrap_or(0) < ROUNDS);
    if few || !outside(a, b) || !outside(b, a) {
        return "";
    }
    let rises = number(b, "median") > number(a, "median");
    match more_is_better(b) {
        Some(more) if more == rises => "better",
        Some(_) => "worse",
        None => "differs",
    }
}

/// Decided by the target, or by the unit if there is none.
fn more_is_better(figure: &Value) -> Option<bool> {
    let target = figure["target"].as_str().unwrap_or_default();
    match (target.chars().next(), text_of(&figure["unit"])) {
        (Some('≥'), _) | (None, "/s" | "MB/s") => Some(true),
        (Some('≤'), _) | (None, "ms" | "s" | "µs" | "bytes" | "KiB" | "MiB" | "% of a core") => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of a part with one figure.
    fn record(commit: &str, what: &str, unit: &str, target: &str, [low, median, high]: [f64; 3]) -> Value {
        json!({
            "commit": commit, "date": "2026-01-01", "machine": "2 cores", "versions": ["Tidings 1"], "left_out": [],
            "lines": [{"what": what, "who": "Tidings", "unit": unit, "target": target, "reached": null,
                       "values": [low, median, high], "median": median, "low": low, "high": high}],
        })
    }

    fn summary(records: &[(&str, Value)]) -> Value {
        serde_json::from_str(&summarize(records)).expect("JSON")
    }

    #[test]
    fn a_summary_has_every_figure_with_the_commit_of_its_part() {
        let all = summary(&[
            ("idle", record("abc", "memory", "KiB", "≤ 2", [1.0, 1.234_567_8, 2.0])),
            ("storm", record("def", "caught up", "s", "", [0.1, 0.2, 0.3])),
        ]);
        assert_eq!(all["parts"][0]["commit"], "abc");
        assert_eq!(all["parts"][1]["commit"], "def");
        let figure = &all["parts"][0]["figures"][0];
        assert_eq!(figure["name"], "memory: Tidings");
        assert_eq!((&figure["median"], &figure["rounds"]), (&json!(1.2346), &json!(3)));
        assert_eq!((&figure["lowest"], &figure["highest"]), (&json!(1.0), &json!(2.0)));
        assert_eq!((&figure["target"], &figure["unit"]), (&json!("≤ 2"), &json!("KiB")));
        assert_eq!(all["parts"][1]["figures"][0]["target"], Value::Null);
    }

    #[test]
    fn only_what_is_outside_of_both_ranges_is_marked() {
        let of = |unit: &str, target: &str, range| summary(&[("p", record("abc", "x", unit, target, range))]);
        let marks = |unit: &str, target: &str, a, b| {
            let text = compare(&of(unit, target, a), &of(unit, target, b));
            ["better", "worse", "differs"].into_iter().find(|mark| text.contains(&format!("\n  {mark}")))
        };
        let (low, high) = ([1.0, 1.1, 1.2], [2.0, 2.1, 2.2]);
        assert_eq!(marks("/s", "", low, high), Some("better"));
        assert_eq!(marks("ms", "", low, high), Some("worse"));
        assert_eq!(marks("ms", "", high, low), Some("better"));
        assert_eq!(marks("", "", low, high), Some("differs"));
        // The target says it for figures without a unit.
        assert_eq!(marks("", "≥ 1.5", low, high), Some("better"));
        assert_eq!(marks("", "≤ 1.5", low, high), Some("worse"));
        // One of the medians is within the other one's range.
        assert_eq!(marks("/s", "", low, [1.0, 2.0, 3.0]), None);
        assert_eq!(marks("/s", "", [0.0, 1.0, 3.0], high), None);
    }

    #[test]
    fn what_only_one_of_them_has_is_named_and_nothing_is_said_about_what_is_equal() {
        let a = summary(&[
            ("idle", record("abc", "memory", "KiB", "", [1.0, 1.0, 1.0])),
            ("storm", record("abc", "caught up", "s", "", [0.1, 0.2, 0.3])),
        ]);
        let b = summary(&[
            ("idle", record("def", "handles", "", "", [1.0, 1.0, 1.0])),
            ("quiet", record("def", "p50", "ms", "", [1.0, 1.0, 1.0])),
        ]);
        assert_eq!(
            compare(&a, &b),
            "idle: A is abc of 2026-01-01, B is def of 2026-01-01\n  only in A: memory: Tidings\n  \
             only in B: handles: Tidings\nstorm: only in A\nquiet: only in B\n0 figures in both; \
             outside of both ranges of rounds: 0 better, 0 worse, 0 differs\n"
        );
        let same = compare(&a, &a);
        assert_eq!(same.lines().count(), 3, "{same}");
        assert!(same.ends_with("2 figures in both; outside of both ranges of rounds: 0 better, 0 worse, 0 differs\n"));
    }

    #[test]
    fn other_machines_are_named_and_single_rounds_are_not_judged() {
        let a = record("abc", "x", "ms", "", [1.0, 1.0, 1.0]);
        let mut b = record("def", "x", "ms", "", [2.0, 2.0, 2.0]);
        b["machine"] = json!("64 cores");
        b["lines"][0]["values"] = json!([2.0]);
        let text = compare(&summary(&[("p", a)]), &summary(&[("p", b)]));
        assert!(text.contains("the machines differ: \"2 cores\" and \"64 cores\""), "{text}");
        assert!(!text.contains("\n  worse"), "{text}");
    }
}
