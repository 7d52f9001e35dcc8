//! Bars and lines with whiskers, as SVG. The same input gives the same bytes.

use anyhow::Result;
use plotters::{
    coord::{Shift, ranged1d::ValueFormatter, types::RangedCoordf64},
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{stats::Spread, words::figure};

/// Some charts beside each other, under one title and legend.
pub struct Picture {
    pub title: String,
    /// Name and colour of what is compared.
    pub legend: Vec<(String, RGBColor)>,
    pub panels: Vec<Panel>,
}

/// One chart.
pub struct Panel {
    pub title: String,
    pub marks: Marks,
}

/// What a chart shows.
pub enum Marks {
    /// Groups of bars, each bar with its colour.
    Bars(Vec<(String, Vec<(RGBColor, Spread)>)>),
    /// Lines over a few places that stand at even distances, y on a log scale if asked for.
    Lines { places: Vec<String>, log: bool, lines: Vec<Line> },
}

impl Marks {
    /// Whether something has this colour.
    pub fn have(&self, colour: RGBColor) -> bool {
        match self {
            Self::Bars(groups) => groups.iter().flat_map(|(_, bars)| bars).any(|(it, _)| *it == colour),
            Self::Lines { lines, .. } => lines.iter().any(|line| line.colour == colour),
        }
    }
}

/// One line.
pub struct Line {
    pub colour: RGBColor,
    /// Which place, and the figure there.
    pub points: Vec<(usize, Spread)>,
}

type Area<'a, 'b> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws it on white, so that it is legible on dark pages too.
pub fn svg(picture: &Picture) -> Result<String> {
    let mut text = String::new();
    {
        let columns = picture.panels.len().clamp(1, COLUMNS);
        let lines = picture.panels.len().div_ceil(columns);
        let height = HEAD + PANEL_HEIGHT * u32::try_from(lines)?;
        let root = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        root.draw(&Text::new(picture.title.clone(), (MARGIN, 12), (FONT, 17).into_font().color(&INK)))?;
        legend(&root, &picture.legend)?;
        let (_, below) = root.split_vertically(HEAD);
        for (area, panel) in below.split_evenly((lines, columns)).iter().zip(&picture.panels) {
            match &panel.marks {
                Marks::Bars(groups) => bars(area, &panel.title, groups)?,
                Marks::Lines { places, log, lines } => lines_over(area, &panel.title, places, *log, lines)?,
            }
        }
        root.present()?;
    }
    Ok(text)
}

fn legend(root: &Area<'_, '_>, entries: &[(String, RGBColor)]) -> Result<()> {
    let mut x = MARGIN;
    for (name, colour) in entries {
        root.draw(&Rectangle::new([(x, 42), (x + 12, 54)], colour.filled()))?;
        root.draw(&Text::new(name.clone(), (x + 17, 41), (FONT, 13).into_font().color(&INK)))?;
        x += 40 + CHARACTER * i32::try_from(name.chars().count())?;
    }
    Ok(())
}

fn bars(area: &Area<'_, '_>, title: &str, groups: &[(String, Vec<(RGBColor, Spread)>)]) -> Result<()> {
    let highest = groups.iter().flat_map(|(_, bars)| bars).map(|(_, it)| it.high).fold(0.0, f64::max);
    let mut builder = frame(area, title);
    let mut chart = builder.build_cartesian_2d(0.0..groups.len() as f64, 0.0..highest.max(f64::MIN_POSITIVE) * 1.15)?;
    mesh(&mut chart)?;
    for (index, (name, bars)) in groups.iter().enumerate() {
        let width = GROUP_SHARE / bars.len().max(1) as f64;
        let start = index as f64 + (1.0 - GROUP_SHARE) / 2.0;
        for (place, (colour, spread)) in bars.iter().enumerate() {
            let left = start + place as f64 * width;
            let bar = [(left, 0.0), (left + width * 0.9, spread.median)];
            chart.draw_series([Rectangle::new(bar, colour.filled())])?;
            whisker(area, &chart, left + width * 0.45, spread)?;
            let (x, y) = chart.backend_coord(&(left + width * 0.45, spread.high));
            write(area, &figure(spread.median), (x, y - 3), 11, VPos::Bottom)?;
        }
        let (x, y) = chart.backend_coord(&(index as f64 + 0.5, 0.0));
        write(area, name, (x, y + 6), 12, VPos::Top)?;
    }
    Ok(())
}

fn lines_over(area: &Area<'_, '_>, title: &str, places: &[String], log: bool, lines: &[Line]) -> Result<()> {
    let spreads = || lines.iter().flat_map(|line| &line.points).map(|(_, spread)| spread);
    let highest = spreads().map(|it| it.high).fold(f64::MIN_POSITIVE, f64::max);
    let lowest = spreads().map(|it| it.low).filter(|low| *low > 0.0).fold(highest, f64::min);
    let x = -0.5..places.len() as f64 - 0.5;
    let mut builder = frame(area, title);
    if log {
        let y = (lowest * 0.7..highest * 1.4).log_scale();
        let mut chart = builder.build_cartesian_2d(x, y.with_key_points(log_ticks(lowest * 0.7, highest * 1.4)))?;
        mesh(&mut chart)?;
        draw_lines(area, &mut chart, lowest * 0.7, places, lines)
    } else {
        let mut chart = builder.build_cartesian_2d(x, 0.0..highest * 1.1)?;
        mesh(&mut chart)?;
        draw_lines(area, &mut chart, 0.0, places, lines)
    }
}

type Chart<'a, 'b, Y> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, Y>>;

fn draw_lines<Y: Ranged<ValueType = f64>>(
    area: &Area<'_, '_>,
    chart: &mut Chart<'_, '_, Y>,
    floor: f64,
    places: &[String],
    lines: &[Line],
) -> Result<()> {
    for (index, line) in lines.iter().enumerate() {
        // A step aside for each line: whiskers at one place stay apart.
        let aside = (index as f64 - (lines.len() as f64 - 1.0) / 2.0) * ASIDE;
        let points: Vec<(f64, Spread)> = line.points.iter().map(|(at, spread)| (*at as f64 + aside, *spread)).collect();
        let middle = points.iter().map(|(x, spread)| (*x, spread.median));
        chart.draw_series(LineSeries::new(middle.clone(), line.colour.stroke_width(2)))?;
        chart.draw_series(middle.map(|point| Circle::new(point, 3, line.colour.filled())))?;
        for (x, spread) in points {
            whisker(area, chart, x, &Spread { low: spread.low.max(floor), ..spread })?;
        }
    }
    for (index, place) in places.iter().enumerate() {
        let (x, y) = chart.backend_coord(&(index as f64, floor));
        write(area, place, (x, y + 6), 12, VPos::Top)?;
    }
    Ok(())
}

/// From the least to the most.
fn whisker<Y: Ranged<ValueType = f64>>(
    area: &Area<'_, '_>,
    chart: &Chart<'_, '_, Y>,
    x: f64,
    spread: &Spread,
) -> Result<()> {
    let (x, low) = within(area, chart.backend_coord(&(x, spread.low)));
    let (_, high) = within(area, chart.backend_coord(&(0.0, spread.high)));
    if (low - high).abs() > 1 {
        for path in [[(x, low), (x, high)], [(x - 3, low), (x + 3, low)], [(x - 3, high), (x + 3, high)]] {
            area.draw(&PathElement::new(path.to_vec(), INK))?;
        }
    }
    Ok(())
}

fn write(area: &Area<'_, '_>, text: &str, at: (i32, i32), size: i32, vertical: VPos) -> Result<()> {
    let style = (FONT, size).into_font().color(&INK).pos(Pos::new(HPos::Center, vertical));
    area.draw(&Text::new(text.to_owned(), within(area, at), style))?;
    Ok(())
}

/// A place of the whole picture as one of the area.
fn within(area: &Area<'_, '_>, (x, y): (i32, i32)) -> (i32, i32) {
    let (left, top) = area.get_base_pixel();
    (x - left, y - top)
}

fn frame<'a, 'b>(area: &'a Area<'b, '_>, title: &str) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(area);
    builder.caption(title, (FONT, 14).into_font().color(&INK)).margin(10).x_label_area_size(26).y_label_area_size(46);
    builder
}

fn mesh<Y>(chart: &mut Chart<'_, '_, Y>) -> Result<()>
where
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_labels(6)
        .y_label_formatter(&|value| short(*value))
        .y_label_style((FONT, 11).into_font().color(&INK))
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .draw()?;
    Ok(())
}

/// 1, 2 and 5 of each power of ten within the range: a range of less than a decade has ticks too.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let ticks = powers.flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)));
    ticks.filter(|tick| (low..=high).contains(tick)).collect()
}

/// A tick's figure.
fn short(value: f64) -> String {
    match value.abs() {
        it if it >= 10_000.0 => format!("{}k", (value / 100.0).round() / 10.0),
        it if it >= 1.0 || it == 0.0 => format!("{}", (value * 10.0).round() / 10.0),
        _ => format!("{}", (value * 1000.0).round() / 1000.0),
    }
}

const WIDTH: u32 = 900;
/// Title and legend.
const HEAD: u32 = 66;
const PANEL_HEIGHT: u32 = 270;
/// Panels beside each other.
const COLUMNS: usize = 3;
const MARGIN: i32 = 14;
/// Width of a character of the legend.
const CHARACTER: i32 = 7;
/// The part of its place that a group of bars takes.
const GROUP_SHARE: f64 = 0.86;
/// Between lines at one place, as a part of the distance of places.
const ASIDE: f64 = 0.05;
const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(222, 222, 222);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_scale_has_ticks_in_any_range() {
        assert_eq!(log_ticks(150.0, 3000.0), [200.0, 500.0, 1000.0, 2000.0]);
        assert_eq!(log_ticks(0.03, 0.4), [0.05, 0.1, 0.2]);
        assert_eq!([12_345.0, 999.96, 2.0, 0.05, 0.0].map(short), ["12.3k", "1000", "2", "0.05", "0"]);
    }
}
