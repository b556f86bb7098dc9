//! The first lines of the page: what Tidings costs, how fast it is, against whom, and on what. Each number is a figure
//! of the page, so that no line can be older than the figures.

use serde_json::Value;

use crate::page::{lines, name, text_of};
use crate::report::round;

/// The stored figures by part and name.
struct Figures<'a>(&'a [(&'a str, Value)]);

impl Figures<'_> {
    fn part(&self, part: &str) -> Option<&Value> {
        self.0.iter().find(|(other, _)| *other == part).map(|(_, record)| record)
    }

    fn median(&self, part: &str, figure: &str) -> Option<f64> {
        lines(self.part(part)?).iter().find(|line| name(line) == figure)?["median"].as_f64()
    }

    /// As the page shows it; a long one in groups of three digits.
    fn number(&self, part: &str, figure: &str) -> Option<String> {
        let text = round(self.median(part, figure)?);
        let is_long = text.len() > 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        Some(if is_long { grouped(&text) } else { text })
    }

    /// A ratio as a percentage.
    fn percent(&self, part: &str, figure: &str) -> Option<String> {
        Some(format!("{:.0} %", self.median(part, figure)? * 100.0))
    }
}

fn grouped(digits: &str) -> String {
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The lines as a list; those are left out whose figures have not been measured.
pub fn compose(records: &[(&str, Value)]) -> String {
    let figures = Figures(records);
    let lines = [
        machine(&figures),
        writers(&figures),
        notify(&figures),
        bulk(&figures),
        latency(&figures),
        node(&figures),
        fan_out(&figures),
        idle(&figures),
        list(&figures),
        resume(&figures),
    ];
    lines.into_iter().flatten().map(|line| format!("- {line}\n")).collect()
}

fn machine(figures: &Figures<'_>) -> Option<String> {
    let record = figures.part("overhead")?;
    let postgres = text_of(record["versions"].as_array()?.first()?);
    Some(format!(
        "**On what**: {}; {postgres}. The database, the proxy, the servers compared with it and all clients run there.",
        text_of(&record["machine"])
    ))
}

fn writers(figures: &Figures<'_>) -> Option<String> {
    let kept = |of: &str| figures.percent("overhead", &format!("Tidings ÷ no trigger, {of}"));
    Some(format!(
        "**Writers** of single rows keep {}, {} and {} of their transactions per second (1, 8 and 32 clients); with \
         rows of 30 columns {}, {} and {}.",
        kept("1 clients")?,
        kept("8 clients")?,
        kept("32 clients")?,
        kept("1 clients, wide rows")?,
        kept("8 clients, wide rows")?,
        kept("32 clients, wide rows")?
    ))
}

fn notify(figures: &Figures<'_>) -> Option<String> {
    let ratio = |of: &str| figures.number("overhead", &format!("Tidings ÷ pg_notify, 32 clients{of}"));
    Some(format!(
        "**Against a plpgsql trigger with `pg_notify`**, 32 writers commit {} times as many transactions per \
         second, and {} times as many where a commit takes a millisecond more.",
        ratio("")?,
        ratio(", slow commit")?
    ))
}

fn bulk(figures: &Figures<'_>) -> Option<String> {
    let number = |of: &str| figures.number("bulk", of);
    Some(format!(
        "**Bulk**: an UPDATE of 200,000 rows takes {} times as long as without a trigger, a COPY of 1,000,000 rows \
         {} times. The UPDATE's events take {} of the space that one log row for each event would take, and {} of \
         its WAL.",
        number("UPDATE of 200000 rows, Tidings ÷ no trigger")?,
        number("COPY of 1000000 rows, Tidings ÷ no trigger")?,
        figures.percent("bulk", "UPDATE of 200000 rows, log ÷ one row an event")?,
        figures.percent("bulk", "UPDATE of 200000 rows, extra WAL ÷ one row an event")?
    ))
}

fn latency(figures: &Figures<'_>) -> Option<String> {
    let number = |of: &str| figures.number("latency", of);
    Some(format!(
        "**Latency**: {} ms from the COMMIT to one client (median, nothing else runs), {} times as long as to a \
         bare `LISTEN` connection. Beside 500 transactions per second it is {} times, beside 32 writers at full \
         speed {} times.",
        number("commit → client, p50, idle: Tidings, SSE")?,
        number("SSE p50 ÷ raw p50, idle")?,
        number("SSE p50 ÷ raw p50, beside 500 TPS")?,
        number("SSE p50 ÷ raw p50, beside 32 writers at full speed")?
    ))
}

fn node(figures: &Figures<'_>) -> Option<String> {
    let number =
        |clients: &str, who: &str| figures.number("clients", &format!("write → {clients}, 50 events/s, p50: {who}"));
    let [ours, storing, node, rails] =
        ["Tidings", "Node, better-sse, events stored", "Node, better-sse", "Rails, as in the article"];
    Some(format!(
        "**Against servers that people write themselves**: {} ms from the write to one client (median), with Node \
         {} ms ({} ms if it does not store the events), with Rails {} ms; to a hundred clients {} ms, with Node {} ms \
         ({} ms), with Rails {} ms.",
        number("1 client", ours)?,
        number("1 client", storing)?,
        number("1 client", node)?,
        number("1 client", rails)?,
        number("100 clients", ours)?,
        number("100 clients", storing)?,
        number("100 clients", node)?,
        number("100 clients", rails)?
    ))
}

fn fan_out(figures: &Figures<'_>) -> Option<String> {
    let number = |who: &str| figures.number("fanout", &format!("1 topic × 10000 clients, 10 events/s, p50: {who}"));
    // A rival that does not deliver everything in time is left out.
    let pushpin = number("Pushpin").map(|time| format!(", from Pushpin within {time} ms")).unwrap_or_default();
    Some(format!(
        "**Fan-out**: one event reaches 10,000 clients within {} ms (median), from Nchan (nginx) within {} ms, from \
         Node within {} ms{pushpin}; with {} times as many deliveries for each CPU second as Nchan.",
        number("Tidings")?,
        number("Nchan")?,
        number("Node, better-sse")?,
        figures.number("fanout", "Tidings ÷ Nchan, 10 events/s")?
    ))
}

fn idle(figures: &Figures<'_>) -> Option<String> {
    let number = |who: &str| figures.number("idle", &format!("15000 idle clients: resident memory of each: {who}"));
    Some(format!(
        "**An idle client** takes {} KiB of the proxy's memory; in Nchan it takes {} KiB, in Node {} KiB, in \
         Pushpin {} KiB.",
        number("Tidings")?,
        number("Nchan")?,
        number("Node, better-sse")?,
        number("Pushpin")?
    ))
}

fn list(figures: &Figures<'_>) -> Option<String> {
    let number = |of: &str| figures.number("snapshot", of);
    Some(format!(
        "**A list of 10,000 rows that stays current** is complete after {} ms, {} times as long as psql takes for \
         the same query beside a stream, and {} times as long as a backend in Node.",
        number("a page of 10000 rows, then live: Tidings")?,
        number("Tidings ÷ psql and a bare stream, 10000 rows")?,
        number("Tidings ÷ Node, 10000 rows")?
    ))
}

fn resume(figures: &Figures<'_>) -> Option<String> {
    Some(format!(
        "**10,000 clients that return at once**, each of which missed 20 events, have caught up after {} s, {} of \
         them from memory. One client reads {} events per second from the log.",
        figures.number("storm", "10000 clients resume, 20 events each: all caught up")?,
        figures.number("storm", "… served from memory")?,
        figures.number("catchup", "events from the log to one client: events of one transaction")?
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_is_left_out_until_its_figures_are_there() {
        let line = |what: &str, median: f64| json!({"what": what, "who": null, "median": median});
        let mut record = json!({"machine": "2 cores", "versions": ["PostgreSQL 15"], "lines": [
            line("Tidings ÷ pg_notify, 32 clients", 4.321),
        ]});
        assert_eq!(compose(&[("overhead", record.clone())]).lines().count(), 1, "only the machine");
        record["lines"]
            .as_array_mut()
            .expect("lines")
            .push(line("Tidings ÷ pg_notify, 32 clients, slow commit", 28.36));
        let text = compose(&[("overhead", record)]);
        assert!(text.contains("commit 4.32 times") && text.contains("and 28.4 times"), "{text}");
        assert_eq!(["100", "1000", "2865812"].map(grouped), ["100", "1,000", "2,865,812"]);
    }
}
