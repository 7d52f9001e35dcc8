//! What happens in the demo, and what each scene proves.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use http::Method;
use tokio::time::Instant;

use super::{
    claim::Claims,
    mesh::{Mesh, RESOURCES},
    traffic::Traffic,
    view::View,
};
use crate::launch::{call, metrics, wait_for};

/// What a scene needs.
struct Stage<'a> {
    traffic: &'a Traffic,
    view: &'a View,
    claims: &'a Claims,
    /// How long an ordinary look takes.
    look: Duration,
}

/// Plays every scene in about `time`.
///
/// # Errors
/// When something that the scenes need does not come about at all; a claim that fails is no error.
pub async fn play(mesh: &mut Mesh, traffic: &Traffic, view: &View, claims: &Claims, time: Duration) -> Result<()> {
    // Nine looks, and about ten seconds of starting and waiting besides.
    let look =
        (time.saturating_sub(Duration::from_secs(12)) / 9).clamp(Duration::from_millis(1200), Duration::from_secs(6));
    let stage = Stage { traffic, view, claims, look };
    stage.everything_is_encrypted(mesh).await?;
    stage.workload_is_killed(mesh).await?;
    stage.breaker_opens_and_closes(mesh).await?;
    stage.split_moves(mesh).await?;
    stage.control_plane_is_killed(mesh).await?;
    stage.certificate_is_renewed(mesh).await
}

impl Stage<'_> {
    async fn everything_is_encrypted(&self, mesh: &Mesh) -> Result<()> {
        const SCENE: &str = "mutual TLS";
        self.view.scene(SCENE, "every hop between sidecars is mutual TLS 1.3, with both identities proved");
        self.traffic.over(self.look).await;
        let status = mesh.control_plane()?.status().await?;
        let ready = status.workloads.iter().filter(|workload| workload.state == "READY").count();
        self.view.claim(&self.claims.at_least(SCENE, "workloads ready", ready as f64, 5.0));
        let (mut encrypted, mut all) = (0.0, 0.0);
        for watched in mesh.watched() {
            let scrape = metrics::scrape(watched.metrics).await?;
            all += scrape.sum("weft_requests_total", &[("direction", "inbound")]);
            encrypted += scrape.sum("weft_requests_total", &[("direction", "inbound"), ("tls", "mutual")]);
        }
        let percent = if all > 0.0 { 100.0 * encrypted / all } else { 0.0 };
        self.view.claim(&self.claims.at_least(
            SCENE,
            "requests between sidecars over mutual TLS, percent",
            percent,
            100.0,
        ));
        Ok(())
    }

    async fn workload_is_killed(&self, mesh: &mut Mesh) -> Result<()> {
        const SCENE: &str = "a workload dies";
        self.view.scene(SCENE, "kill -9 of one of three: what it had not answered is answered by another");
        let before = self.traffic.counts();
        mesh.kill_workload("orders-2").await?;
        self.traffic.over(self.look).await;
        mesh.restart_workload("orders-2").await?;
        let seen = self.traffic.counts().since(before);
        self.view.claim(&self.claims.at_least(SCENE, "requests answered well, percent", seen.success_percent(), 99.9));
        Ok(())
    }

    async fn breaker_opens_and_closes(&self, mesh: &Mesh) -> Result<()> {
        const SCENE: &str = "a workload fails";
        self.view.scene(
            SCENE,
            "one answers 503 to everything: its breaker opens, the callers do not notice; healed, it closes",
        );
        let frontend = mesh.workload("frontend")?.ports()?.metrics;
        // The workload that was killed before must be back: one alone has nobody to take over from it.
        wait_for("both workloads of v1", Duration::from_secs(60), async || both_ready(frontend).await).await?;
        let before = self.traffic.counts();
        let failing = Instant::now();
        call(mesh.app("orders-1"), Method::POST, "/fail").await?;
        wait_for("the breaker to open", Duration::from_secs(15), async || open(frontend).await).await?;
        self.view.claim(&self.claims.at_most(
            SCENE,
            "time until its breaker opened, seconds",
            failing.elapsed().as_secs_f64(),
            5.0,
        ));
        self.traffic.over(self.look).await;
        let seen = self.traffic.counts().since(before);
        self.view.claim(&self.claims.at_least(
            SCENE,
            "requests answered well meanwhile, percent",
            seen.success_percent(),
            99.9,
        ));
        let healed = Instant::now();
        call(mesh.app("orders-1"), Method::POST, "/heal").await?;
        wait_for("the breaker to close", Duration::from_secs(60), async || both_ready(frontend).await).await?;
        self.view.claim(&self.claims.at_most(
            SCENE,
            "time until it closed, seconds",
            healed.elapsed().as_secs_f64(),
            30.0,
        ));
        Ok(())
    }

    async fn split_moves(&self, mesh: &Mesh) -> Result<()> {
        const SCENE: &str = "traffic is shifted";
        self.view
            .scene(SCENE, "an Apply moves the split between v1 and v2 from 90/10 to 50/50; a rollback takes it back");
        let share = self.traffic.over(self.look).await.v2_percent();
        self.view.claim(&self.claims.between(SCENE, "share of v2 at 90/10, percent", share, 3.0, 18.0));
        let revision = mesh.control_plane()?.status().await?.revision;
        let half = RESOURCES.replace("weight: 90", "weight: 50").replace("weight: 10", "weight: 50");
        let began = Instant::now();
        let applied = mesh.control_plane()?.apply(&half, "half of the traffic to v2", 10).await?;
        let rollout = applied.rollout.context("a rollout was waited for")?;
        let millis = began.elapsed().as_secs_f64() * 1000.0;
        let waited = if rollout.pending.is_empty() && rollout.nacks.is_empty() { millis } else { f64::INFINITY };
        self.view.claim(&self.claims.at_most(
            SCENE,
            "time until every sidecar had acknowledged, milliseconds",
            waited,
            2000.0,
        ));
        let share = self.traffic.over(self.look).await.v2_percent();
        self.view.claim(&self.claims.between(SCENE, "share of v2 at 50/50, percent", share, 38.0, 62.0));
        mesh.control_plane()?.rollback(revision, "back to 90/10", 10).await?;
        let share = self.traffic.over(self.look).await.v2_percent();
        self.view.claim(&self.claims.between(SCENE, "share of v2 after the rollback, percent", share, 3.0, 18.0));
        Ok(())
    }

    async fn control_plane_is_killed(&self, mesh: &mut Mesh) -> Result<()> {
        const SCENE: &str = "the control plane dies";
        self.view.scene(SCENE, "kill -9 of the control plane: traffic goes on; back again, every sidecar is in step");
        let before = self.traffic.counts();
        mesh.control_plane_mut()?.kill().await;
        self.traffic.over(self.look).await;
        let seen = self.traffic.counts().since(before);
        self.view.claim(&self.claims.at_least(SCENE, "requests while it was gone", seen.total as f64, 50.0));
        self.view.claim(&self.claims.at_most(SCENE, "of these failed", seen.failed as f64, 0.0));
        let before = self.traffic.counts();
        let began = Instant::now();
        mesh.control_plane_mut()?.restart().await?;
        wait_for("every sidecar in step", Duration::from_secs(40), async || in_step(mesh).await).await?;
        self.view.claim(&self.claims.at_most(
            SCENE,
            "time until all were in step, seconds",
            began.elapsed().as_secs_f64(),
            30.0,
        ));
        self.traffic.over(self.look / 2).await;
        let seen = self.traffic.counts().since(before);
        self.view.claim(&self.claims.at_most(SCENE, "requests failed on its return", seen.failed as f64, 0.0));
        Ok(())
    }

    async fn certificate_is_renewed(&self, mesh: &Mesh) -> Result<()> {
        const SCENE: &str = "a certificate is renewed";
        self.view.scene(SCENE, "frontend's sidecar gets a new certificate under load, and no connection is cut");
        let port = mesh.workload("frontend")?.ports()?.metrics;
        let expiry = async || {
            metrics::scrape(port)
                .await
                .map(|scrape| scrape.sum("weft_certificate_expiry_timestamp_seconds", &[("kind", "leaf")]))
        };
        let old = expiry().await?;
        let before = self.traffic.counts();
        call(mesh.workload("frontend")?.ports()?.admin, Method::POST, "/certs").await?;
        let new = wait_for("the new certificate", Duration::from_secs(15), async || {
            expiry().await.ok().filter(|new| *new > old)
        })
        .await?;
        self.view.claim(&self.claims.at_least(SCENE, "its expiry moved by, seconds", new - old, 1.0));
        self.traffic.over(self.look).await;
        let seen = self.traffic.counts().since(before);
        self.view.claim(&self.claims.at_most(SCENE, "requests failed meanwhile", seen.failed as f64, 0.0));
        Ok(())
    }
}

/// Endpoints of orders v1 that frontend's sidecar sees in a state.
fn endpoints(scrape: &metrics::Scrape, state: &str) -> f64 {
    scrape.sum("weft_endpoints", &[("destination", "default/orders-v1"), ("state", state)])
}

async fn open(frontend: SocketAddr) -> Option<()> {
    let scrape = metrics::scrape(frontend).await.ok()?;
    (endpoints(&scrape, "open") > 0.0).then_some(())
}

async fn both_ready(frontend: SocketAddr) -> Option<()> {
    let scrape = metrics::scrape(frontend).await.ok()?;
    (endpoints(&scrape, "ready") >= 2.0).then_some(())
}

/// Every workload is ready, and its sidecar has acknowledged the log's revision.
async fn in_step(mesh: &Mesh) -> Option<()> {
    let status = mesh.control_plane().ok()?.status().await.ok()?;
    let ready = status.workloads.iter().filter(|workload| workload.state == "READY").count();
    let acked = status.sidecars.iter().filter(|sidecar| sidecar.acked_revision >= status.revision).count();
    (ready >= 5 && acked >= 5).then_some(())
}
