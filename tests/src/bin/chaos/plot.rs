//! Lines over time, as an SVG.

use std::fmt::Write;

/// Pixels: of the picture, of a panel, and of its margins.
const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 180.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 150.0;
const ABOVE: f64 = 30.0;
const BELOW: f64 = 25.0;

/// The colours of the lines.
const COLORS: [&str; 6] = ["#2563eb", "#dc2626", "#16a34a", "#9333ea", "#ea580c", "#0891b2"];

/// A diagram.
#[derive(Debug)]
pub struct Panel {
    /// What it shows, with the unit.
    pub title: String,
    /// The lines, each with its name and a figure for each time.
    pub lines: Vec<(String, Vec<f64>)>,
}

/// Draws panels one below the other, over the same times in seconds.
pub fn draw(times: &[f64], panels: &[Panel]) -> String {
    let height = HEIGHT * panels.len() as f64;
    let mut body = String::new();
    for (i, panel) in panels.iter().enumerate() {
        draw_panel(&mut body, times, panel, HEIGHT * i as f64);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n{body}</svg>\n"
    )
}

fn draw_panel(body: &mut String, times: &[f64], panel: &Panel, top: f64) {
    let greatest = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::MIN_POSITIVE, f64::max);
    let end = greatest(&mut times.iter().copied());
    let most = greatest(&mut panel.lines.iter().flat_map(|(_, line)| line.iter().copied()));
    let (right, bottom) = (WIDTH - RIGHT, top + HEIGHT - BELOW);
    let x = |time: f64| LEFT + time / end * (right - LEFT);
    let y = |figure: f64| bottom - figure / most * (bottom - top - ABOVE);
    let mut put = |text: std::fmt::Arguments<'_>| body.write_fmt(text).expect("write to memory");
    put(format_args!("<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{}</text>\n", top + 18.0, panel.title));
    put(format_args!("<path d=\"M{LEFT} {} V{bottom} H{right}\" fill=\"none\" stroke=\"#6b7280\"/>\n", top + ABOVE));
    put(format_args!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{most:.0}</text>\n", LEFT - 5.0, y(most) + 4.0));
    put(format_args!("<text x=\"{}\" y=\"{bottom}\" text-anchor=\"end\">0</text>\n", LEFT - 5.0));
    put(format_args!("<text x=\"{right}\" y=\"{}\" text-anchor=\"end\">{end:.0} s</text>\n", bottom + 14.0));
    for (i, (name, line)) in panel.lines.iter().enumerate() {
        let color = COLORS[i % COLORS.len()];
        let points: Vec<String> =
            times.iter().zip(line).map(|(time, figure)| format!("{:.1},{:.1}", x(*time), y(*figure))).collect();
        put(format_args!("<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\"/>\n", points.join(" ")));
        let label = top + ABOVE + 14.0 * (i as f64 + 1.0);
        put(format_args!("<text x=\"{}\" y=\"{label}\" fill=\"{color}\">{name}</text>\n", right + 8.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_ends_at_the_right_and_the_greatest_figure_is_at_the_top() {
        let panel = Panel { title: "files".to_owned(), lines: vec![("relay".to_owned(), vec![1.0, 4.0, 2.0])] };
        let picture = draw(&[0.0, 5.0, 10.0], &[panel]);
        let (middle, end) = ((LEFT + WIDTH - RIGHT) / 2.0, WIDTH - RIGHT);
        assert!(picture.contains(&format!(" {middle:.1},{ABOVE:.1} {end:.1},")), "{picture}");
        assert!(picture.contains(">relay</text>") && picture.contains(">10 s</text>"));
    }
}
