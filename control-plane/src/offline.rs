//! The data directory of a control plane that does not run yet: authority, operator's credential and join tokens, so
//! that all of a mesh can be started at once.

use std::{collections::BTreeMap, time::SystemTime};

use anyhow::Context;
use weft_identity::files;
use weft_telemetry::metrics as exposition;

use crate::{
    certificates::{Grant, TokenRecord},
    settings::Settings,
    start,
    store::{Store, StoreError},
};

/// The directory, while no control plane uses it.
#[derive(Debug)]
pub struct Offline {
    certificates: std::sync::Arc<crate::certificates::Certificates>,
}

impl Offline {
    /// Opens the data directory, making what is not there: as the control plane would at its first start. `None`: a
    /// control plane runs with it.
    /// # Errors
    /// It cannot be made, read or written.
    pub async fn open(settings: &Settings) -> anyhow::Result<Option<Self>> {
        files::create_private_dir(&settings.data_dir).context("the data directory cannot be made")?;
        let path = settings.data_dir.join("store.redb");
        let store = match tokio::task::spawn_blocking(move || Store::open(&path)).await? {
            Ok(store) => store,
            Err(StoreError::Locked { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let certificates = start::open_certificates(settings, &store, &exposition::registry("weft_cp"))?;
        start::open_operator(settings, settings.grpc, settings.http, &certificates)?;
        Ok(Some(Self { certificates }))
    }

    /// Makes a join token; its text, which is not kept, and its record.
    /// # Errors
    /// The grant is not to be given, or the store does not answer.
    pub async fn create_token(&self, grant: Grant, now: SystemTime) -> anyhow::Result<(String, TokenRecord)> {
        let (token, record) = self.certificates.create_token(grant, now).await?;
        Ok((token.to_string(), record))
    }

    /// The join tokens by ID.
    /// # Errors
    /// The store does not answer.
    pub async fn tokens(&self) -> anyhow::Result<BTreeMap<String, TokenRecord>> {
        let records = self.certificates.tokens().list().await?;
        Ok(records.into_iter().map(|record| (record.id.clone(), record)).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;
    use weft_identity::SpiffeId;

    use super::*;

    #[tokio::test]
    async fn what_was_made_beforehand_is_the_control_planes() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data").display().to_string();
        let args = ["weft-control-plane", "--data-dir", &data, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"];
        let settings = Settings::parse_from(args);
        let offline = Offline::open(&settings).await.unwrap().unwrap();
        let identity = SpiffeId::parse("spiffe://weft.local/ns/default/sa/orders").unwrap();
        let grant = Grant { identity, uses: 2, ttl: Duration::from_secs(60), created_by: "test".into() };
        let (text, record) = offline.create_token(grant, SystemTime::now()).await.unwrap();
        assert!(text.contains(&record.id));
        drop(offline);
        let credential = std::fs::read(settings.data_dir.join("operator.json")).unwrap();

        let running = start::start(&settings).await.unwrap();
        assert!(Offline::open(&settings).await.unwrap().is_none(), "it is in use");
        let stop = tokio_util::sync::CancellationToken::new();
        stop.cancel();
        running.until(stop).await.unwrap();

        let offline = Offline::open(&settings).await.unwrap().unwrap();
        assert_eq!(offline.tokens().await.unwrap()[&record.id], record);
        let token = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).unwrap()["token"].clone();
        let after = std::fs::read(settings.data_dir.join("operator.json")).unwrap();
        assert_eq!(token(&credential), token(&after), "the credential survives");
    }
}
