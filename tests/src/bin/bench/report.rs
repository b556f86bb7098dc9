//! The table at the end: each figure, its target, and whether it is reached.

use tidings_tests::Database;

/// What a figure should be.
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
    figure: f64,
    unit: &'static str,
    target: Target,
}

/// The figures so far.
#[derive(Debug, Default)]
pub struct Report {
    lines: Vec<Line>,
}

impl Report {
    /// Adds a figure, and shows it at once.
    pub fn add(&mut self, what: impl Into<String>, figure: f64, unit: &'static str, target: Target) {
        let line = Line { what: what.into(), figure, unit, target };
        println!("  {}: {} {}", line.what, round(line.figure), line.unit);
        self.lines.push(line);
    }

    /// Prints the table.
    pub fn print(&self, database: &Database<'_>) {
        let version: String = database.session().one("SHOW server_version");
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        println!("\nPostgreSQL {version}, {cores} cores shared by all\n");
        println!("| what | figure | target | |\n|---|---:|---:|---|");
        for Line { what, figure, unit, target } in &self.lines {
            let (target, verdict) = match *target {
                Target::AtLeast(least) => {
                    (format!("≥ {least}"), if *figure >= least { "reached" } else { "NOT REACHED" })
                }
                Target::AtMost(most) => (format!("≤ {most}"), if *figure <= most { "reached" } else { "NOT REACHED" }),
                Target::None => (String::new(), ""),
            };
            println!("| {what} | {} {unit} | {target} | {verdict} |", round(*figure));
        }
    }
}

/// Three digits that count.
fn round(figure: f64) -> String {
    match figure.abs() {
        n if n >= 100.0 => format!("{figure:.0}"),
        n if n >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}
