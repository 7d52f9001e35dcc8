//! `cargo xtask proto`: generates crates/proto/src/generated from Weft's own .proto files and from the xDS ones that the
//! package envoy-types ships. The output is committed, so that a build needs no protoc.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use prost::Message;

/// Weft's own services: clients and servers are generated for these.
const WEFT: &[&str] =
    &["weft/v1/config.proto", "weft/v1/registry.proto", "weft/v1/certificate.proto", "weft/v1/extension.proto"];

/// The roots of the xDS subset; what they import comes with them. A missing type is had by adding its file here.
const XDS: &[&str] = &[
    "envoy/service/discovery/v3/ads.proto",
    "envoy/config/listener/v3/listener.proto",
    "envoy/config/route/v3/route.proto",
    "envoy/config/cluster/v3/cluster.proto",
    "envoy/config/endpoint/v3/endpoint.proto",
    "envoy/config/rbac/v3/rbac.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
    "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto",
    "envoy/extensions/filters/network/rbac/v3/rbac.proto",
    "envoy/extensions/filters/http/router/v3/router.proto",
    "envoy/extensions/filters/http/rbac/v3/rbac.proto",
    "envoy/extensions/load_balancing_policies/least_request/v3/least_request.proto",
    "envoy/extensions/load_balancing_policies/ring_hash/v3/ring_hash.proto",
    "envoy/extensions/load_balancing_policies/round_robin/v3/round_robin.proto",
    "envoy/extensions/load_balancing_policies/wrr_locality/v3/wrr_locality.proto",
    "envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls.proto",
    "envoy/extensions/upstreams/http/v3/http_protocol_options.proto",
];

/// Folders of envoy-types' `proto/` that serve as import roots.
const ROOTS: &[&str] = &[
    "data-plane-api",
    "xds",
    "googleapis",
    "protoc-gen-validate",
    "cel-spec/proto",
    "cel-spec",
    "opentelemetry-proto",
    "client_model",
    "ratelimit",
];

/// Writes the generated code below `root`, or with `check` fails when it differs from what is committed.
///
/// # Errors
/// When protoc or the package cannot be had, or with `check` when a file is stale.
pub fn run(root: &Path, check: bool) -> Result<()> {
    let crate_dir = root.join("crates/proto");
    let fresh = generate(&crate_dir)?;
    let out = crate_dir.join("src/generated");
    if check {
        let committed = read_all(&out)?;
        if committed != fresh {
            let stale: Vec<_> = fresh
                .iter()
                .filter(|(name, text)| committed.get(*name) != Some(text))
                .map(|(name, _)| name.as_str())
                .chain(committed.keys().filter(|name| !fresh.contains_key(*name)).map(String::as_str))
                .collect();
            bail!("generated protobuf is stale ({}): run `cargo xtask proto` and commit the result", stale.join(", "));
        }
        println!("crates/proto/src/generated is fresh: {} files", fresh.len());
        return Ok(());
    }
    if out.exists() {
        fs::remove_dir_all(&out)?;
    }
    fs::create_dir_all(&out)?;
    for (name, text) in &fresh {
        fs::write(out.join(name), text)?;
    }
    println!("wrote {} files to crates/proto/src/generated", fresh.len());
    Ok(())
}

fn generate(crate_dir: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let source = xds_source(crate_dir)?;
    let scratch = tempfile::tempdir()?;
    let includes: Vec<PathBuf> = std::iter::once(crate_dir.to_path_buf())
        .chain(ROOTS.iter().map(|root| source.join(root)).filter(|path| path.is_dir()))
        .collect();

    let weft = descriptors(&includes, WEFT, &scratch.path().join("weft.bin"))?;
    let xds = descriptors(&includes, XDS, &scratch.path().join("xds.bin"))?;
    let reflection = descriptors(&includes, &[WEFT, &XDS[..1]].concat(), &scratch.path().join("services.bin"))?;
    let mut all = weft;
    for file in xds.file {
        if !all.file.iter().any(|known| known.name == file.name) {
            all.file.push(file);
        }
    }

    let out = scratch.path().join("out");
    fs::create_dir_all(&out)?;
    let mut config = tonic_prost_build::Config::new();
    // BTreeMap encodes in one order, so a hash of the bytes is a version that is equal on every replica.
    config.btree_map(["."]).enable_type_names();
    config.disable_comments(["."]);
    tonic_prost_build::configure()
        .build_transport(false)
        .codec_path("crate::codec::SmallCodec")
        .out_dir(&out)
        .include_file("mod.rs")
        .compile_fds_with_config(all, config)?;
    fs::write(out.join("descriptors.bin"), strip_to_services(reflection).encode_to_vec())?;
    read_all(&out)
}

/// Reflection serves what an operator calls by hand: Weft's services whole, xDS by its service definition.
fn strip_to_services(mut set: prost_types::FileDescriptorSet) -> prost_types::FileDescriptorSet {
    for file in &mut set.file {
        file.source_code_info = None;
    }
    set
}

fn descriptors(includes: &[PathBuf], files: &[&str], out: &Path) -> Result<prost_types::FileDescriptorSet> {
    let mut protoc = Command::new("protoc");
    protoc.arg("--include_imports").arg("-o").arg(out);
    for include in includes {
        protoc.arg("-I").arg(include);
    }
    let status = protoc
        .args(files)
        .status()
        .context("protoc was not found: install Debian's protobuf-compiler and libprotobuf-dev")?;
    if !status.success() {
        bail!("protoc failed on {}", files.join(" "));
    }
    Ok(prost_types::FileDescriptorSet::decode(fs::read(out)?.as_slice())?)
}

/// Where cargo unpacked the package that ships the xDS files.
fn xds_source(crate_dir: &Path) -> Result<PathBuf> {
    let manifest = crate_dir.join("upstream/Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--manifest-path"])
        .arg(&manifest)
        .output()?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "envoy-types")
        .and_then(|package| package["manifest_path"].as_str())
        .and_then(|path| Path::new(path).parent())
        .map(|dir| dir.join("proto"))
        .context("envoy-types is not among the packages of crates/proto/upstream")
}

fn read_all(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    if !dir.exists() {
        return Ok(BTreeMap::new());
    }
    fs::read_dir(dir)?
        .map(|entry| {
            let entry = entry?;
            Ok((entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?))
        })
        .collect()
}
