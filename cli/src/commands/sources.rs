//! Files, folders and standard input that hold resources.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use weft_proto::weft::v1::Source;

/// Reads every file named; of a folder, the .yaml, .yml and .json files in it, in order of name.
///
/// # Errors
/// When one cannot be read, or a folder holds none.
pub fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Source>> {
    let mut sources = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut content = Vec::new();
            std::io::stdin().read_to_end(&mut content).context("standard input")?;
            sources.push(Source { file: "-".to_owned(), content });
        } else if path.is_dir() {
            sources.extend(read_folder(path)?);
        } else {
            sources.push(read_file(path)?);
        }
    }
    Ok(sources)
}

fn read_folder(path: &Path) -> anyhow::Result<Vec<Source>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(path)
        .with_context(|| path.display().to_string())?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|file| file.extension().is_some_and(|ext| ["yaml", "yml", "json"].iter().any(|known| ext == *known)));
    files.sort();
    if files.is_empty() {
        bail!("{} holds no .yaml, .yml or .json file", path.display());
    }
    files.iter().map(|file| read_file(file)).collect()
}

fn read_file(path: &Path) -> anyhow::Result<Source> {
    let content = std::fs::read(path).with_context(|| path.display().to_string())?;
    Ok(Source { file: path.display().to_string(), content })
}
