//! README, "Compose in five minutes": word for word, as a new user would.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use weft_tests::{
    docker::{available, output, unique},
    mesh::program,
};

/// A block of the section: a file to write, or commands to run.
#[derive(Debug)]
enum Block {
    File(String, String),
    Run(String),
}

#[test]
fn compose_in_five_minutes() -> Result<()> {
    if !available("README: Compose in five minutes")? {
        return Ok(());
    }
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let blocks = section(&std::fs::read_to_string(readme)?, "## Compose in five minutes");
    let runs = blocks.iter().filter(|block| matches!(block, Block::Run(_))).count();
    ensure!(runs >= 4, "the section has only {runs} blocks that are run: {blocks:?}");
    let user = User::new()?;
    let began = Instant::now();
    for block in &blocks {
        match block {
            Block::File(name, text) => std::fs::write(user.folder.join(name), text)?,
            Block::Run(text) => drop(user.types(text).with_context(|| text.clone())?),
        }
    }
    ensure!(began.elapsed() < Duration::from_secs(300), "it took {:?}", began.elapsed());
    Ok(())
}

/// The blocks of a section that say how they are to be taken.
fn section(text: &str, title: &str) -> Vec<Block> {
    let lines = text.lines().skip_while(|line| *line != title).skip(1).take_while(|line| !line.starts_with("## "));
    let (mut blocks, mut order, mut body) = (Vec::new(), None, None::<String>);
    for line in lines {
        match (&mut body, line) {
            (None, line) if line.starts_with("<!-- ") => order = Some(line),
            (None, line) if line.starts_with("```") => body = Some(String::new()),
            (Some(text), "```") => {
                let text = std::mem::take(text);
                let file = order.and_then(|order: &str| order.strip_prefix("<!-- file: ")?.strip_suffix(" -->"));
                match (order, file) {
                    (_, Some(name)) => blocks.push(Block::File(name.to_owned(), text)),
                    (Some("<!-- run with an engine -->"), None) => blocks.push(Block::Run(text)),
                    _ => {}
                }
                (order, body) = (None, None);
            }
            (Some(text), line) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, _) => {}
        }
    }
    blocks
}

/// Somebody in a folder of their own. Whatever they started is taken down in the end.
struct User {
    folder: PathBuf,
    _kept: tempfile::TempDir,
}

impl User {
    fn new() -> Result<Self> {
        let kept = tempfile::tempdir()?;
        // Compose calls the project after the folder.
        let folder = kept.path().join(unique("readme"));
        std::fs::create_dir(&folder)?;
        Ok(Self { folder, _kept: kept })
    }

    fn types(&self, text: &str) -> Result<String> {
        let bin = program()?.parent().map(PathBuf::from).context("the program lies in a folder")?;
        let text = format!("export PATH='{}':\"$PATH\"\n{text}", bin.display());
        output("bash", &["-euo", "pipefail", "-c", &text], Some(&self.folder))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if self.folder.join("compose.weft.yaml").exists()
            && let Err(error) = self.types("docker compose -f compose.yaml -f compose.weft.yaml down --volumes -t 2")
        {
            eprintln!("a project is left: {error:#}");
        }
    }
}
