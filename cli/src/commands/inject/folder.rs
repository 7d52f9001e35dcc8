//! `.weft/`: the control plane's data, and a join token for each service.
//!
//! ```text
//! .weft/                0700, so that modes below it matter only inside containers
//!   .gitignore          all of it
//!   control-plane/      the control plane's data directory
//!   root.pem            0444: root certificate, for Prometheus
//!   tokens/SERVICE      0444: the container's user reads its own
//!   tokens.json         until when they are good
//! ```

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, lchown},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use clap::Parser;
use nix::unistd::{Gid, Uid};
use serde::{Deserialize, Serialize};
use weft_control_plane::{certificates::Grant, offline::Offline, settings::Settings};
use weft_identity::{JoinToken, SpiffeId, TrustDomain, files};
use weft_inject::compose::{self, Meshed, Plan};
use weft_proto::weft::v1::CreateTokenRequest;

use super::docker;
use crate::credential::Connection;

/// Whom a container's control plane runs as.
#[derive(Debug, Clone, Copy)]
pub struct User {
    uid: u32,
    gid: u32,
    /// Its files must be given to it.
    other: bool,
}

impl User {
    /// As compose has it.
    pub fn text(self) -> String {
        format!("{}:{}", self.uid, self.gid)
    }
}

/// The user who injects, so that the control plane's files are this user's; root's are given to a user of its own.
pub fn control_plane_user() -> User {
    let (uid, gid) = (Uid::effective().as_raw(), Gid::effective().as_raw());
    if uid == 0 {
        return User { uid: CONTROL_PLANE, gid: CONTROL_PLANE, other: true };
    }
    // In such an engine this user is the containers' root.
    if docker::rootless() { User { uid: 0, gid: 0, other: false } } else { User { uid, gid, other: false } }
}

/// The folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

/// What is known of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    identity: String,
    /// Names the control plane's record.
    id: String,
    #[serde(with = "humantime_text")]
    expires: SystemTime,
}

impl Folder {
    /// At this path.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes what is not there, and renews tokens that end soon.
    ///
    /// # Errors
    /// The file system, or a control plane that runs and does not answer.
    pub fn fill(
        &self,
        connection: &Connection,
        plan: &Plan,
        options: &compose::Options,
        user: User,
    ) -> anyhow::Result<()> {
        files::create_private_dir(&self.path).with_context(|| format!("{} cannot be made", self.path.display()))?;
        fs::set_permissions(&self.path, Permissions::from_mode(0o700))?;
        fs::write(self.path.join(".gitignore"), "*\n")?;
        fs::create_dir_all(self.path.join("tokens"))?;
        fs::set_permissions(self.path.join("tokens"), Permissions::from_mode(0o755))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let result = runtime.block_on(self.tokens(connection, plan, options));
        let root = self.path.join("control-plane/ca/root.pem");
        if let Ok(pem) = fs::read_to_string(&root) {
            write_public(&self.path.join("root.pem"), &pem)?;
        }
        if user.other {
            give(&self.path.join("control-plane"), user)?;
        }
        result
    }

    async fn tokens(&self, connection: &Connection, plan: &Plan, options: &compose::Options) -> anyhow::Result<()> {
        let mut known: BTreeMap<String, Known> = self.known()?;
        let settings = self.settings(options)?;
        let offline = Offline::open(&settings).await.context("the control plane's data directory")?;
        let records = match &offline {
            Some(offline) => Some(offline.tokens().await?),
            None => None,
        };
        let now = SystemTime::now();
        let trust_domain = settings.trust_domain.clone();
        let left = |id: &str| {
            records.as_ref().is_none_or(|all| all.get(id).is_some_and(|record| record.uses_left >= FEW_USES))
        };
        for meshed in &plan.meshed {
            let identity = SpiffeId::new(&trust_domain, &options.namespace, &meshed.mesh)
                .with_context(|| format!("services.{}", meshed.service))?;
            let file = self.path.join("tokens").join(&meshed.service);
            let good = known.get(&meshed.service).is_some_and(|token| {
                token.identity == identity.as_str()
                    && token.expires > now + RENEWED_BEFORE
                    && file.is_file()
                    && left(&token.id)
            });
            if good {
                continue;
            }
            let (text, token) = match &offline {
                Some(offline) => made(offline, identity).await?,
                None => self.asked_for(connection, meshed, options, identity).await?,
            };
            write_public(&file, &text)?;
            known.insert(meshed.service.clone(), token);
            // Kept at once: what comes next may fail.
            files::write_private(&self.path.join(TOKENS), &serde_json::to_vec_pretty(&known)?)?;
        }
        Ok(())
    }

    /// The control plane runs: it makes the token.
    async fn asked_for(
        &self,
        connection: &Connection,
        meshed: &Meshed,
        options: &compose::Options,
        identity: SpiffeId,
    ) -> anyhow::Result<(String, Known)> {
        let mut connection = connection.clone();
        connection.credential = Some(self.path.join("control-plane/operator.json"));
        let request = CreateTokenRequest {
            namespace: options.namespace.clone(),
            service_account: meshed.mesh.clone(),
            uses: USES,
            ttl_seconds: u32::try_from(LIFE.as_secs()).unwrap_or(u32::MAX),
        };
        let mut client = connection.open().map_err(|failure| anyhow::anyhow!("{failure}"))?;
        let answer = client.create_token(request).await.map_err(|status| {
            anyhow::anyhow!(
                "the control plane that uses {} did not make a token: {}",
                self.path.display(),
                status.message()
            )
        })?;
        known(answer.into_inner().token, identity)
    }

    fn settings(&self, options: &compose::Options) -> anyhow::Result<Settings> {
        let data = self.path.join("control-plane").display().to_string();
        let address = |port: u16| format!("0.0.0.0:{port}");
        let args = [
            "weft-control-plane",
            "--data-dir",
            &data,
            "--grpc",
            &address(options.grpc_port),
            "--http",
            &address(options.http_port),
            "--advertise",
            "127.0.0.1",
            "--trust-domain",
            TrustDomain::default().as_str(),
        ]
        .map(str::to_owned);
        let mut settings = Settings::try_parse_from(args)?;
        // What the shell's variables say is not the container's.
        (settings.ca_cert, settings.ca_key, settings.config) = (None, None, None);
        Ok(settings)
    }

    fn known(&self) -> anyhow::Result<BTreeMap<String, Known>> {
        let path = self.path.join(TOKENS);
        match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .with_context(|| format!("{} is damaged; remove it, and new tokens are made", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error).with_context(|| format!("{} cannot be read", path.display())),
        }
    }

    /// Takes it away.
    ///
    /// # Errors
    /// Its control plane runs, or the file system.
    pub fn remove(&self) -> anyhow::Result<()> {
        let store = self.path.join("control-plane/store.redb");
        if store.is_file()
            && let Err(weft_control_plane::store::StoreError::Locked { .. }) =
                weft_control_plane::store::Store::open(&store)
        {
            bail!("the control plane of {} still runs: `docker compose … down` first", self.path.display());
        }
        match fs::remove_dir_all(&self.path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).with_context(|| format!("{} cannot be removed", self.path.display())),
        }
    }
}

async fn made(offline: &Offline, identity: SpiffeId) -> anyhow::Result<(String, Known)> {
    let grant =
        Grant { identity: identity.clone(), uses: USES, ttl: LIFE, created_by: "weft inject compose".to_owned() };
    let (text, _) = offline.create_token(grant, SystemTime::now()).await?;
    known(text, identity)
}

fn known(text: String, identity: SpiffeId) -> anyhow::Result<(String, Known)> {
    let id = JoinToken::parse(&text).context("the control plane made no token")?.id().to_owned();
    Ok((text, Known { identity: identity.as_str().to_owned(), id, expires: SystemTime::now() + LIFE }))
}

/// For every user of a container. Written in place: one that runs has this very file mounted.
fn write_public(file: &Path, text: &str) -> anyhow::Result<()> {
    let written = || {
        if file.exists() {
            fs::set_permissions(file, Permissions::from_mode(0o600))?;
        }
        fs::write(file, text)?;
        fs::set_permissions(file, Permissions::from_mode(0o444))
    };
    written().with_context(|| format!("{} cannot be written", file.display()))
}

/// Gives a folder and all in it to a user.
fn give(path: &Path, user: User) -> anyhow::Result<()> {
    // What a link points to is somebody else's.
    lchown(path, Some(user.uid), Some(user.gid))
        .with_context(|| format!("{} cannot be given to user {}", path.display(), user.uid))?;
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), user)?;
        }
    }
    Ok(())
}

/// RFC 3339.
mod humantime_text {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_rfc3339_seconds(*time))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_rfc3339(&text).map_err(serde::de::Error::custom)
    }
}

const TOKENS: &str = "tokens.json";
/// Containers are made anew for as long as the file is used; a token is worth no more than the folder that it lies in.
const LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
const RENEWED_BEFORE: Duration = Duration::from_secs(90 * 24 * 3600);
/// Each container joins once.
const USES: u32 = 10_000;
const FEW_USES: u32 = 1000;
/// User of the control plane's image.
const CONTROL_PLANE: u32 = 15010;
