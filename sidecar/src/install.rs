//! `install DIR`: this program into a folder, from where others run it.
//!
//! How the wrapper reaches the containers of a compose project: a one-shot service puts it into a volume that all of them
//! mount. What is there stays whole: a program that runs is replaced, not written over.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// What others run.
const PROGRAM: u32 = 0o555;
/// Name of the program, whatever this process was started as.
const NAME: &str = "weft-sidecar";
/// Name of the folder of tools.
const TOOLS: &str = "tools";
/// Far more than the tools have.
const DEEPEST: usize = 8;

/// It could not be put there.
#[derive(Debug, Error)]
#[error("{} cannot be installed in {}: {source}; is the folder a volume that this user may write?", what.display(), into.display())]
pub struct NotInstalled {
    what: PathBuf,
    into: PathBuf,
    source: io::Error,
}

/// Puts this program into `directory`, and with it the folder `tools`, if there is one.
/// # Errors
/// [`NotInstalled`].
pub fn install(directory: &Path, tools: Option<&Path>) -> Result<(), NotInstalled> {
    let failed = |what: &Path| {
        let (what, into) = (what.to_owned(), directory.to_owned());
        move |source| NotInstalled { what, into, source }
    };
    fs::create_dir_all(directory).map_err(failed(directory))?;
    let own = std::env::current_exe().map_err(failed(Path::new(NAME)))?;
    if let Some(tools) = tools {
        copy(tools, &directory.join(TOOLS), DEEPEST).map_err(failed(tools))?;
    }
    // Last: who finds the program finds its tools.
    copy(&own, &directory.join(NAME), 0).map_err(failed(&own))
}

/// A file or a folder; each file appears whole.
fn copy(from: &Path, to: &Path, depth: usize) -> io::Result<()> {
    if !from.is_dir() {
        let new = to.with_extension(format!("new-{}", std::process::id()));
        fs::copy(from, &new)?;
        fs::set_permissions(&new, Permissions::from_mode(PROGRAM))?;
        fs::File::open(&new)?.sync_all()?;
        return fs::rename(&new, to);
    }
    if depth == 0 {
        return Err(io::Error::other("folders lie too deep"));
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        copy(&from.join(&name), &to.join(&name), depth - 1)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_and_tools_lie_there_and_may_be_run() {
        let folder = tempfile::tempdir().unwrap();
        let tools = folder.path().join("from");
        fs::create_dir_all(tools.join("bin")).unwrap();
        fs::write(tools.join("bin/nft"), "one").unwrap();
        let to = folder.path().join("to");
        install(&to, Some(&tools)).unwrap();
        fs::write(tools.join("bin/nft"), "two").unwrap();
        install(&to, Some(&tools)).unwrap();
        let mode = |path: &str| fs::metadata(to.join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("weft-sidecar"), mode("tools/bin/nft")), (0o555, 0o555));
        assert_eq!(fs::read_to_string(to.join("tools/bin/nft")).unwrap(), "two");
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        assert_eq!(size(&to.join("weft-sidecar")), size(&std::env::current_exe().unwrap()));
        assert_eq!(fs::read_dir(&to).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn where_nothing_can_be_written_it_says_so() {
        let error = install(Path::new("/proc/nowhere"), None).unwrap_err().to_string();
        assert!(error.contains("/proc/nowhere") && error.contains("volume"), "{error}");
    }
}
