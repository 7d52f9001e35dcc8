//! docs/performance.md: the results between their markers, and the plots beside it.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use super::{
    document::{Document, Meta},
    plots::{self, Plot},
    stats::Figures,
    tables,
    words::contestant,
};

/// Writes the results into `docs/performance.md` and the plots into `docs/plots`, below `root`.
///
/// # Errors
/// When the page is not there or has lost its markers; then nothing is written.
pub fn publish(root: &Path, document: &Document) -> Result<()> {
    let page = root.join("docs/performance.md");
    let text = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    let figures = Figures::new(&document.samples);
    let plots = plots::all(&figures)?;
    let written = between(&text, &results(document, &figures, &plots)).with_context(|| page.display().to_string())?;
    let folder = root.join("docs/plots");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    for file in plots::FILES {
        let path = folder.join(file);
        match plots.iter().find(|plot| plot.file == file) {
            Some(plot) => fs::write(&path, &plot.svg).with_context(|| path.display().to_string())?,
            // A plot of an older run would contradict the tables.
            None if path.exists() => fs::remove_file(&path).with_context(|| path.display().to_string())?,
            None => {}
        }
    }
    fs::write(&page, written).with_context(|| page.display().to_string())
}

fn results(document: &Document, figures: &Figures<'_>, plots: &[Plot]) -> String {
    let mut text = String::new();
    document.metas.iter().for_each(|meta| text.push_str(&origin(meta)));
    for table in tables::all(figures) {
        text.push_str(&format!("\n### {}\n\n{}\n\n{}", table.heading, table.reading, table.text()));
    }
    if !plots.is_empty() {
        text.push_str("\n### Plots\n");
    }
    for Plot { file, shows, .. } in plots {
        text.push_str(&format!("\n{shows}\n\n![{shows}](plots/{file})\n"));
    }
    text
}

/// One line on a run.
fn origin(meta: &Meta) -> String {
    let commit = meta.commit.as_ref().map_or(String::new(), |commit| format!(" ({commit})"));
    let against: Vec<String> =
        meta.contestants.iter().map(|(name, version)| format!("{} {version}", contestant(name))).collect();
    let against = if against.is_empty() { String::new() } else { format!(" beside {}", against.join(", ")) };
    let rounds = if meta.rounds == 1 { "1 round" } else { &format!("{} rounds", meta.rounds) };
    let short = if meta.quick { " (--quick)" } else { "" };
    let processor = if meta.processor.is_empty() { "" } else { &format!(" of {}", meta.processor) };
    format!(
        "- Weft {}{commit}{against}: {rounds}{short}, {} cores{processor}, Linux {}, {}.\n",
        meta.weft, meta.cores, meta.kernel, meta.date
    )
}

/// `page` with `results` between its markers.
fn between(page: &str, results: &str) -> Result<String> {
    let lines = |marker| page.match_indices(marker).count();
    if (lines(BEGIN), lines(END)) != (1, 1) {
        bail!("the lines {BEGIN} and {END} must stand in it, once each");
    }
    let (before, rest) = page.split_once(BEGIN).expect("it is there once");
    let (_, after) = rest.split_once(END).context("its markers stand in the wrong order")?;
    Ok(format!("{before}{BEGIN}\n{}\n{END}{after}", results.trim_end()))
}

const BEGIN: &str = "<!-- results: begin -->";
const END: &str = "<!-- results: end -->";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    #[test]
    fn only_what_stands_between_the_markers_changes() {
        let page = format!("# Title\n\n{BEGIN}\nold\n{END}\n\nrest\n");
        let written = between(&page, "new\n").unwrap();
        assert_eq!(written, format!("# Title\n\n{BEGIN}\nnew\n{END}\n\nrest\n"));
        assert_eq!(between(&written, "new\n").unwrap(), written);
    }

    #[test]
    fn lost_markers_are_named() {
        for page in ["", BEGIN, &format!("{END}{BEGIN}"), &format!("{BEGIN}{END}{BEGIN}{END}")] {
            assert!(between(page, "new").is_err(), "{page}");
        }
    }

    #[test]
    fn a_run_is_published_as_page_and_plots() {
        let root = tempfile::tempdir().unwrap();
        let docs = root.path().join("docs");
        fs::create_dir_all(docs.join("plots")).unwrap();
        fs::write(docs.join("performance.md"), format!("# P\n{BEGIN}\n{END}\n")).unwrap();
        fs::write(docs.join("plots/fleet.svg"), "of an older run").unwrap();
        fs::write(docs.join("plots/flame.svg"), "not ours").unwrap();
        let meta = Meta { weft: "0.1.0".to_owned(), rounds: 1, cores: 2, ..Meta::default() };
        let samples = vec![Sample::new("idle", "weft", "idle_mb", 1, 7.5)];
        publish(root.path(), &Document { metas: vec![meta], samples }).unwrap();

        let page = fs::read_to_string(docs.join("performance.md")).unwrap();
        assert!(page.contains("- Weft 0.1.0: 1 round, 2 cores"), "{page}");
        assert!(page.contains("≤ 8 MB") && page.contains("| 7.50 "), "{page}");
        assert!(page.contains("](plots/memory.svg)") && !page.contains("fleet.svg"), "{page}");
        let mut plots: Vec<_> = fs::read_dir(docs.join("plots")).unwrap().map(|it| it.unwrap().file_name()).collect();
        plots.sort();
        assert_eq!(plots, ["flame.svg", "memory.svg"]);
    }

    #[test]
    fn the_page_of_this_repository_has_its_markers() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/performance.md");
        between(&fs::read_to_string(page).unwrap(), "").unwrap();
    }
}
