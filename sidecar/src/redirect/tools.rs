//! The programs that set rules: where they are, and how they are run.

use std::{
    ffi::OsString,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// Looked at when PATH has no such program: that of an unprivileged user often lacks these.
const SYSTEM: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// A program that can be run.
#[derive(Debug, Clone)]
pub struct Tool {
    name: &'static str,
    command: Vec<OsString>,
    extensions: Option<PathBuf>,
}

/// What a run of a program came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The words of the command.
    pub command: String,
    /// What it said, or why it did not run.
    pub said: String,
}

impl Tool {
    /// Looks in a folder of tools (`bin/` and `lib/`, with the loader if they need one), else in PATH.
    #[must_use]
    pub fn find(name: &'static str, folder: Option<&Path>) -> Option<Self> {
        match folder {
            Some(folder) => Self::inside(name, folder),
            None => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                let folders: Vec<_> = std::env::split_paths(&path).chain(std::env::split_paths(SYSTEM)).collect();
                let program = folders.iter().map(|folder| folder.join(name)).find(|program| program.is_file())?;
                Some(Self { name, command: vec![program.into()], extensions: None })
            }
        }
    }

    fn inside(name: &'static str, folder: &Path) -> Option<Self> {
        let (program, libraries) = (folder.join("bin").join(name), folder.join("lib"));
        if !program.is_file() {
            return None;
        }
        let mut command = Vec::new();
        // The folder's programs were made for its own libraries, whatever the image around it has.
        if let Some(loader) = loader(&libraries) {
            command = vec![loader.into(), "--library-path".into(), libraries.clone().into()];
            // Programs like iptables are one file with many names, and ask by which they were called.
            command.extend(["--argv0".into(), OsString::from(name)]);
        }
        command.push(program.into());
        let extensions = Some(libraries.join("xtables")).filter(|folder| folder.is_dir());
        Some(Self { name, command, extensions })
    }

    /// Runs it to its end with something at its standard input: its standard output.
    ///
    /// # Errors
    /// When it cannot be run, or says so.
    pub fn run(&self, args: &[&str], input: &str) -> Result<String, Failure> {
        let failed = |said: String| Failure { command: format!("{} {}", self.name, args.join(" ")), said };
        let output = self.output(args, input).map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = if said.trim().is_empty() { output.status.to_string() } else { said.trim().to_owned() };
            return Err(failed(said));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn output(&self, args: &[&str], input: &str) -> io::Result<Output> {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).args(args);
        if let Some(extensions) = &self.extensions {
            command.env("XTABLES_LIBDIR", extensions);
        }
        // What it says is compared and shown; in whose language must not matter.
        command.env("LC_ALL", "C").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that reads no further has failed, which its status tells.
            let _ = stdin.write_all(input.as_bytes());
        }
        child.wait_with_output()
    }
}

fn loader(libraries: &Path) -> Option<PathBuf> {
    let mut names: Vec<_> = fs::read_dir(libraries).ok()?.flatten().map(|entry| entry.file_name()).collect();
    names.sort_unstable();
    let is_loader = |name: &OsString| name.to_str().is_some_and(|name| name.starts_with("ld-"));
    names.into_iter().find(is_loader).map(|name| libraries.join(name))
}
