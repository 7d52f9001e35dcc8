//! Programs that this Debian does not have, from the packages of its next release: fetched by apt from the machine's own
//! mirror, proved by Debian's keyring, unpacked below `target/`, never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::run;

/// The release that has them; on a machine of this release it is the same one.
const RELEASE: &str = "trixie";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Folder with a package's files; fetched once.
///
/// # Errors
/// When this is not Debian, or the package cannot be fetched.
pub fn unpacked(root: &Path, package: &str) -> Result<PathBuf> {
    let place = crate::build::target(root)?.join("debian");
    let folder = place.join(package);
    if folder.exists() {
        return Ok(folder);
    }
    ensure!(Path::new(KEYRING).exists(), "{package} comes from Debian's packages, and this is not Debian ({KEYRING})");
    let apt = Apt::new(&place.join("apt"))?;
    let fetched = place.join(format!("{package}.new"));
    if fetched.exists() {
        fs::remove_dir_all(&fetched)?;
    }
    fs::create_dir_all(&fetched)?;
    apt.run(&fetched, &["download", package])?;
    let packages: Vec<PathBuf> = fs::read_dir(&fetched)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    let [file] = &packages[..] else { bail!("apt-get download {package} left {packages:?}") };
    let unpacked = fetched.join("unpacked");
    run::quietly(root, "dpkg", &[Path::new("--extract"), file, &unpacked])?;
    // Under its name only when it is whole.
    fs::rename(&unpacked, &folder)?;
    fs::remove_dir_all(&fetched)?;
    Ok(folder)
}

/// apt with lists of its own: the machine's stay as they are.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn new(place: &Path) -> Result<Self> {
        for folder in ["lists/partial", "cache/archives/partial", "sources"] {
            fs::create_dir_all(place.join(folder))?;
        }
        let source =
            format!("Types: deb\nURIs: {}\nSuites: {RELEASE}\nComponents: main\nSigned-By: {KEYRING}\n", mirror()?);
        fs::write(place.join("sources/next.sources"), source)?;
        let at = |what: &str| place.join(what).display().to_string();
        let settings = [
            format!("Dir::State::lists={}", at("lists")),
            format!("Dir::Cache={}", at("cache")),
            "Dir::Etc::sourcelist=/dev/null".to_owned(),
            format!("Dir::Etc::sourceparts={}", at("sources")),
            "Dir::Etc::preferencesparts=/dev/null".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            // Its own user may not be allowed to enter the folder.
            "APT::Sandbox::User=root".to_owned(),
        ];
        let options = ["--quiet", "--quiet"].map(str::to_owned);
        let options =
            options.into_iter().chain(settings.into_iter().flat_map(|s| ["--option".to_owned(), s])).collect();
        let apt = Self { options };
        apt.run(place, &["update"])?;
        Ok(apt)
    }

    fn run(&self, folder: &Path, command: &[&str]) -> Result<()> {
        let words: Vec<&str> = self.options.iter().map(String::as_str).chain(command.iter().copied()).collect();
        run::quietly(folder, "apt-get", &words)
    }
}

/// Where this machine's own packages come from; the security archive has no next release.
fn mirror() -> Result<String> {
    let ask = ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"];
    let output = Command::new("apt-get").args(ask).output().context("apt-get")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let main = text.lines().find(|uri| !uri.trim_end_matches('/').ends_with("security"));
    Ok(main.context("this machine has no sources for Debian's packages (/etc/apt/sources.list.d)")?.to_owned())
}
