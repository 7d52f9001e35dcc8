//! What callgrind wrote: instructions of each function itself, and calls of the allocator by their callers.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, ensure};

/// One dump, as figures for one request.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Profile {
    /// Instructions in the function itself, apart for each file that the compiler took its code from: what is inlined
    /// into a function of hyper's is found again.
    pub instructions: BTreeMap<String, f64>,
    /// The line that costs most in each of them, where lines are known.
    pub hottest: BTreeMap<String, u32>,
    /// Calls of the allocator that ask for memory, by caller.
    pub allocations: BTreeMap<String, f64>,
}

impl Profile {
    /// Reads a dump that covers `requests`.
    ///
    /// # Errors
    /// When it cannot be read, or counted nothing.
    pub fn read(file: &Path, requests: u32) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let profile = Self::parse(&text, requests).with_context(|| file.display().to_string())?;
        ensure!(!profile.instructions.is_empty(), "{} counted nothing", file.display());
        Ok(profile)
    }

    /// Format: "Callgrind Format Specification" of the Valgrind manual, with compressed names and without compressed
    /// positions.
    fn parse(text: &str, requests: u32) -> Result<Self> {
        let (mut names, mut files) = (BTreeMap::new(), BTreeMap::new());
        let (mut profile, mut function, mut callee) = (Self::default(), String::new(), String::new());
        let (mut file, mut own, mut last) = (String::new(), true, 0);
        let mut lines = BTreeMap::<_, BTreeMap<u32, f64>>::new();
        let mut of_call = false;
        let part = 1.0 / f64::from(requests);
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("fn=") {
                function = resolve(&mut names, name)?;
            } else if let Some(name) = line.strip_prefix("cfn=") {
                callee = resolve(&mut names, name)?;
            } else if let Some(name) = line.strip_prefix("fl=") {
                (file, own, last) = (resolve(&mut files, name)?, true, 0);
            } else if let Some(name) = line.strip_prefix("fi=").or_else(|| line.strip_prefix("fe=")) {
                let from = resolve(&mut files, name)?;
                // The standard library's code belongs to what it stands amid: costs are in the order of addresses.
                own = !standard(&from);
                if own && from != file {
                    (file, last) = (from, 0);
                }
            } else if let Some(name) = ["cfi=", "cfl="].iter().find_map(|key| line.strip_prefix(key)) {
                resolve(&mut files, name)?;
            } else if let Some(rest) = line.strip_prefix("calls=") {
                let calls: f64 = rest.split(' ').next().unwrap_or_default().parse().context("calls=")?;
                if allocates(&callee) && !allocates(&function) {
                    *profile.allocations.entry(function.clone()).or_default() += calls * part;
                }
                of_call = true;
            } else if line.starts_with(|first: char| first.is_ascii_digit()) {
                // The line after calls= is what the callee cost.
                if !std::mem::take(&mut of_call) {
                    let (at, cost) = line.split_once(' ').unwrap_or((line, "0"));
                    let cost: f64 = cost.parse().context("a cost")?;
                    let of_line = lines.entry((function.clone(), file.clone())).or_default();
                    let at: u32 = at.parse().context("a line")?;
                    if own && at > 0 {
                        last = at;
                    }
                    *of_line.entry(last).or_default() += cost * part;
                }
            }
        }
        for ((function, file), lines) in lines {
            *profile.instructions.entry(place(&function, &file)).or_default() += lines.values().sum::<f64>();
            if let Some((line, _)) = lines.iter().filter(|(line, _)| **line > 0).max_by(|a, b| a.1.total_cmp(b.1)) {
                profile.hottest.insert(place(&function, &file), *line);
            }
        }
        Ok(profile)
    }
}

/// `(12) name` defines, `(12)` refers.
fn resolve(names: &mut BTreeMap<String, String>, text: &str) -> Result<String> {
    let (id, name) = text.split_once(')').with_context(|| format!("a name without number: {text}"))?;
    if !name.is_empty() {
        names.insert(id.to_owned(), plain(name.trim_start()).to_owned());
    }
    names.get(id).cloned().with_context(|| format!("name {id}) was not defined"))
}

/// Without what differs between builds and depths of recursion: `::h0123456789abcdef`, `'2`.
fn plain(name: &str) -> &str {
    let name = name.rsplit_once('\'').filter(|(_, n)| n.bytes().all(|b| b.is_ascii_digit())).map_or(name, |(n, _)| n);
    let hash = |tail: &str| tail.len() == 16 && tail.bytes().all(|b| b.is_ascii_hexdigit());
    name.rsplit_once("::h").filter(|(_, tail)| hash(tail)).map_or(name, |(name, _)| name)
}

fn standard(file: &str) -> bool {
    ["/library/core/", "/library/alloc/", "/library/std/"].iter().any(|part| file.contains(part))
}

/// The function with the end of its file's path, `sidecar/src/http/request.rs`; alone where that is not known.
fn place(function: &str, file: &str) -> String {
    let Some((before, after)) = file.rsplit_once("/src/") else { return function.to_owned() };
    let package = before.rsplit('/').next().unwrap_or(before);
    format!("{function}, {package}/src/{after}")
}

/// Functions that hand out memory: mimalloc's, and the C library's for what is written in C.
fn allocates(name: &str) -> bool {
    let wants = |name: &str| ["malloc", "zalloc", "calloc", "realloc", "rezalloc"].iter().any(|f| name.starts_with(f));
    name.strip_prefix("mi_").map_or_else(|| matches!(name, "malloc" | "calloc" | "realloc" | "posix_memalign"), wants)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_and_calls_are_told_apart() {
        let text = "events: Ir\n\nfl=(1) ???\nfn=(1) a::b::h0123456789abcdef\n0 100\n0 50\ncfn=(2) mi_malloc_aligned\n\
                    calls=4 0\n0 4000\n\nfn=(2)\n0 80\ncfn=(3) mi_malloc\ncalls=4 0\n0 40\n\nfl=(1)\nfn=(1)\n0 50\n\
                    fi=(2) /tree/sidecar/src/http/request.rs\n75 6\n80 18\n\
                    fi=(3) /rustc/0/library/core/src/hint.rs\n491 2\nfe=(1)\n0 2\n";
        let profile = Profile::parse(text, 2).unwrap();
        let inlined = "a::b, sidecar/src/http/request.rs".to_owned();
        assert_eq!(
            profile.instructions,
            BTreeMap::from([
                ("a::b".to_owned(), 101.0),
                (inlined.clone(), 13.0),
                ("mi_malloc_aligned".to_owned(), 40.0)
            ])
        );
        assert_eq!(profile.hottest[&inlined], 80);
        assert_eq!(profile.allocations, BTreeMap::from([("a::b".to_owned(), 2.0)]), "and not mimalloc's own calls");
        assert!(Profile::parse("fn=(9)\n", 1).is_err());
    }

    #[test]
    fn names_are_the_same_in_every_build() {
        assert_eq!(plain("a::{{closure}}::h0123456789abcdef"), "a::{{closure}}");
        assert_eq!(plain("a::b'2"), "a::b");
        assert_eq!(plain("a::hash"), "a::hash");
    }
}
