//! Which plots there are, and what of the samples they show.

use anyhow::Result;
use plotters::style::RGBColor;

use super::{
    chart::{self, Line, Marks, Panel, Picture},
    stats::{Figures, KNOWN, SUBJECT, Spread},
    tables::fleet_size,
    words::contestant,
};

/// A plot: its file's name, what it shows in words, its SVG.
pub struct Plot {
    pub file: &'static str,
    pub shows: &'static str,
    pub svg: String,
}

/// File names of all plots that there can be.
pub const FILES: [&str; 5] = [CPU, LATENCY, MEMORY, SIZES, FLEET];

const CPU: &str = "cpu.svg";
const LATENCY: &str = "latency.svg";
const MEMORY: &str = "memory.svg";
const SIZES: &str = "sizes.svg";
const FLEET: &str = "fleet.svg";

/// Every plot that has something to show.
pub fn all(figures: &Figures<'_>) -> Result<Vec<Plot>> {
    let pictures = [
        (
            CPU,
            "Processor time of both proxies for a request; whiskers from the least to the most of the rounds.",
            cpu(figures),
        ),
        (LATENCY, "Latency at fixed rates, parts of HAProxy's highest, open loop, on a log scale.", latency(figures)),
        (MEMORY, "Memory of an idle proxy, and of the pair for each idle connection.", memory(figures)),
        (SIZES, "The highest rate as endpoints and routes grow in number.", sizes(figures)),
        (FLEET, "From an endpoint's change to the last ACK of the fleet, on a log scale.", fleet(figures)),
    ];
    let drawn = pictures.into_iter().filter_map(|(file, shows, picture)| Some((file, shows, picture?)));
    drawn.map(|(file, shows, picture)| Ok(Plot { file, shows, svg: chart::svg(&picture)? })).collect()
}

fn cpu(figures: &Figures<'_>) -> Option<Picture> {
    let cases = [("http1", "HTTP/1.1"), ("http2", "HTTP/2"), ("grpc-unary", "gRPC unary")];
    let panel = bars(figures, "microseconds", "cpu_us", &cases)?;
    Some(picture(figures, "CPU per request, pair of proxies", vec![panel]))
}

fn memory(figures: &Figures<'_>) -> Option<Picture> {
    let idle = bars(figures, "idle, MB a proxy", "idle_mb", &[("idle", "")]);
    let connection = bars(figures, "kB an idle connection, pair", "connection_kb", &[("idle", "")]);
    let panels: Vec<Panel> = [idle, connection].into_iter().flatten().collect();
    (!panels.is_empty()).then(|| picture(figures, "Memory (PSS)", panels))
}

/// Bars of every contestant for each of these cases.
fn bars(figures: &Figures<'_>, title: &str, metric: &str, cases: &[(&str, &str)]) -> Option<Panel> {
    let mut groups = Vec::new();
    for (case, name) in cases {
        let contestants = figures.contestants().iter();
        let bars: Vec<(RGBColor, Spread)> =
            contestants.filter_map(|who| Some((colour(who), figures.spread(case, metric, who)?))).collect();
        if !bars.is_empty() {
            groups.push(((*name).to_owned(), bars));
        }
    }
    (!groups.is_empty()).then(|| Panel { title: title.to_owned(), marks: Marks::Bars(groups) })
}

fn latency(figures: &Figures<'_>) -> Option<Picture> {
    let percentiles = [("p50_us", "p50, µs"), ("p99_us", "p99, µs"), ("p999_us", "p99.9, µs")];
    let name = |rate: f64| format!("{rate}%");
    let panels: Vec<Panel> = percentiles
        .into_iter()
        .filter_map(|(metric, title)| lines(figures, title, "rate", metric, true, name))
        .collect();
    (!panels.is_empty()).then(|| picture(figures, "Latency at parts of HAProxy's highest rate", panels))
}

fn sizes(figures: &Figures<'_>) -> Option<Picture> {
    let kinds = [("endpoints", "requests/s by endpoints"), ("routes", "requests/s by routes")];
    let panels: Vec<Panel> = kinds
        .into_iter()
        .filter_map(|(prefix, title)| lines(figures, title, prefix, "rate", false, |number| format!("{number}")))
        .collect();
    (!panels.is_empty()).then(|| picture(figures, "Highest rate as the configuration grows", panels))
}

/// A line of every contestant over the cases `PREFIX-NUMBER`.
fn lines(
    figures: &Figures<'_>,
    title: &str,
    prefix: &str,
    metric: &str,
    log: bool,
    name: impl Fn(f64) -> String,
) -> Option<Panel> {
    let series: Vec<(RGBColor, Vec<(f64, Spread)>)> =
        figures.contestants().iter().map(|who| (colour(who), figures.series(prefix, metric, who))).collect();
    let mut numbers: Vec<f64> = series.iter().flat_map(|(_, points)| points).map(|(number, _)| *number).collect();
    numbers.sort_by(f64::total_cmp);
    numbers.dedup();
    let place = |number: f64| numbers.iter().position(|it| *it == number);
    let lines: Vec<Line> = series
        .into_iter()
        .filter(|(_, points)| !points.is_empty())
        .map(|(colour, points)| {
            let points = points.into_iter().filter_map(|(number, spread)| Some((place(number)?, spread))).collect();
            Line { colour, points }
        })
        .collect();
    let places = numbers.iter().map(|number| name(*number)).collect();
    (!lines.is_empty()).then(|| Panel { title: title.to_owned(), marks: Marks::Lines { places, log, lines } })
}

fn fleet(figures: &Figures<'_>) -> Option<Picture> {
    let mut cases: Vec<(u32, u32, &str)> = figures
        .rows()
        .iter()
        .filter(|(_, metric)| *metric == "ack_p99_ms")
        .filter_map(|(case, _)| fleet_size(case).map(|(sidecars, services)| (sidecars, services, *case)))
        .collect();
    cases.sort_unstable();
    let mut sidecars: Vec<u32> = cases.iter().map(|(sidecars, _, _)| *sidecars).collect();
    sidecars.dedup();
    let mut services: Vec<u32> = cases.iter().map(|(_, services, _)| *services).collect();
    services.sort_unstable();
    services.dedup();
    let shades: Vec<(u32, RGBColor)> = services.into_iter().zip(SHADES.into_iter().cycle()).collect();
    let places: Vec<String> = sidecars.iter().map(|number| format!("{number} sidecars")).collect();
    let panel = |metric: &str, title: &str| {
        let line = |(of, colour): &(u32, RGBColor)| {
            let points = cases.iter().filter(|(_, services, _)| services == of).filter_map(|(number, _, case)| {
                let place = sidecars.iter().position(|it| it == number)?;
                Some((place, figures.spread(case, metric, SUBJECT)?))
            });
            Line { colour: *colour, points: points.collect() }
        };
        let lines = shades.iter().map(line).collect();
        Panel { title: title.to_owned(), marks: Marks::Lines { places: places.clone(), log: true, lines } }
    };
    let panels = vec![panel("ack_p50_ms", "p50, ms"), panel("ack_p99_ms", "p99, ms")];
    let legend = shades.iter().map(|(number, colour)| (format!("{number} services"), *colour)).collect();
    let title = "Endpoint change to the last ACK, all sidecars interested".to_owned();
    (!cases.is_empty()).then_some(Picture { title, legend, panels })
}

/// With a legend of those who are in it.
fn picture(figures: &Figures<'_>, title: &str, panels: Vec<Panel>) -> Picture {
    let shown = |colour: &RGBColor| panels.iter().any(|panel| panel.marks.have(*colour));
    let everyone = figures.contestants().iter().map(|who| (contestant(who).to_owned(), colour(who)));
    let legend = everyone.filter(|(_, colour)| shown(colour)).collect();
    Picture { title: title.to_owned(), legend, panels }
}

/// A contestant has one colour in all plots (Okabe and Ito's, told apart by the colour-blind).
fn colour(who: &str) -> RGBColor {
    KNOWN.iter().position(|known| *known == who).map_or(RGBColor(150, 120, 60), |place| COLOURS[place])
}

const COLOURS: [RGBColor; KNOWN.len()] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(130, 130, 130),
];

/// Of Weft's colour, for numbers of services.
const SHADES: [RGBColor; 4] =
    [RGBColor(86, 180, 233), RGBColor(0, 114, 178), RGBColor(0, 50, 90), RGBColor(120, 120, 120)];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for (factor, who) in (1u32..).zip(KNOWN) {
            let factor = f64::from(factor);
            for round in 1..=3 {
                let mut add = |case: &str, metric: &str, value: f64| {
                    samples.push(Sample::new(
                        case,
                        who,
                        metric,
                        round,
                        value * factor * (1.0 + f64::from(round) / 20.0),
                    ));
                };
                for case in ["http1", "http2", "grpc-unary"] {
                    add(case, "cpu_us", 50.0);
                }
                for rate in [25, 50, 75] {
                    for (metric, value) in [("p50_us", 100.0), ("p99_us", 300.0), ("p999_us", 2000.0)] {
                        add(&format!("rate-{rate}"), metric, value * f64::from(rate) / 25.0);
                    }
                }
                add("idle", "idle_mb", 8.0);
                add("idle", "connection_kb", 8.0);
                for size in [10, 1000, 10_000] {
                    add(&format!("routes-{size}"), "rate", 20_000.0);
                    add(&format!("endpoints-{size}"), "rate", 20_000.0);
                }
            }
        }
        for (sidecars, services) in [(100, 100), (100, 10_000), (1000, 100), (1000, 10_000)] {
            for (metric, value) in [("ack_p50_ms", 0.1), ("ack_p99_ms", 0.3)] {
                let case = format!("fleet-{sidecars}x{services}");
                let value = value * f64::from(sidecars) + f64::from(services) / 100.0;
                samples
                    .extend((1..=2).map(|round| Sample::new(&case, SUBJECT, metric, round, value * f64::from(round))));
            }
        }
        samples
    }

    #[test]
    fn plots_are_stable_and_small() {
        let samples = samples();
        let plots = all(&Figures::new(&samples)).unwrap();
        let again = all(&Figures::new(&samples)).unwrap();
        assert_eq!(plots.iter().map(|plot| plot.file).collect::<Vec<_>>(), FILES);
        for (plot, again) in plots.iter().zip(&again) {
            assert_eq!(plot.svg, again.svg);
            assert!(plot.svg.len() < 60_000, "{}: {} bytes", plot.file, plot.svg.len());
            assert!(plot.svg.contains("fill=\"#FFFFFF\""), "{} has no white background", plot.file);
        }
        let cpu = &plots[0].svg;
        for name in ["Weft", "Envoy", "HAProxy", "nginx", "TCP relay", "HTTP/1.1", "gRPC unary"] {
            assert!(cpu.contains(name), "{name} is not in {cpu}");
        }
    }

    #[test]
    fn a_bar_is_as_high_as_its_figure() {
        let samples: Vec<Sample> =
            [("weft", 50.0), ("envoy", 100.0)].map(|(who, v)| Sample::new("http1", who, "cpu_us", 1, v)).to_vec();
        let svg = &all(&Figures::new(&samples)).unwrap()[0].svg;
        let height = |colour: &str| -> f64 {
            let bar = svg.lines().rfind(|line| line.contains("<rect") && line.contains(colour)).unwrap();
            bar.split_once("height=\"").unwrap().1.split('"').next().unwrap().parse().unwrap()
        };
        assert!((height("#D55E00") / height("#0072B2") - 2.0).abs() < 0.05, "{svg}");
    }

    #[test]
    fn a_legend_names_only_who_is_shown() {
        let sample = |who: &str, case: &str| Sample::new(case, who, "rate", 1, 9.0);
        let samples = [sample("weft", "routes-10"), sample("envoy", "routes-10"), sample("nginx", "http1")];
        let svg = &all(&Figures::new(&samples)).unwrap()[0].svg;
        assert!(svg.contains("Weft") && svg.contains("Envoy") && !svg.contains("nginx"), "{svg}");
    }

    #[test]
    fn what_was_not_measured_has_no_plot() {
        assert!(all(&Figures::new(&[])).unwrap().is_empty());
        let samples = [Sample::new("idle", "weft", "idle_mb", 1, 8.0)];
        let files: Vec<&str> = all(&Figures::new(&samples)).unwrap().iter().map(|plot| plot.file).collect();
        assert_eq!(files, [MEMORY]);
    }
}
