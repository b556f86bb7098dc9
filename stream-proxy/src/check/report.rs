//! What the check has found, and how it is printed.

use std::io::Write;

use serde_json::json;

/// What a finding means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is right.
    Right,
    /// It may be meant to be so.
    Hint,
    /// It must be mended.
    Wrong,
}

/// The findings, in order. They are printed as they come, or at the end as JSON.
#[derive(Debug)]
pub struct Report {
    as_json: bool,
    findings: Vec<serde_json::Value>,
    wrong: usize,
}

impl Report {
    /// A report without findings.
    pub fn new(as_json: bool) -> Self {
        Self { as_json, findings: Vec::new(), wrong: 0 }
    }

    /// A thing that is right.
    pub fn right(&mut self, item: &str, detail: impl AsRef<str>) {
        self.add(Verdict::Right, item, detail.as_ref(), None);
    }

    /// A thing that may be meant to be so.
    pub fn hint(&mut self, item: &str, detail: impl AsRef<str>, fix: impl AsRef<str>) {
        self.add(Verdict::Hint, item, detail.as_ref(), Some(fix.as_ref()));
    }

    /// A thing that must be mended.
    pub fn wrong(&mut self, item: &str, detail: impl AsRef<str>, fix: impl AsRef<str>) {
        self.add(Verdict::Wrong, item, detail.as_ref(), Some(fix.as_ref()));
    }

    /// Any finding, perhaps with what to do.
    pub fn add(&mut self, verdict: Verdict, item: &str, detail: &str, fix: Option<&str>) {
        let (mark, ok) = match verdict {
            Verdict::Right => ('✓', Some(true)),
            Verdict::Hint => ('!', None),
            Verdict::Wrong => ('✗', Some(false)),
        };
        self.wrong += usize::from(verdict == Verdict::Wrong);
        self.findings.push(json!({ "item": item, "ok": ok, "detail": detail, "fix": fix }));
        if !self.as_json {
            print(&format!("{mark} {item:<11} {detail}\n"));
            if let Some(fix) = fix {
                print(&format!("              → {fix}\n"));
            }
        }
    }

    /// Prints the end. Returns whether nothing must be mended.
    pub fn finish(self) -> bool {
        if self.as_json {
            print(&format!("{}\n", json!({ "ok": self.wrong == 0, "findings": self.findings })));
        } else if self.wrong > 0 {
            print(&format!("\n{} to mend\n", self.wrong));
        } else {
            print("\nall is right\n");
        }
        self.wrong == 0
    }
}

/// Writes to standard output. If its reader has closed it, the rest is not wanted.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
