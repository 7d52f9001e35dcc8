//! Files that hold secrets: written whole or not at all, and readable by their owner alone.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Writes a file of mode 0600 atomically: temporary file beside it, fsync, rename, fsync of the directory. Missing
/// directories are made with mode 0700.
///
/// # Errors
/// Whatever the file system answers; the old file is then still in place.
pub fn write_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    create_private_dir(dir)?;
    let mut file =
        tempfile::Builder::new().prefix(".weft-").permissions(Permissions::from_mode(FILE)).tempfile_in(dir)?;
    file.write_all(contents)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(dir)?.sync_all()
}

/// Makes a directory and its missing parents with mode 0700. One that is there already keeps its mode.
///
/// # Errors
/// Whatever the file system answers.
pub fn create_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY).create(dir)
}

/// Reads a file that holds a secret. When others may read it, its mode is set to 0600 and a warning logged.
///
/// # Errors
/// Whatever the file system answers.
pub fn read_private(path: &Path) -> io::Result<String> {
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & OTHERS != 0 {
        tracing::warn!(path = %path.display(), mode = format!("{:o}", mode & 0o777), "others could read this secret; set to 0600");
        fs::set_permissions(path, Permissions::from_mode(FILE))?;
    }
    fs::read_to_string(path)
}

const FILE: u32 = 0o600;
const DIRECTORY: u32 = 0o700;
const OTHERS: u32 = 0o077;

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn files_and_directories_are_the_owners_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/secret");
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(read_private(&path).unwrap(), "two");
        assert_eq!(mode(&path), 0o600);
        assert_eq!((mode(&root.path().join("a")), mode(&root.path().join("a/b"))), (0o700, 0o700));
        assert_eq!(fs::read_dir(root.path().join("a/b")).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_wide_mode_is_tightened_when_read() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("secret");
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(read_private(&path).unwrap(), "x");
        assert_eq!(mode(&path), 0o600);
    }
}
