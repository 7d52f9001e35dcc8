//! Images of programs that are on this machine: the program, its libraries, and what else it opens.

use std::{
    collections::BTreeSet,
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use weft_tests::docker::output;

/// An image; removed when dropped.
pub struct Packed {
    /// Its name.
    pub name: String,
}

impl Packed {
    /// Packs programs with what `ldd` says of them, and further files and folders. `own`: files with their text, and
    /// folders (`/NAME/`) in which everybody may write. `changes`: lines of a Dockerfile.
    pub fn new(what: &str, programs: &[&str], more: &[&str], own: &[(&str, &str)], changes: &[&str]) -> Result<Self> {
        Self::named(&format!("{}:test", weft_tests::docker::unique(what)), programs, more, own, changes)
    }

    /// The same, under a name that a compose file has already.
    pub fn named(name: &str, programs: &[&str], more: &[&str], own: &[(&str, &str)], changes: &[&str]) -> Result<Self> {
        let mut paths: BTreeSet<String> = programs.iter().chain(more).map(|path| (*path).to_owned()).collect();
        for program in programs {
            let needs = output("ldd", &[program], None)?;
            paths.extend(needs.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
        }
        let folder = tempfile::tempdir()?;
        let own = [own, &[("/tmp/", "")]].concat();
        for (name, content) in &own {
            let path = folder.path().join(name.trim_start_matches('/'));
            if name.ends_with('/') {
                std::fs::create_dir_all(&path)?;
                std::fs::set_permissions(path, Permissions::from_mode(0o1777))?;
            } else {
                std::fs::create_dir_all(path.parent().context("it lies in a folder")?)?;
                std::fs::write(path, content)?;
            }
        }
        let packed = Self { name: name.to_owned() };
        let mut tar = Command::new("tar")
            .args(["--create", "--dereference", "--exclude=__pycache__", "--exclude=test", "--directory=/"])
            .args(paths.iter().map(|path| path.trim_start_matches('/')))
            .arg(format!("--directory={}", folder.path().display()))
            .args(own.iter().map(|(path, _)| path.trim_start_matches('/')))
            .stdout(Stdio::piped())
            .spawn()
            .context("tar")?;
        let archive = tar.stdout.take().context("it has been asked for")?;
        let changes = changes.iter().flat_map(|change| ["--change", change]);
        let imported = Command::new("docker")
            .arg("import")
            .args(changes)
            .args(["-", &packed.name])
            .stdin(archive)
            .stdout(Stdio::null())
            .status()?;
        ensure!(tar.wait()?.success() && imported.success(), "{name} could not be packed");
        Ok(packed)
    }
}

/// Python's web server, which serves the folder that its arguments name.
pub fn python() -> Result<Packed> {
    let version = output("/usr/bin/python3", &["-c", "import os; print(os.path.dirname(os.__file__))"], None)?;
    Packed::new(
        "python",
        &["/usr/bin/python3"],
        &[version.trim()],
        USERS,
        &[r#"ENTRYPOINT ["/usr/bin/python3", "-m", "http.server"]"#],
    )
}

/// redis, its client, and a shell.
pub fn redis() -> Result<Packed> {
    Packed::new(
        "redis",
        &["/usr/bin/redis-server", "/usr/bin/redis-cli", "/bin/sh"],
        &[],
        USERS,
        &["EXPOSE 6379", r#"CMD ["redis-server"]"#],
    )
}

/// Prometheus, laid out as upstream's image is, under the name that a compose file has for that. Where the engine has
/// upstream's own, that is taken and kept.
pub fn prometheus(name: &str) -> Result<Option<Packed>> {
    if weft_tests::docker::docker(&["image", "inspect", name]).is_ok() {
        return Ok(None);
    }
    let packed = Packed::named(
        name,
        &["/bin/prometheus", "/bin/promtool"],
        &[],
        &[USERS, &[("/prometheus/", "")]].concat(),
        &[
            "USER nobody",
            "EXPOSE 9090",
            "VOLUME /prometheus",
            "WORKDIR /prometheus",
            r#"ENTRYPOINT ["/bin/prometheus"]"#,
            r#"CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]"#,
        ],
    )?;
    Ok(Some(packed))
}

/// Files of an image that say who its users are.
pub const USERS: &[(&str, &str)] = &[
    ("/etc/passwd", "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/tmp:/bin/false\n"),
    ("/etc/group", "root:x:0:\nnogroup:x:65534:\nkeys:x:107:nobody\n"),
];

impl Drop for Packed {
    fn drop(&mut self) {
        if let Err(error) = weft_tests::docker::docker(&["rmi", "--force", &self.name]) {
            eprintln!("an image is left: {error:#}");
        }
    }
}
