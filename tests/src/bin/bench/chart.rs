//! The comparisons of a part as bars in an SVG, each group with its own scale; a thin line spans the rounds.

use std::fmt::Write;

use serde_json::Value;

use crate::report::round;

/// Pixels: of the picture, of the names, of the longest bar, and of a line of text.
const WIDTH: f64 = 800.0;
const NAMES: f64 = 210.0;
const BARS: f64 = 420.0;
const LINE: f64 = 20.0;

/// The bars of one comparison.
type Group<'a> = (&'a str, Vec<&'a Value>);

/// The picture; `None` if nothing is compared.
pub fn draw(title: &str, lines: &[Value]) -> Option<String> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for line in lines.iter().filter(|line| line["who"].is_string()) {
        let what = line["what"].as_str()?;
        match groups.iter_mut().find(|(name, _)| *name == what) {
            Some((_, bars)) => bars.push(line),
            None => groups.push((what, vec![line])),
        }
    }
    groups.retain(|(_, bars)| bars.len() > 1);
    if groups.is_empty() {
        return None;
    }
    let (mut body, mut y) = (String::new(), LINE);
    for group in &groups {
        y = draw_group(&mut body, group, y);
    }
    Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>{}</title>\n<rect width=\"{WIDTH}\" height=\"{y}\" fill=\"#fff\"/>\n{body}</svg>\n",
        escape(title)
    ))
}

/// Draws a group from `y` on; returns where the next one begins.
fn draw_group(body: &mut String, (what, bars): &Group<'_>, mut y: f64) -> f64 {
    let number = |bar: &Value, name: &str| bar[name].as_f64().unwrap_or_default().max(0.0);
    let greatest = bars.iter().map(|bar| number(bar, "high")).fold(f64::MIN_POSITIVE, f64::max);
    let scale = |figure: f64| NAMES + figure / greatest * BARS;
    let mut put = |text: std::fmt::Arguments<'_>| body.write_fmt(text).expect("write to memory");
    put(format_args!("<text x=\"8\" y=\"{y}\" font-weight=\"bold\">{}</text>\n", escape(what)));
    for bar in bars {
        y += LINE;
        let who = bar["who"].as_str().unwrap_or_default();
        let (median, low, high) = (number(bar, "median"), scale(number(bar, "low")), scale(number(bar, "high")));
        let color = if who.starts_with("Tidings") { "#2563eb" } else { "#9ca3af" };
        let middle = y - 4.0;
        put(format_args!("<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{}</text>\n", NAMES - 6.0, escape(who)));
        put(format_args!(
            "<rect x=\"{NAMES}\" y=\"{}\" width=\"{:.1}\" height=\"14\" fill=\"{color}\"/>\n",
            y - 11.0,
            scale(median) - NAMES
        ));
        put(format_args!(
            "<line x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"#111827\" stroke-width=\"1.5\"/>\n"
        ));
        let label = format!("{} {}", round(median), bar["unit"].as_str().unwrap_or_default());
        let x = high.max(scale(median)) + 6.0;
        put(format_args!("<text x=\"{x:.1}\" y=\"{y}\">{}</text>\n", escape(label.trim_end())));
    }
    y + LINE * 1.7
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bar(what: &str, who: Option<&str>, median: f64) -> Value {
        json!({"what": what, "who": who, "unit": "ms", "median": median, "low": median / 2.0, "high": median * 2.0})
    }

    #[test]
    fn what_is_compared_is_drawn_and_the_longest_bar_has_room() {
        let lines = [
            bar("p50", Some("a<b"), 1.0),
            bar("p50", Some("Tidings"), 2.0),
            bar("alone", Some("Tidings"), 7.0),
            bar("sum", None, 3.0),
        ];
        let picture = draw("t", &lines).expect("a picture");
        assert_eq!(picture.matches("height=\"14\"").count(), 2);
        assert!(picture.contains("a&lt;b") && !picture.contains("alone") && !picture.contains("sum"));
        assert!(picture.contains(&format!("x2=\"{:.1}\"", NAMES + BARS)));
        assert!(draw("t", &lines[2..]).is_none());
    }
}
