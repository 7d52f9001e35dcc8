//! The dashboards of `deploy/observe`, read.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// `deploy/observe`.
///
/// # Panics
/// When the crate does not lie in the workspace.
pub fn observe() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace");
    workspace.join("deploy/observe")
}

/// Panels that Grafana goes on having.
const TYPES: &[&str] = &["row", "stat", "timeseries", "table", "heatmap"];

/// Variables that Grafana itself has, and what they come to in a test.
const BUILT_IN: &[(&str, &str)] = &[("$__rate_interval", "1m")];

/// A dashboard.
pub struct Dashboard {
    file: String,
    json: Value,
}

/// All dashboards of a folder.
///
/// # Errors
/// When there is none, or one cannot be read.
pub fn dashboards(folder: &Path) -> Result<Vec<Dashboard>> {
    let read = |(file, text): (String, String)| {
        let json = serde_json::from_str(&text).with_context(|| file.clone())?;
        Ok(Dashboard { file, json })
    };
    files(folder, "json")?.into_iter().map(read).collect()
}

impl Dashboard {
    /// Its uid, which links use.
    pub fn uid(&self) -> &str {
        self.json["uid"].as_str().unwrap_or_default()
    }

    /// The whole of it.
    pub fn json(&self) -> &Value {
        &self.json
    }

    /// Every expression, as it is with each value of its variables. `kind`: of the panels of this type alone.
    pub fn expressions(&self, kind: Option<&str>, services: &[String], workloads: &[String]) -> Vec<Vec<String>> {
        let any = [".*".to_owned()];
        let mut found = Vec::new();
        let panels = self.panels().iter().filter(|panel| kind.is_none_or(|kind| panel["type"] == kind));
        for target in panels.flat_map(|panel| list(&panel["targets"])) {
            let Some(expression) = target["expr"].as_str() else { continue };
            let mut forms = vec![expression.to_owned()];
            for (name, value) in BUILT_IN {
                forms = forms.into_iter().map(|form| form.replace(name, value)).collect();
            }
            for variable in self.variables() {
                let values: &[String] = match variable["name"].as_str() {
                    _ if variable["multi"] == true => &any,
                    Some("service") => services,
                    Some("workload") => workloads,
                    _ => continue,
                };
                let name = format!("${}", variable["name"].as_str().unwrap_or_default());
                let with = |form: &String| values.iter().map(|value| form.replace(&name, value)).collect::<Vec<_>>();
                forms = forms.iter().flat_map(with).collect();
                forms.sort();
                forms.dedup();
            }
            found.push(forms);
        }
        found
    }

    /// Whether every panel says what it shows, in which unit and where, and reads only what is there.
    ///
    /// # Errors
    /// At the first that does not.
    pub fn check(&self) -> Result<()> {
        let file = &self.file;
        ensure!(
            self.uid().starts_with("weft-") && self.json["title"].as_str().is_some_and(|t| t.starts_with("Weft / "))
        );
        let mut ids = BTreeSet::new();
        let mut cells = BTreeSet::new();
        for panel in self.panels() {
            let title = panel["title"].as_str().with_context(|| format!("{file}: a panel has no title"))?;
            ensure!(ids.insert(panel["id"].to_string()), "{file}: {title}: its id is taken");
            let kind = panel["type"].as_str().unwrap_or_default();
            ensure!(TYPES.contains(&kind), "{file}: {title}: `{kind}` is none of {TYPES:?}");
            let place = |key: &str| panel["gridPos"][key].as_u64().unwrap_or_default();
            ensure!(place("x") + place("w") <= 24, "{file}: {title} is too wide");
            for x in place("x")..place("x") + place("w") {
                for y in place("y")..place("y") + place("h") {
                    ensure!(cells.insert((x, y)), "{file}: {title} lies over another panel");
                }
            }
            if kind == "row" {
                continue;
            }
            ensure!(
                panel["description"].as_str().is_some_and(|text| text.len() > 10),
                "{file}: {title}: no description"
            );
            ensure!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{file}: {title}: no unit");
            ensure!(panel["datasource"]["uid"] == "${datasource}", "{file}: {title}: another data source");
            ensure!(!list(&panel["targets"]).is_empty(), "{file}: {title} asks nothing");
            for target in list(&panel["targets"]) {
                let expression = target["expr"].as_str().unwrap_or_default();
                self.check_variables(expression).with_context(|| format!("{file}: {title}"))?;
                // A name would be one more column, and keep the rows of two expressions apart.
                let nameless = ["sum by", "max by", "min by"].iter().any(|how| expression.starts_with(how));
                ensure!(
                    kind != "table" || nameless,
                    "{file}: {title}: a table needs `sum by` or the like: {expression}"
                );
            }
        }
        Ok(())
    }

    fn check_variables(&self, expression: &str) -> Result<()> {
        ensure!(!expression.is_empty(), "no expression");
        for rest in expression.split('$').skip(1) {
            let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            let known = BUILT_IN.iter().any(|(built_in, _)| built_in[1..] == *name)
                || self.variables().iter().any(|variable| variable["name"] == *name);
            ensure!(known, "`${name}` is no variable of the dashboard");
        }
        Ok(())
    }

    fn panels(&self) -> &[Value] {
        list(&self.json["panels"])
    }

    fn variables(&self) -> &[Value] {
        list(&self.json["templating"]["list"])
    }
}

/// The items of a list; none where there is no list.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Files of a folder with their text, by name.
///
/// # Errors
/// When there is none with that extension, or one cannot be read.
pub fn files(folder: &Path, extension: &str) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|has| has == extension) {
            found.push((path.display().to_string(), std::fs::read_to_string(&path)?));
        }
    }
    found.sort();
    ensure!(!found.is_empty(), "no .{extension} in {}", folder.display());
    Ok(found)
}
