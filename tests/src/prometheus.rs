//! What a running Prometheus answers.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use http::Method;
use serde_json::Value;
use tokio::time::Instant;
use weft::launch::{call, wait_for};

use crate::dashboards::list;

/// How long it may take to come up, and to scrape what there is.
pub const START: Duration = Duration::from_secs(20);

/// A rule, as Prometheus has it.
pub struct Rule {
    /// Its expression.
    pub query: String,
    /// The series that it records; an alert records none.
    pub records: Option<String>,
}

/// The API of a Prometheus.
pub struct Answers {
    /// Where it listens.
    pub address: SocketAddr,
}

impl Answers {
    /// Waits until it answers queries.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn ready(&self) -> Result<()> {
        let ready = async || call(self.address, Method::GET, "/-/ready").await.ok().map(drop);
        wait_for("Prometheus", START, ready).await
    }

    async fn ask(&self, path: &str) -> Result<Value> {
        let answer = call(self.address, Method::GET, path).await?;
        let mut answer: Value = serde_json::from_str(&answer)?;
        ensure!(answer["status"] == "success", "{path}: {answer}");
        Ok(answer["data"].take())
    }

    /// The values that an expression has now.
    ///
    /// # Errors
    /// When it cannot be evaluated.
    pub async fn query(&self, expression: &str) -> Result<Vec<f64>> {
        let answer = self.ask(&format!("/api/v1/query?query={}", encode(expression))).await;
        let answer = answer.with_context(|| expression.to_owned())?;
        let value = |sample: &Value| sample["value"][1].as_str().and_then(|text| text.parse().ok());
        Ok(list(&answer["result"]).iter().filter_map(value).collect())
    }

    /// The values that a label has among the series of an expression.
    ///
    /// # Errors
    /// When it cannot be evaluated.
    pub async fn labels(&self, expression: &str, label: &str) -> Result<Vec<String>> {
        let answer = self.ask(&format!("/api/v1/query?query={}", encode(expression))).await?;
        let value = |sample: &Value| sample["metric"][label].as_str().map(str::to_owned);
        Ok(list(&answer["result"]).iter().filter_map(value).collect())
    }

    /// Waits until so many targets have answered.
    ///
    /// # Errors
    /// When others or fewer have: what it says of each.
    pub async fn has_scraped(&self, targets: usize) -> Result<()> {
        let scraped = wait_for("the first scrapes", START, async || {
            let up = self.query("sum(up)").await.ok()?;
            (up.first().copied() == Some(targets as f64)).then_some(())
        });
        if let Err(error) = scraped.await {
            let seen = self.ask("/api/v1/targets").await?;
            let said =
                |target: &Value| format!("{}: {} {}", target["scrapeUrl"], target["health"], target["lastError"]);
            let said: Vec<String> = list(&seen["activeTargets"]).iter().map(said).collect();
            bail!("{error:#}: {said:#?}");
        }
        Ok(())
    }

    /// All rules, once each has been evaluated.
    ///
    /// # Errors
    /// When one fails.
    pub async fn rules(&self, patience: Duration) -> Result<Vec<Rule>> {
        let deadline = Instant::now() + patience;
        loop {
            let groups = self.ask("/api/v1/rules").await?;
            let rules: Vec<&Value> = list(&groups["groups"]).iter().flat_map(|group| list(&group["rules"])).collect();
            if let Some(bad) = rules.iter().find(|rule| rule["health"] == "err") {
                bail!("{}: {}", bad["name"], bad["lastError"]);
            }
            if !rules.is_empty() && rules.iter().all(|rule| rule["health"] == "ok") {
                let rule = |rule: &&Value| {
                    let text = |key: &str| rule[key].as_str().map(str::to_owned);
                    let records = if rule["type"] == "recording" { text("name") } else { None };
                    Some(Rule { query: text("query")?, records })
                };
                return Ok(rules.iter().filter_map(rule).collect());
            }
            ensure!(Instant::now() < deadline, "not every rule was evaluated: {groups}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Waits until of each of these one form has data.
    ///
    /// # Errors
    /// When one cannot be evaluated, or has none in time.
    pub async fn data(&self, mut wanted: Vec<Vec<String>>, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let mut empty = Vec::new();
            for forms in wanted {
                if !self.has_data(&forms).await? {
                    empty.push(forms);
                }
            }
            if empty.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let first: Vec<&String> = empty.iter().filter_map(|forms| forms.first()).collect();
                bail!("{} expressions have no data: {first:#?}", empty.len());
            }
            wanted = empty;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn has_data(&self, forms: &[String]) -> Result<bool> {
        for form in forms {
            if self.query(form).await?.iter().any(|value| !value.is_nan()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Names of all series that it has.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn names(&self) -> Result<BTreeSet<String>> {
        let names = self.ask("/api/v1/label/__name__/values").await?;
        Ok(list(&names).iter().filter_map(|name| name.as_str().map(str::to_owned)).collect())
    }

    /// What the alerts say that are active now.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn alert_texts(&self) -> Result<Vec<String>> {
        let alerts = self.ask("/api/v1/alerts").await?;
        let texts = list(&alerts["alerts"]).iter().filter_map(|alert| alert["annotations"].as_object());
        Ok(texts.flat_map(|texts| texts.values()).filter_map(|text| text.as_str().map(str::to_owned)).collect())
    }
}

fn encode(text: &str) -> String {
    let encoded = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encoded).collect()
}
