//! What the kernel says of a process.

use std::time::Duration;

use anyhow::{Context, Result};

/// The kernel's unit in /proc/PID/stat, fixed for user space on Linux.
const TICKS_PER_SECOND: u64 = 100;

/// Processor time of a process and all of its threads.
///
/// # Errors
/// When it is gone.
pub fn cpu(pid: u32) -> Result<Duration> {
    // Finer than the ticks of `stat`: nanoseconds on the run queue's clock, thread by thread.
    let mut nanos = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        match std::fs::read_to_string(task?.path().join("schedstat")) {
            Ok(text) => nanos += text.split(' ').next().unwrap_or("0").parse::<u64>()?,
            Err(_) => return cpu_by_ticks(pid),
        }
    }
    Ok(Duration::from_nanos(nanos))
}

fn cpu_by_ticks(pid: u32) -> Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = text.rsplit(')').next().context("a name in brackets")?.split_whitespace().collect();
    let ticks: u64 = fields.get(11..13).context("utime and stime")?.iter().map(|f| f.parse::<u64>().unwrap_or(0)).sum();
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// Proportional set size, in bytes.
///
/// # Errors
/// When it is gone.
pub fn memory(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find(|line| line.starts_with("Pss:")).context("a Pss line")?;
    let kib: u64 = line.split_whitespace().nth(1).context("a figure")?.parse()?;
    Ok(kib * 1024)
}

/// A process and those that it started: nginx's work is done by children.
///
/// # Errors
/// When it is gone.
pub fn tree(pid: u32) -> Result<Vec<u32>> {
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        let tasks = std::fs::read_dir(format!("/proc/{parent}/task"));
        for task in tasks.with_context(|| format!("process {parent} has ended"))? {
            let children = std::fs::read_to_string(task?.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
        at += 1;
    }
    Ok(found)
}
