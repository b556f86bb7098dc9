//! The figures of a part: each with its rounds and its target.

use serde_json::{Value, json};
use tidings_tests::Database;

use crate::page::Page;
use crate::{machine, quantile};

/// The target of a figure.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
    /// Only for comparison.
    None,
}

#[derive(Debug)]
struct Line {
    what: String,
    /// The name of the compared one, if there are several.
    who: Option<String>,
    unit: &'static str,
    target: Target,
    /// The values, one for each round.
    values: Vec<f64>,
}

/// The figures so far, of the part that is being measured.
#[derive(Debug)]
pub struct Report {
    page: Page,
    /// How the measurement is repeated.
    command: String,
    lines: Vec<Line>,
    versions: Vec<String>,
    left_out: Vec<String>,
}

impl Report {
    /// A report for `page`, of a program that was called with these options.
    pub fn new(page: Page, options: &[&str]) -> Self {
        let command = options.join(" ");
        Self { page, command, lines: Vec::new(), versions: Vec::new(), left_out: Vec::new() }
    }

    /// Adds a figure, and prints it at once. Values of further rounds are added to the same figure.
    pub fn add(&mut self, what: impl Into<String>, figure: f64, unit: &'static str, target: Target) {
        self.line(what.into(), None, figure, unit, target);
    }

    /// The same for one of several that are compared, and plotted together.
    pub fn compare(&mut self, what: impl Into<String>, who: &str, figure: f64, unit: &'static str, target: Target) {
        self.line(what.into(), Some(who.to_owned()), figure, unit, target);
    }

    fn line(&mut self, what: String, who: Option<String>, figure: f64, unit: &'static str, target: Target) {
        println!(
            "  {what}{}: {} {unit}",
            who.as_ref().map(|who| format!(", {who}")).unwrap_or_default(),
            round(figure)
        );
        match self.lines.iter_mut().find(|line| line.what == what && line.who == who) {
            Some(line) => line.values.push(figure),
            None => self.lines.push(Line { what, who, unit, target, values: vec![figure] }),
        }
    }

    /// Names what was measured for comparison, with its version.
    pub fn version(&mut self, program: &str) {
        if !self.versions.iter().any(|known| known == program) {
            self.versions.push(program.to_owned());
        }
    }

    /// Names what could not be measured, and why.
    pub fn leave_out(&mut self, who: &str, why: &str) {
        let text = format!("{who}: {why}");
        if !self.left_out.contains(&text) {
            println!("  LEFT OUT: {text}");
            self.left_out.push(text);
        }
    }

    /// Stores the figures of a part, returns the table of all targets, and starts the next part.
    pub fn finish(&mut self, part: &str, database: &Database<'_>) -> String {
        let lines: Vec<Value> = self.lines.drain(..).map(|line| line.record()).collect();
        let mut versions = machine::versions(database);
        versions.append(&mut self.versions);
        let command = [part, &self.command].join(" ");
        self.page.save(
            part,
            &json!({
                "date": machine::today(database),
                "commit": machine::commit(),
                "machine": machine::describe(),
                "versions": versions,
                "command": format!("make bench ARGS=\"{}\"", command.trim_end()),
                "left_out": std::mem::take(&mut self.left_out),
                "lines": lines,
            }),
        );
        self.page.render()
    }
}

impl Line {
    fn record(mut self) -> Value {
        let values = self.values.clone();
        let figure = quantile(&mut self.values, 0.5);
        let (target, reached) = match self.target {
            Target::AtLeast(least) => (format!("≥ {least}"), Some(figure >= least)),
            Target::AtMost(most) => (format!("≤ {most}"), Some(figure <= most)),
            Target::None => (String::new(), None),
        };
        json!({
            "what": self.what, "who": self.who, "unit": self.unit, "values": values, "target": target, "reached": reached,
            "median": figure, "low": self.values[0], "high": self.values[self.values.len() - 1],
        })
    }
}

/// Three significant digits.
pub fn round(figure: f64) -> String {
    match figure.abs() {
        n if n >= 100.0 => format!("{figure:.0}"),
        n if n >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}
