//! An image in one file that `docker load` takes, and whatever reads an OCI layout: the same bytes for the same content.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::Result;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::dockerfile::Config;

/// What goes into one file.
pub struct Image<'a> {
    /// As in `weft-sidecar:0.1.0`.
    pub tag: &'a str,
    /// Docker's name of the processor: `amd64`.
    pub architecture: &'a str,
    /// RFC 3339.
    pub created: &'a str,
    /// The same in seconds since 1970.
    pub time: u64,
    /// What containers start with.
    pub config: &'a Config,
    /// One tar each, with what made it.
    pub layers: &'a [(String, Vec<u8>)],
}

impl Image<'_> {
    /// Writes it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, to: &Path) -> Result<()> {
        let config = serde_json::to_vec(&self.described())?;
        let mut blobs: Vec<(String, &[u8])> = self.layers.iter().map(|(_, tar)| (digest(tar), &**tar)).collect();
        let named = |name: &String| format!("blobs/sha256/{name}");
        let docker = json!([{
            "Config": named(&digest(&config)),
            "RepoTags": [self.tag],
            "Layers": blobs.iter().map(|(name, _)| named(name)).collect::<Vec<_>>(),
        }]);
        let manifest = serde_json::to_vec(&self.manifest(&config, &blobs))?;
        let index = self.index(&manifest);
        blobs.push((digest(&config), &config));
        blobs.push((digest(&manifest), &manifest));
        blobs.sort();
        blobs.dedup();
        let mut tar = Builder::new(BufWriter::new(File::create(to)?));
        for folder in ["blobs/", "blobs/sha256/"] {
            let mut header = self.header(0, 0o755);
            header.set_entry_type(EntryType::Directory);
            tar.append_data(&mut header, folder, std::io::empty())?;
        }
        for (name, blob) in blobs {
            tar.append_data(&mut self.header(blob.len(), 0o644), format!("blobs/sha256/{name}"), blob)?;
        }
        let layout = json!({ "imageLayoutVersion": "1.0.0" });
        for (name, value) in [("index.json", &index), ("manifest.json", &docker), ("oci-layout", &layout)] {
            let text = serde_json::to_vec(value)?;
            tar.append_data(&mut self.header(text.len(), 0o644), name, &*text)?;
        }
        tar.into_inner()?.flush()?;
        Ok(())
    }

    fn header(&self, size: usize, mode: u32) -> Header {
        let mut header = Header::new_gnu();
        header.set_size(size as u64);
        header.set_mode(mode);
        header.set_mtime(self.time);
        header.set_uid(0);
        header.set_gid(0);
        header
    }

    /// The image's own description, whose digest is its ID.
    fn described(&self) -> Value {
        let history = |(what, _): &(String, Vec<u8>)| json!({ "created": self.created, "created_by": what });
        let layers: Vec<String> = self.layers.iter().map(|(_, tar)| format!("sha256:{}", digest(tar))).collect();
        json!({
            "architecture": self.architecture,
            "config": self.start(),
            "created": self.created,
            "history": self.layers.iter().map(history).collect::<Vec<_>>(),
            "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": layers },
        })
    }

    fn start(&self) -> Value {
        let config = self.config;
        let empty = |names: &mut dyn Iterator<Item = &String>| -> Map<String, Value> {
            names.map(|name| (name.clone(), json!({}))).collect()
        };
        let mut start = Map::new();
        start.insert("User".into(), json!(config.user));
        if !config.ports.is_empty() {
            start.insert("ExposedPorts".into(), empty(&mut config.ports.iter()).into());
        }
        start.insert("Env".into(), json!(config.env));
        start.insert("Entrypoint".into(), json!(config.entrypoint));
        if !config.command.is_empty() {
            start.insert("Cmd".into(), json!(config.command));
        }
        if !config.volumes.is_empty() {
            start.insert("Volumes".into(), empty(&mut config.volumes.iter()).into());
        }
        if !config.folder.is_empty() {
            start.insert("WorkingDir".into(), json!(config.folder));
        }
        start.insert("Labels".into(), json!(config.labels));
        if !config.stop_signal.is_empty() {
            start.insert("StopSignal".into(), json!(config.stop_signal));
        }
        start.into()
    }

    fn manifest(&self, config: &[u8], layers: &[(String, &[u8])]) -> Value {
        let layer = |(name, tar): &(String, &[u8])| {
            let kind = "application/vnd.oci.image.layer.v1.tar";
            json!({ "mediaType": kind, "digest": format!("sha256:{name}"), "size": tar.len() })
        };
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": format!("sha256:{}", digest(config)),
                "size": config.len(),
            },
            "layers": layers.iter().map(layer).collect::<Vec<_>>(),
        })
    }

    fn index(&self, manifest: &[u8]) -> Value {
        let tag = self.tag.rsplit(':').next().unwrap_or(self.tag);
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": format!("sha256:{}", digest(manifest)),
                "size": manifest.len(),
                "platform": { "architecture": self.architecture, "os": "linux" },
                "annotations": {
                    "org.opencontainers.image.ref.name": tag,
                    "io.containerd.image.name": format!("docker.io/library/{}", self.tag),
                },
            }],
        })
    }
}

/// SHA-256 in hexadecimal digits.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read};

    use super::*;

    #[test]
    fn what_the_file_names_is_in_it_and_twice_the_same() {
        let config = Config { user: "5:6".into(), entrypoint: vec!["/x".into()], ..Config::default() };
        let layers = [("COPY x /".to_owned(), b"one".to_vec()), ("COPY y /".to_owned(), b"one".to_vec())];
        let folder = tempfile::tempdir().unwrap();
        let written = |name: &str| {
            let image = Image {
                tag: "x:1",
                architecture: "amd64",
                created: "1970-01-01T00:00:00Z",
                time: 0,
                config: &config,
                layers: &layers,
            };
            image.write(&folder.path().join(name)).unwrap();
            std::fs::read(folder.path().join(name)).unwrap()
        };
        let bytes = written("a");
        assert!(bytes == written("b"));

        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(&*bytes).entries().unwrap() {
            let mut entry = entry.unwrap();
            let (path, mut data) = (entry.path().unwrap().to_string_lossy().into_owned(), Vec::new());
            entry.read_to_end(&mut data).unwrap();
            files.insert(path, data);
        }
        let json = |path: &str| serde_json::from_slice::<Value>(&files[path]).unwrap();
        let blob = |digest: &Value| format!("blobs/sha256/{}", digest.as_str().unwrap().trim_start_matches("sha256:"));
        let docker = json("manifest.json");
        let described = json(docker[0]["Config"].as_str().unwrap());
        assert_eq!(described["config"]["User"], "5:6");
        for (index, diff) in described["rootfs"]["diff_ids"].as_array().unwrap().iter().enumerate() {
            assert_eq!(docker[0]["Layers"][index], blob(diff));
            assert_eq!(files[&blob(diff)], b"one");
        }
        let manifest = json(&blob(&json("index.json")["manifests"][0]["digest"]));
        assert_eq!(blob(&manifest["config"]["digest"]), docker[0]["Config"].as_str().unwrap());
        assert_eq!(manifest["layers"][0]["size"], 3);
        for (path, data) in files.iter().filter(|(path, data)| path.starts_with("blobs/sha256/") && !data.is_empty()) {
            assert_eq!(*path, format!("blobs/sha256/{}", digest(data)));
        }
    }
}
