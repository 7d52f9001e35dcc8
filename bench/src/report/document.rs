//! Samples with what they were taken of, as JSON and back.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::sample::Sample;

/// Where, when and of what the samples of one run were taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Weft's version.
    pub weft: String,
    /// Weft's commit; `-dirty` when files differed from it. Absent without git.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Versions of the contestants, by name.
    #[serde(default)]
    pub contestants: BTreeMap<String, String>,
    /// Release of the kernel.
    pub kernel: String,
    /// Model of the processor.
    #[serde(default)]
    pub processor: String,
    /// Processors that the run could use.
    pub cores: usize,
    /// RFC 3339, UTC.
    pub date: String,
    /// Rounds that were asked for.
    pub rounds: u32,
    /// Short rounds, for a look.
    pub quick: bool,
}

impl Meta {
    /// What can be found out here; `contestants` are versions by name.
    ///
    /// # Errors
    /// When the kernel does not say what it is.
    pub fn gather(rounds: u32, quick: bool, contestants: BTreeMap<String, String>) -> Result<Self> {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("/proc/sys/kernel/osrelease")?;
        let processors = std::fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
        let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let now = OffsetDateTime::now_utc().replace_nanosecond(0).expect("0 is a nanosecond");
        Ok(Self {
            weft: env!("CARGO_PKG_VERSION").to_owned(),
            commit: commit(),
            contestants,
            kernel: kernel.trim().to_owned(),
            processor: model.map_or_else(String::new, |(_, name)| name.trim().to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            date: now.format(&Rfc3339).context("the year has four digits")?,
            rounds,
            quick,
        })
    }
}

/// The commit that is checked out; nothing where there is no git.
fn commit() -> Option<String> {
    let mut git = std::process::Command::new("git");
    git.args(["describe", "--always", "--dirty", "--exclude=*"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    // Not there, or no repository: the document then does without.
    let output = git.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

/// What one or several runs measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Document {
    /// One for each run that says what it was.
    pub metas: Vec<Meta>,
    /// Of all runs, with rounds numbered on from run to run.
    pub samples: Vec<Sample>,
}

#[derive(Serialize)]
struct Written<'a> {
    meta: &'a Meta,
    samples: &'a [Sample],
}

/// A run's file: with its meta, or samples alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Read {
    Run { meta: Meta, samples: Vec<Sample> },
    Samples(Vec<Sample>),
}

/// One run as JSON.
///
/// # Errors
/// When a value is no number, which JSON cannot hold.
pub fn json(meta: &Meta, samples: &[Sample]) -> Result<String> {
    for sample in samples {
        ensure!(sample.value.is_finite(), "{sample:?} is no figure");
    }
    Ok(serde_json::to_string_pretty(&Written { meta, samples })? + "\n")
}

/// Reads runs and puts them together.
///
/// # Errors
/// Names the file that cannot be read.
pub fn load(files: &[impl AsRef<Path>]) -> Result<Document> {
    let mut document = Document::default();
    for file in files {
        let file = file.as_ref();
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        document.add(&text).with_context(|| format!("{} was not written by a benchmark", file.display()))?;
    }
    Ok(document)
}

impl Document {
    /// Adds a run. Its rounds are numbered on: ratios are only ever of one run.
    fn add(&mut self, text: &str) -> Result<()> {
        let (meta, mut samples) = match serde_json::from_str(text)? {
            Read::Run { meta, samples } => (Some(meta), samples),
            Read::Samples(samples) => (None, samples),
        };
        let before = self.samples.iter().map(|sample| sample.round).max().unwrap_or_default();
        for sample in &mut samples {
            sample.round = sample.round.checked_add(before).context("rounds without end")?;
        }
        self.metas.extend(meta);
        self.samples.append(&mut samples);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> Meta {
        let contestants = BTreeMap::from([("envoy".to_owned(), "1.40".to_owned())]);
        Meta { weft: "0.1.0".to_owned(), contestants, cores: 2, rounds: 3, ..Meta::default() }
    }

    #[test]
    fn what_is_written_is_read() {
        let samples = [Sample::new("http1", "weft", "cpu_us", 1, 50.125)];
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run.json");
        std::fs::write(&file, json(&meta(), &samples).unwrap()).unwrap();
        assert_eq!(load(&[&file]).unwrap(), Document { metas: vec![meta()], samples: samples.to_vec() });
        std::fs::write(&file, "{}").unwrap();
        assert!(format!("{:#}", load(&[&file]).unwrap_err()).contains("run.json was not written by a benchmark"));
    }

    #[test]
    fn runs_are_put_together_without_mixing_rounds() {
        let mut document = Document::default();
        let sample = |round, value| Sample::new("http1", "weft", "cpu_us", round, value);
        document.add(&json(&meta(), &[sample(1, 1.0), sample(2, 2.0)]).unwrap()).unwrap();
        document.add(&serde_json::to_string(&[sample(1, 3.0)]).unwrap()).unwrap();
        assert_eq!(document.samples, [sample(1, 1.0), sample(2, 2.0), sample(3, 3.0)]);
        assert_eq!(document.metas.len(), 1);
    }

    #[test]
    fn what_is_no_number_is_refused() {
        assert!(json(&meta(), &[Sample::new("http1", "weft", "cpu_us", 1, f64::NAN)]).is_err());
    }

    #[test]
    fn a_run_here_says_where_it_ran() {
        let meta = Meta::gather(2, true, BTreeMap::new()).unwrap();
        assert!(!meta.kernel.is_empty() && meta.cores > 0 && meta.date.ends_with('Z'), "{meta:?}");
    }
}
