//! `docs/benchmarks.md`: its words are written by hand, its figures and plots come from the latest run of each part.
//!
//! The figures of a part are stored in `benchmarks/<part>.json`, so measuring one part keeps the figures of the others;
//! `benchmarks/summary.json` has all of them.
//! On the page they are between two comments, see [`begin`]; a part without such a place gets one at the end.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::report::round;
use crate::{chart, opening, summary};

/// The end of a place for figures.
const END: &str = "<!-- end of figures -->";

/// The name of the place of the table of targets.
const TARGETS: &str = "targets";

/// The name of the place of the first lines.
const OPENING: &str = "opening";

/// The page, with its figures and plots beside it.
#[derive(Debug)]
pub struct Page {
    dir: PathBuf,
    parts: Vec<&'static str>,
}

impl Page {
    /// The page of the documentation; with `trial` a copy of it in `target/bench`, so that figures of a trial are not
    /// published.
    pub fn new(parts: Vec<&'static str>, trial: bool) -> Self {
        let dir = repository().join(if trial { "target/bench" } else { "docs" });
        fs::create_dir_all(dir.join("benchmarks")).expect("create the folder of the figures");
        Self { dir, parts }
    }

    /// Stores the figures of a part.
    pub fn save(&self, part: &str, record: &Value) {
        let text = serde_json::to_string_pretty(record).expect("JSON");
        fs::write(self.file(part, "json"), text + "\n").expect("keep the figures");
    }

    /// Writes the page with the stored figures, the plots, and the summary; returns the table of targets.
    pub fn render(&self) -> String {
        let path = repository().join("docs/benchmarks.md");
        let page = fs::read_to_string(&path).unwrap_or_else(|_| "# Benchmarks\n".to_owned());
        let records = self.records();
        for (part, record) in &records {
            if let Some(plot) = chart::draw(part, lines(record)) {
                fs::write(self.file(part, "svg"), plot).expect("write the plot");
            }
        }
        fs::write(self.summary(), summary::summarize(&records)).expect("write the summary");
        fs::write(self.dir.join("benchmarks.md"), self.fill_in(page, &records)).expect("write the page");
        println!("  written: {}", self.dir.join("benchmarks.md").display());
        targets(&records)
    }

    /// The page with the figures in their places.
    fn fill_in(&self, mut page: String, records: &[(&str, Value)]) -> String {
        fill(&mut page, OPENING, &opening::compose(records));
        fill(&mut page, TARGETS, &targets(records));
        for part in &self.parts {
            let text = match records.iter().find(|(other, _)| other == part) {
                Some((_, record)) => figures(part, record),
                None => "Not measured yet.\n".to_owned(),
            };
            fill(&mut page, part, &text);
        }
        page
    }

    /// What is stored of each part that has been measured.
    fn records(&self) -> Vec<(&'static str, Value)> {
        let record = |part| {
            let text = fs::read_to_string(self.file(part, "json")).ok()?;
            Some((part, serde_json::from_str(&text).expect("the figures that were stored")))
        };
        self.parts.iter().copied().filter_map(record).collect()
    }

    fn summary(&self) -> PathBuf {
        self.dir.join("benchmarks/summary.json")
    }

    fn file(&self, part: &str, kind: &str) -> PathBuf {
        self.dir.join(format!("benchmarks/{part}.{kind}"))
    }
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the repository")
}

/// The beginning of a part's place for figures.
fn begin(part: &str) -> String {
    format!("<!-- figures: {part} -->\n")
}

/// Puts `figures` into the place of a part.
fn fill(page: &mut String, part: &str, figures: &str) {
    let begin = begin(part);
    let Some(start) = page.find(&begin).map(|at| at + begin.len()) else {
        page.push_str(&format!("\n## {part}\n\n{begin}{figures}{END}\n"));
        return;
    };
    let length = page[start..].find(END).expect("the end of a place for figures");
    page.replace_range(start..start + length, figures);
}

/// The table of all figures that have a target.
fn targets(records: &[(&str, Value)]) -> String {
    let mut table = String::from("| part | what | figure | target | |\n|---|---|---:|---:|---|\n");
    for (part, record) in records {
        for line in lines(record).iter().filter(|line| !line["reached"].is_null()) {
            let (figure, target, verdict) = (figure(line), text_of(&line["target"]), verdict(line));
            table.push_str(&format!("| {part} | {} | {figure} | {target} | {verdict} |\n", name(line)));
        }
    }
    table
}

/// The figures of a part: where they come from, the plot, and the table.
fn figures(part: &str, record: &Value) -> String {
    let mut text = origin(record);
    if chart::draw(part, lines(record)).is_some() {
        text.push_str(&format!("\n![{part}](benchmarks/{part}.svg)\n"));
    }
    text.push_str("\n| what | median | lowest to highest round | target | |\n|---|---:|---:|---:|---|\n");
    lines(record).iter().for_each(|line| text.push_str(&row(line)));
    text
}

/// Where the figures come from, and what could not be measured.
fn origin(record: &Value) -> String {
    let list = |name: &str, between: &str| {
        let items = record[name].as_array().into_iter().flatten().map(text_of);
        items.collect::<Vec<_>>().join(between)
    };
    let (date, machine, command) = (text_of(&record["date"]), text_of(&record["machine"]), text_of(&record["command"]));
    let commit = record["commit"].as_str().map(|commit| format!(", commit {commit}")).unwrap_or_default();
    let mut text = format!("`{command}`, {date}{commit}: {machine}; {}.\n", list("versions", ", "));
    let left_out = list("left_out", "; ");
    if !left_out.is_empty() {
        text.push_str(&format!("\n**Left out:** {left_out}.\n"));
    }
    text
}

/// The figures of a record.
pub fn lines(record: &Value) -> &[Value] {
    record["lines"].as_array().map_or(&[], Vec::as_slice)
}

fn row(line: &Value) -> String {
    let number = |name: &str| round(line[name].as_f64().unwrap_or(f64::NAN));
    let rounds = line["values"].as_array().map_or(0, Vec::len);
    let spread =
        if rounds > 1 { format!("{} to {} ({rounds})", number("low"), number("high")) } else { "one round".to_owned() };
    format!("| {} | {} | {spread} | {} | {} |\n", name(line), figure(line), text_of(&line["target"]), verdict(line))
}

/// What a figure is, and whose.
pub fn name(line: &Value) -> String {
    match line["who"].as_str() {
        Some(who) => format!("{}: {who}", text_of(&line["what"])),
        None => text_of(&line["what"]).to_owned(),
    }
}

/// The median and its unit.
fn figure(line: &Value) -> String {
    let figure = round(line["median"].as_f64().unwrap_or(f64::NAN));
    format!("{figure} {}", text_of(&line["unit"])).trim_end().to_owned()
}

fn verdict(line: &Value) -> &'static str {
    match line["reached"].as_bool() {
        Some(true) => "reached",
        Some(false) => "**missed**",
        None => "",
    }
}

/// The text of a value, which may be missing.
pub fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_take_their_place_and_leave_the_words() {
        let mut page = format!("Words.\n{}old\n{END}\nMore words.\n", begin("idle"));
        fill(&mut page, "idle", "new\n");
        assert_eq!(page, format!("Words.\n{}new\n{END}\nMore words.\n", begin("idle")));
        fill(&mut page, "storm", "figures\n");
        assert!(page.ends_with(&format!("\n## storm\n\n{}figures\n{END}\n", begin("storm"))));
    }

    #[test]
    fn the_page_and_the_summary_say_what_is_stored() {
        let page = Page::new(crate::all_parts(), false);
        let text = fs::read_to_string(page.dir.join("benchmarks.md")).expect("the page");
        let records = page.records();
        let hint = "run `make bench ARGS=--render`";
        assert_eq!(page.fill_in(text.clone(), &records), text, "{hint}");
        assert_eq!(fs::read_to_string(page.summary()).expect("the summary"), summary::summarize(&records), "{hint}");
        assert_eq!(opening::compose(&records).lines().count(), 10, "a figure of the first lines is missing");
    }
}
