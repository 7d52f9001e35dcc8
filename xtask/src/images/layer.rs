//! What one `COPY` makes: a layer, the same bytes for the same files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use tar::{Builder, EntryType, Header};

use super::dockerfile::Copies;

/// Makes the layers of one image, one after the other: a folder that an earlier layer has is not made again.
pub struct Layers<'a> {
    /// Where files come from.
    context: &'a Path,
    /// Seconds since 1970 that every entry gets.
    time: u64,
    folders: BTreeSet<String>,
}

/// What lies at a path of a layer.
enum Entry {
    Folder(u32),
    File(PathBuf, u32),
    Link(PathBuf),
}

impl<'a> Layers<'a> {
    /// No layer yet.
    pub fn new(context: &'a Path, time: u64) -> Self {
        Self { context, time, folders: BTreeSet::new() }
    }

    /// The tar of one layer.
    ///
    /// # Errors
    /// When a file is not in the context, or cannot be read.
    pub fn layer(&mut self, copies: &Copies) -> Result<Vec<u8>> {
        let mut entries = BTreeMap::new();
        for from in &copies.from {
            let source = self.context.join(from);
            let kind = fs::symlink_metadata(&source).with_context(|| format!("COPY {from}: not in the context"))?;
            let to = copies.to.trim_matches('/');
            if kind.is_dir() {
                tree(&source, to, &mut entries)?;
            } else if copies.to.ends_with('/') {
                let name = from.rsplit('/').next().unwrap_or(from);
                tree(&source, &join(to, name), &mut entries)?;
            } else {
                tree(&source, to, &mut entries)?;
            }
        }
        entries.remove("");
        self.parents(&mut entries);
        self.write(entries, copies.owner)
    }

    fn parents(&mut self, entries: &mut BTreeMap<String, Entry>) {
        let parents = |path: &String| path.match_indices('/').map(|(at, _)| path[..at].to_owned()).collect::<Vec<_>>();
        for parent in entries.keys().flat_map(parents).collect::<BTreeSet<_>>() {
            if !self.folders.contains(&parent) {
                entries.entry(parent).or_insert(Entry::Folder(0o755));
            }
        }
        self.folders
            .extend(entries.iter().filter(|(_, entry)| matches!(entry, Entry::Folder(_))).map(|(p, _)| p.clone()));
    }

    /// Sorted by path, so that a folder comes before what it holds.
    fn write(&self, entries: BTreeMap<String, Entry>, (user, group): (u64, u64)) -> Result<Vec<u8>> {
        let mut tar = Builder::new(Vec::new());
        for (path, entry) in entries {
            let mut header = Header::new_gnu();
            header.set_mtime(self.time);
            header.set_uid(user);
            header.set_gid(group);
            header.set_size(0);
            match entry {
                Entry::Folder(mode) => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_mode(mode);
                    tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
                }
                Entry::File(from, mode) => {
                    let data = fs::read(&from).with_context(|| from.display().to_string())?;
                    header.set_size(data.len() as u64);
                    header.set_mode(mode);
                    tar.append_data(&mut header, path, &*data)?;
                }
                Entry::Link(to) => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_mode(0o777);
                    tar.append_link(&mut header, path, to)?;
                }
            }
        }
        Ok(tar.into_inner()?)
    }
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

fn tree(from: &Path, to: &str, entries: &mut BTreeMap<String, Entry>) -> Result<()> {
    let kind = fs::symlink_metadata(from)?;
    let mode = kind.permissions().mode() & 0o7777;
    if kind.is_dir() {
        entries.insert(to.to_owned(), Entry::Folder(mode));
        for inside in fs::read_dir(from)? {
            let name = inside?.file_name();
            let name = name.to_str().with_context(|| format!("{}: a name that is not UTF-8", from.display()))?;
            tree(&from.join(name), &join(to, name), entries)?;
        }
    } else if kind.is_symlink() {
        entries.insert(to.to_owned(), Entry::Link(fs::read_link(from)?));
    } else if kind.is_file() {
        entries.insert(to.to_owned(), Entry::File(from.to_owned(), mode));
    } else {
        bail!("{}: neither a file nor a folder nor a link", from.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(layer: &[u8]) -> Vec<(String, u32, u64)> {
        let mut archive = tar::Archive::new(layer);
        let entry = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
            let entry = entry.unwrap();
            let header = entry.header();
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            (path, header.mode().unwrap(), header.uid().unwrap())
        };
        archive.entries().unwrap().map(entry).collect()
    }

    #[test]
    fn a_layer_has_its_files_sorted_with_their_folders_and_owner() {
        let context = tempfile::tempdir().unwrap();
        let at = |name: &str| context.path().join(name);
        fs::create_dir_all(at("tools/lib")).unwrap();
        for (name, mode) in [("b", 0o555), ("tools/lib/x", 0o444), ("a", 0o444)] {
            fs::write(at(name), name).unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        for folder in ["tools", "tools/lib"] {
            fs::set_permissions(at(folder), fs::Permissions::from_mode(0o755)).unwrap();
        }
        std::os::unix::fs::symlink("lib/x", at("tools/y")).unwrap();
        let copies = |from: &[&str], to: &str, owner| Copies {
            owner,
            from: from.iter().map(|&name| name.to_owned()).collect(),
            to: to.to_owned(),
        };
        let mut layers = Layers::new(context.path(), 7);
        let first = layers.layer(&copies(&["b", "a"], "/", (0, 0))).unwrap();
        assert_eq!(listed(&first), [("a".into(), 0o444, 0), ("b".into(), 0o555, 0)]);
        let second = layers.layer(&copies(&["tools/"], "/opt/tools/", (5, 5))).unwrap();
        let names: Vec<_> = listed(&second).into_iter().map(|(name, ..)| name).collect();
        assert_eq!(names, ["opt/", "opt/tools/", "opt/tools/lib/", "opt/tools/lib/x", "opt/tools/y"]);
        assert!(listed(&second).iter().all(|&(.., user)| user == 5));
        let third = layers.layer(&copies(&["a"], "/opt/c", (0, 0))).unwrap();
        assert_eq!(listed(&third), [("opt/c".into(), 0o444, 0)], "the folder is there");
        assert_eq!(Layers::new(context.path(), 7).layer(&copies(&["a", "b"], "/", (0, 0))).unwrap(), first);
        assert!(layers.layer(&copies(&["gone"], "/", (0, 0))).unwrap_err().to_string().contains("gone"));
    }
}
