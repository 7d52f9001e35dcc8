//! What sidecars say of themselves: Prometheus text, read.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::Result;
use http::Method;

use crate::launch::call;

/// One sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Metric name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Value.
    pub value: f64,
}

/// All samples of a scrape.
#[derive(Debug, Clone, Default)]
pub struct Scrape(pub Vec<Sample>);

impl Scrape {
    /// The samples of `name` whose labels include `labels`.
    pub fn find<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Sample> {
        self.0.iter().filter(move |sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|have| have == value))
        })
    }

    /// Their sum.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        // Not `sum()`, whose zero is negative.
        self.find(name, labels).fold(0.0, |sum, sample| sum + sample.value)
    }
}

/// Scrapes `/metrics`.
///
/// # Errors
/// When the port does not answer in time.
pub async fn scrape(address: SocketAddr) -> Result<Scrape> {
    Ok(parse(&call(address, Method::GET, "/metrics").await?))
}

/// Reads the text format; lines it cannot read are left out.
pub fn parse(text: &str) -> Scrape {
    Scrape(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
}

fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, rest) = series.split_once('{').unwrap_or((series, ""));
    let mut labels = BTreeMap::new();
    for pair in rest.trim_end_matches('}').split("\",") {
        if let Some((key, value)) = pair.split_once("=\"") {
            labels.insert(key.to_owned(), value.trim_end_matches('"').to_owned());
        }
    }
    Some(Sample { name: name.to_owned(), labels, value: value.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_their_labels() {
        let scrape = parse("# TYPE a counter\na{x=\"1\",y=\"b c\"} 2\na{x=\"2\"} 3\nb 4.5\n");
        assert_eq!(scrape.sum("a", &[]), 5.0);
        assert_eq!(scrape.sum("a", &[("y", "b c")]), 2.0);
        assert_eq!(scrape.sum("b", &[]), 4.5);
    }
}
