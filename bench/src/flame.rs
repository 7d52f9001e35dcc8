//! The flame graph of the pair at load: `perf` records both sidecars, kernel included, and inferno draws.
//!
//! Needs symbols and frame pointers, which `cargo xtask bench --flame FILE` builds in (profile `profiling`), and Debian's
//! `linux-perf` with the right to use it (root, or kernel.perf_event_paranoid at 1 or less).

use std::{
    collections::BTreeMap,
    io::BufReader,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use inferno::{
    collapse::{Collapse, perf},
    flamegraph::{self, Palette, color::MultiPalette},
};

use crate::{
    backend::Backend,
    contestants::{self, Kind, Pair, Scene, Shape},
    load::{closed_loop, http1},
};

/// Draws the pair under 64 connections of HTTP/1.1 into `file`.
///
/// # Errors
/// When the pair does not come up, or perf is not there or may not record.
pub async fn run(backend: &Backend, place: &Path, file: &Path) -> Result<()> {
    let scene = Scene { shape: Shape::Pair, workers: 1 };
    let pair = contestants::start(Kind::Weft, scene, &place.join("flame"), backend).await?;
    let mut pair = pair.context("Weft has a pair")?;
    let stacks = record(&pair, place).await;
    let stacks = pair.explain(stacks);
    pair.stop().await;
    let svg = draw(&stacks?)?;
    std::fs::write(file, svg).with_context(|| file.display().to_string())?;
    eprintln!("the flame graph is {}", file.display());
    Ok(())
}

/// What both proxies did under load, as folded stacks.
async fn record(pair: &Pair, place: &Path) -> Result<String> {
    let proxies = pair.proxies()?;
    let mut callers = http1::connections(&pair.http1, CONNECTIONS).await?;
    closed_loop(&mut callers, WARM).await?;
    let pids: Vec<String> = proxies.iter().flatten().map(u32::to_string).collect();
    let data = place.join("perf.data");
    let seconds = RECORD.as_secs().to_string();
    let mut perf = Command::new("perf");
    // The processor's own counters are not there in most virtual machines; its clock is.
    perf.args(["record", "--quiet", "-e", "cpu-clock", "-F", "499", "--call-graph", "fp", "-o"]).arg(&data);
    perf.args(["-p", &pids.join(","), "--", "sleep", &seconds]).stdin(Stdio::null()).stderr(Stdio::piped());
    let recording = perf.spawn().context("perf cannot be started: install linux-perf")?;
    // Until after perf has ended: what it sees is load alone.
    let load = closed_loop(&mut callers, RECORD + WARM).await;
    let ended = recording.wait_with_output()?;
    if !ended.status.success() {
        bail!("perf record: {}", String::from_utf8_lossy(&ended.stderr).trim());
    }
    load?;
    let names: BTreeMap<u32, &str> = proxies
        .iter()
        .zip(["caller's sidecar", "callee's sidecar"])
        .flat_map(|(pids, name)| pids.iter().map(move |pid| (*pid, name)))
        .collect();
    fold(&data, &names)
}

/// Stacks, one a line, beginning with whose they are.
fn fold(data: &Path, names: &BTreeMap<u32, &str>) -> Result<String> {
    let mut script = Command::new("perf");
    // Without the period, so that every sample counts one.
    script.args(["script", "--force", "--no-inline", "-F", "comm,pid,tid,time,event,ip,sym,dso", "-i"]).arg(data);
    let mut script = script.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let output = script.stdout.take().context("its output is piped")?;
    let mut options = perf::Options::default();
    options.include_pid = true;
    options.annotate_kernel = true;
    let mut folded = Vec::new();
    perf::Folder::from(options).collapse(BufReader::new(output), &mut folded)?;
    let status = script.wait()?;
    ensure!(status.success(), "perf script ended with {status}");
    let folded = String::from_utf8(folded)?;
    ensure!(!folded.is_empty(), "perf has seen nothing: are the proxies under load?");
    Ok(folded.lines().map(|line| renamed(line, names) + "\n").collect())
}

/// `THREAD-PID;frames` as `whose;THREAD;frames`. A row of unknown frames is one: they are a stack without its frame pointers.
fn renamed(line: &str, names: &BTreeMap<u32, &str>) -> String {
    let Some((stack, count)) = line.rsplit_once(' ') else { return line.to_owned() };
    let mut frames: Vec<&str> = stack.split(';').collect();
    frames.dedup_by(|one, other| one == other && *one == "[unknown]");
    let root = frames.remove(0);
    let frames: String = frames.iter().flat_map(|frame| [";", frame]).collect();
    let known = root.rsplit_once('-').and_then(|(thread, pid)| Some((names.get(&pid.parse().ok()?)?, thread)));
    match known {
        Some((name, thread)) => format!("{name};{thread}{frames} {count}"),
        None => format!("{root}{frames} {count}"),
    }
}

/// The picture, with narrow frames left out until it is small.
fn draw(stacks: &str) -> Result<String> {
    let mut narrowest = 0.05;
    loop {
        let mut options = flamegraph::Options::default();
        options.title = "A pair of Weft sidecars at load: HTTP/1.1, mutual TLS, 64 connections".to_owned();
        options.subtitle = Some(subtitle(stacks));
        options.colors = Palette::Multi(MultiPalette::Rust);
        // The same stacks, the same picture.
        options.deterministic = true;
        options.image_width = Some(1200);
        options.min_width = narrowest;
        let mut svg = Vec::new();
        flamegraph::from_lines(&mut options, stacks.lines(), &mut svg)?;
        if svg.len() <= LARGEST {
            return Ok(String::from_utf8(svg)?);
        }
        narrowest *= 1.5;
        ensure!(narrowest < 50.0, "a flame graph of {} bytes cannot be made smaller", svg.len());
    }
}

/// How much there is, and what part of it the kernel's.
fn subtitle(stacks: &str) -> String {
    let (mut all, mut kernel) = (0u64, 0u64);
    for line in stacks.lines() {
        let Some((frames, count)) = line.rsplit_once(' ') else { continue };
        let count = count.parse().unwrap_or(0);
        all += count;
        if frames.ends_with("_[k]") {
            kernel += count;
        }
    }
    match kernel {
        0 => format!("{all} samples; the kernel's frames are hidden here (kernel.kptr_restrict, perf_event_paranoid)"),
        _ => format!("{all} samples, {} % of them in the kernel", kernel * 100 / all.max(1)),
    }
}

const CONNECTIONS: usize = 64;
const WARM: Duration = Duration::from_secs(2);
const RECORD: Duration = Duration::from_secs(15);
/// Bytes that a page may load for a picture.
const LARGEST: usize = 290_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_say_whose_they_are() {
        let names = BTreeMap::from([(12, "caller's sidecar")]);
        assert_eq!(renamed("worker-0-12;main;read 3", &names), "caller's sidecar;worker-0;main;read 3");
        assert_eq!(renamed("worker-0-13;main;read 3", &names), "worker-0-13;main;read 3");
        assert_eq!(renamed("odd 1", &names), "odd 1");
        assert_eq!(renamed("w-1;a;[unknown];[unknown];[unknown];b;b 9", &names), "w-1;a;[unknown];b;b 9");
    }

    #[test]
    fn the_kernels_part_is_named() {
        assert_eq!(subtitle("a;b 3\na;tcp_sendmsg_[k] 1\n"), "4 samples, 25 % of them in the kernel");
        assert!(subtitle("a;b 3\n").contains("hidden"));
    }

    #[test]
    fn a_picture_is_small_and_stable() {
        let frame = |index: u64| format!("caller;worker-0;{};deep_{index}_[k] {}\n", "f;".repeat(8), 1 + index % 50);
        let stacks: String = (0..4000).map(frame).collect();
        let svg = draw(&stacks).unwrap();
        assert!(svg.len() <= LARGEST && svg.contains("worker-0"), "{} bytes", svg.len());
        assert_eq!(svg, draw(&stacks).unwrap());
    }
}
