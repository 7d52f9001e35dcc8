//! Atomic writes: a reader sees the old content or the new, never a half.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Writes `content` so that only the owner can read it (0600).
///
/// The bytes go to a file beside the target, are synced, and take its name; the directory is synced last, so that after
/// a crash the name shows either content whole.
///
/// # Errors
/// Of the file system, with the path named.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    replace(path, content, 0o600, Durable::Yes).map_err(|error| name(path, &error))
}

/// Writes `content` so that all can read it (0644), whole as [`write_private`] does, but does not wait for the disk: for
/// what the next start can do without. A start waits for nothing longer than for a disk.
///
/// # Errors
/// Of the file system, with the path named.
pub fn write_public(path: &Path, content: &[u8]) -> io::Result<()> {
    replace(path, content, 0o644, Durable::No).map_err(|error| name(path, &error))
}

/// Creates a directory, and those above it, for the owner alone (0700). One that exists is left as it is.
///
/// # Errors
/// Of the file system, with the path named.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| name(path, &error))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Durable {
    Yes,
    No,
}

fn replace(path: &Path, content: &[u8], mode: u32, durable: Durable) -> io::Result<()> {
    let temporary = beside(path);
    let written = write_new(&temporary, content, mode, durable).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The first error is the one to tell; the leftover is replaced by the next write.
        drop(fs::remove_file(&temporary));
        return written;
    }
    if durable == Durable::No {
        return Ok(());
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

fn write_new(path: &Path, content: &[u8], mode: u32, durable: Durable) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    if durable == Durable::Yes { file.sync_all() } else { Ok(()) }
}

/// A name beside the target, of this process alone.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.new", std::process::id()));
    path.with_file_name(name)
}

fn name(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn is_replaced_whole(write: impl Fn(&Path, &[u8]) -> io::Result<()>, mode: u32) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, "old, and longer than the new").unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn replaces_whole_and_stays_private() {
        is_replaced_whole(write_private, 0o600);
    }

    #[test]
    fn what_is_public_is_replaced_whole_as_well() {
        is_replaced_whole(write_public, 0o644);
    }

    #[test]
    fn an_error_names_the_path() {
        let error = write_private(Path::new("/nonexistent/key"), b"").unwrap_err();
        assert!(error.to_string().contains("/nonexistent/key"), "{error}");
    }

    #[test]
    fn directories_are_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        create_private_dir(&path).unwrap();
        create_private_dir(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
