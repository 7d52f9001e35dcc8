//! Every command that the documents show is run, in order, as a reader would type it.
//!
//! A `sh` block has a comment before it that says how: `<!-- run -->`, `<!-- run: background until: COMMAND -->` (it goes
//! on running, and what follows waits until COMMAND succeeds), `<!-- run: with kustomize -->` (left out, and said so, where
//! there is none), or `<!-- not run: REASON -->`. A block after `<!-- file: NAME -->` is written to that file. The
//! repository's `deploy` is there. What is to be `run with an engine` is, by the tests of
//! deployments.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::process::{Child, Command};
use weft::launch::wait_for;
use weft_tests::mesh::program;

/// Longer than any command of the documents takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the comment before a block asks for.
#[derive(Debug, PartialEq)]
enum Order {
    Run,
    WithKustomize,
    Background { until: String },
    NotRun,
    File(String),
}

#[derive(Debug)]
struct Block {
    line: usize,
    order: Order,
    text: String,
}

#[tokio::test]
async fn every_command_of_the_documents_works() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("tests/ lies in the workspace")?;
    let mut documents = vec![root.join("README.md")];
    for entry in std::fs::read_dir(root.join("docs"))? {
        documents.push(entry?.path());
    }
    documents.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    documents.sort();
    let mut ran = 0;
    for document in &documents {
        let blocks = blocks(&std::fs::read_to_string(document)?).with_context(|| document.display().to_string())?;
        ran += play(&blocks).await.with_context(|| document.display().to_string())?;
    }
    ensure!(ran >= 5, "only {ran} blocks were run: has the README lost its commands?");
    Ok(())
}

/// Plays the blocks of one document in a folder of their own; how many were run.
async fn play(blocks: &[Block]) -> Result<usize> {
    let folder = tempfile::tempdir()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("tests/ lies in the workspace")?;
    std::os::unix::fs::symlink(root.join("deploy"), folder.path().join("deploy"))?;
    let mut background = Vec::new();
    let mut ran = 0;
    for block in blocks {
        let place = || format!("line {}:\n{}", block.line, block.text);
        match &block.order {
            Order::NotRun => continue,
            Order::File(name) => std::fs::write(folder.path().join(name), &block.text)?,
            Order::Run => finished(folder.path(), &block.text).await.with_context(place)?,
            Order::WithKustomize => match kustomize() {
                Some(command) => {
                    // It may go by another name than in the documents.
                    let text = block.text.replace("kubectl kustomize", &command);
                    finished(folder.path(), &text).await.with_context(place)?;
                }
                None => {
                    eprintln!("left out, for there is no kustomize: {}", place());
                    continue;
                }
            },
            Order::Background { until } => {
                let mut command = shell(folder.path(), &block.text)?;
                background.push(Group(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?));
                wait_for(until, PATIENCE, async || finished(folder.path(), until).await.ok())
                    .await
                    .with_context(place)?;
            }
        }
        ran += usize::from(!matches!(block.order, Order::File(_)));
    }
    Ok(ran)
}

/// How kustomize is called here.
fn kustomize() -> Option<String> {
    if let Ok(command) = std::env::var("WEFT_KUSTOMIZE") {
        return Some(command);
    }
    let found = std::process::Command::new("kubectl").args(["kustomize", "--help"]).output();
    found.is_ok_and(|output| output.status.success()).then(|| "kubectl kustomize".to_owned())
}

async fn finished(folder: &Path, text: &str) -> Result<()> {
    let output = tokio::time::timeout(PATIENCE, shell(folder, text)?.output()).await.context("it does not end")??;
    let printed = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "{}\n{}", output.status, String::from_utf8_lossy(&printed));
    Ok(())
}

fn shell(folder: &Path, text: &str) -> Result<Command> {
    let bin = program()?.parent().map(PathBuf::from).context("the program lies in a folder")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = std::process::Command::new("bash");
    command
        .args(["-euo", "pipefail", "-c", text])
        .current_dir(folder)
        .env("PATH", format!("{}:{path}", bin.display()))
        .stdin(Stdio::null());
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut command = Command::from(command);
    command.kill_on_drop(true);
    Ok(command)
}

/// A shell and all that it started; ended when dropped.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        let Some(group) = self.0.id().and_then(|id| i32::try_from(id).ok()) else { return };
        // Fails only when all of them have ended.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}

/// The blocks of a document that are commands or files.
fn blocks(text: &str) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut order = None;
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        if let Some(comment) = line.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->")) {
            order = read_order(comment);
        } else if let Some(language) = line.strip_prefix("```") {
            let body: Vec<&str> = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
            match order.take() {
                Some(order) => blocks.push(Block { line: index + 1, order, text: body.join("\n") + "\n" }),
                None if language == "sh" => bail!("line {}: a sh block without a word on whether to run it", index + 1),
                None => {}
            }
        } else if !line.is_empty() {
            order = None;
        }
    }
    Ok(blocks)
}

fn read_order(comment: &str) -> Option<Order> {
    if let Some(until) = comment.strip_prefix("run: background until: ") {
        return Some(Order::Background { until: until.to_owned() });
    }
    if let Some(name) = comment.strip_prefix("file: ") {
        return Some(Order::File(name.to_owned()));
    }
    match comment {
        "run" => Some(Order::Run),
        "run: with kustomize" => Some(Order::WithKustomize),
        "run with an engine" => Some(Order::NotRun),
        _ if comment.starts_with("not run: ") => Some(Order::NotRun),
        _ => None,
    }
}

#[test]
fn a_block_without_an_order_is_refused() {
    assert!(blocks("```sh\nls\n```\n").is_err());
    let read = blocks("<!-- run -->\n```sh\nls\n```\n\n<!-- file: a.yaml -->\n```yaml\na: 1\n```\n").unwrap();
    assert_eq!((&read[0].order, &read[1].order), (&Order::Run, &Order::File("a.yaml".to_owned())));
    assert_eq!(read[1].text, "a: 1\n");
}
