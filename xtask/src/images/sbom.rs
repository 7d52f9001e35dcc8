//! What an image is made of, in CycloneDX: every crate in the program, the C library in it, Debian's packages beside it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// One part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Component {
    /// Name in its registry.
    pub name: String,
    version: String,
    /// As in `pkg:cargo/bytes@1.12.0`.
    purl: String,
    licence: Licence,
    sha256: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Licence {
    /// In SPDX's language.
    Spdx(String),
    /// By Debian's names.
    Named(BTreeSet<String>),
}

impl Component {
    /// An installed Debian package.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn debian(package: &str) -> Result<Self> {
        let format = "${Version}\t${Architecture}\n";
        let asked = Command::new("dpkg-query").args(["--show", "--showformat", format, package]).output()?;
        let text = String::from_utf8_lossy(&asked.stdout).into_owned();
        let line = text.lines().next().and_then(|line| line.split_once('\t'));
        let (version, architecture) = line.with_context(|| format!("Debian's package {package} is not installed"))?;
        let copyright = Path::new("/usr/share/doc").join(package).join("copyright");
        let copyright = std::fs::read_to_string(&copyright).with_context(|| copyright.display().to_string())?;
        let mut licences: BTreeSet<String> = copyright
            .lines()
            .filter_map(|line| line.strip_prefix("License:"))
            .map(|name| name.trim().to_owned())
            .collect();
        licences.remove("");
        if licences.is_empty() {
            licences.insert(format!("see /usr/share/doc/{package}/copyright"));
        }
        Ok(Self {
            name: package.to_owned(),
            version: version.to_owned(),
            purl: format!(
                "pkg:deb/debian/{package}@{}?arch={architecture}",
                version.replace('+', "%2B").replace(':', "%3A")
            ),
            licence: Licence::Named(licences),
            sha256: None,
        })
    }

    fn json(&self) -> Value {
        let mut json = json!({
            "type": "library",
            "bom-ref": self.purl,
            "name": self.name,
            "version": self.version,
            "purl": self.purl,
            "licenses": match &self.licence {
                Licence::Spdx(expression) => json!([{ "expression": expression }]),
                Licence::Named(names) => names.iter().map(|name| json!({ "license": { "name": name } })).collect(),
            },
        });
        if let Some(sum) = &self.sha256 {
            json["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
        }
        json
    }
}

/// The crates that are in a program of the workspace (not those that only built it), the standard library, and the C
/// library where Debian's is linked in.
///
/// # Errors
/// When cargo does not tell.
pub fn crates(root: &Path, package: &str, target: &str) -> Result<Vec<Component>> {
    let tree = ["tree", "--locked", "--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}\t{l}"];
    let output = Command::new(env!("CARGO"))
        .args(tree)
        .args(["--package", package, "--target", target])
        .current_dir(root)
        .output()
        .context("cargo tree")?;
    ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let lock = std::fs::read_to_string(root.join("Cargo.lock")).context("Cargo.lock")?;
    let mut all = parse(&String::from_utf8_lossy(&output.stdout), &checksums(&lock))?;
    all.push(standard_library()?);
    if Path::new("/etc/debian_version").exists() {
        all.push(Component::debian("libc6-dev")?);
    }
    all.sort();
    all.dedup();
    Ok(all)
}

fn parse(tree: &str, sums: &BTreeMap<(String, String), String>) -> Result<Vec<Component>> {
    let component = |line: &str| -> Result<Component> {
        let (package, licence) = line.split_once('\t').with_context(|| format!("cargo tree says `{line}`"))?;
        let mut words = package.split(' ');
        let (name, version) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let version = version.strip_prefix('v').with_context(|| format!("cargo tree says `{line}`"))?;
        Ok(Component {
            name: name.to_owned(),
            version: version.to_owned(),
            purl: format!("pkg:cargo/{name}@{}", version.replace('+', "%2B")),
            // The older way to write "one of".
            licence: Licence::Spdx(licence.trim_end_matches(" (*)").replace('/', " OR ")),
            sha256: sums.get(&(name.to_owned(), version.to_owned())).cloned(),
        })
    };
    tree.lines().filter(|line| !line.is_empty()).map(component).collect()
}

/// What cargo has checked when it fetched the crates.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let package = |block: &str| {
        let field = |name: &str| {
            let start = format!("{name} = \"");
            block.lines().find_map(|line| Some(line.strip_prefix(&start)?.trim_end_matches('"').to_owned()))
        };
        Some(((field("name")?, field("version")?), field("checksum")?))
    };
    lock.split("[[package]]").filter_map(package).collect()
}

fn standard_library() -> Result<Component> {
    let output = Command::new("rustc").arg("--version").output().context("rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split(' ').nth(1).with_context(|| format!("rustc --version says `{text}`"))?;
    Ok(Component {
        name: "rust-std".to_owned(),
        version: version.to_owned(),
        purl: format!("pkg:generic/rust-std@{version}"),
        licence: Licence::Spdx("MIT OR Apache-2.0".to_owned()),
        sha256: None,
    })
}

/// The document.
///
/// # Errors
/// None in practice: it is made of strings.
pub fn document(name: &str, version: &str, created: &str, components: &[Component]) -> Result<Vec<u8>> {
    let all: BTreeSet<&Component> = components.iter().collect();
    let mut text = serde_json::to_vec_pretty(&json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": created,
            "component": { "type": "container", "bom-ref": name, "name": name, "version": version },
        },
        "components": all.into_iter().map(Component::json).collect::<Vec<_>>(),
    }))?;
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_come_with_licence_and_checksum_and_no_path_of_this_machine() {
        let lock = "version = 4\n\n[[package]]\nname = \"bytes\"\nversion = \"1.12.0\"\nchecksum = \"ab12\"\n";
        let tree = "weft-sidecar v0.1.0 (/home/me/weft/sidecar)\tApache-2.0\nbytes v1.12.0\tMIT/Apache-2.0 (*)\n";
        let components = parse(tree, &checksums(lock)).unwrap();
        let text =
            String::from_utf8(document("weft-sidecar", "0.1.0", "2020-01-01T00:00:00Z", &components).unwrap()).unwrap();
        assert!(!text.contains("/home/me"), "{text}");
        let json: Value = serde_json::from_str(&text).unwrap();
        let bytes = &json["components"][0];
        assert_eq!(bytes["purl"], "pkg:cargo/bytes@1.12.0");
        assert_eq!(bytes["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(bytes["hashes"][0]["content"], "ab12");
        assert!(parse("what", &BTreeMap::new()).is_err());
    }
}
