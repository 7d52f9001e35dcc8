//! `weft get`.

use clap::Args;
use weft_proto::weft::v1::{GetRequest, ListRequest, Resource, ResourceKey};

use super::kinds;
use crate::{
    credential::Client,
    failure::Failure,
    output::{self, Format, Table},
};

/// Show resources.
///
/// Examples:
///   weft get                        everything
///   weft get httproute              every HTTPRoute of the namespace
///   weft get httproute orders -o yaml
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// Kind, as httproute.
    kind: Option<String>,
    /// Name.
    #[arg(requires = "kind")]
    name: Option<String>,
    /// Namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// In every namespace.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// As it was at this revision.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    revision: u64,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Shows.
///
/// # Errors
/// As the exit codes of `weft --help` say.
pub async fn run(mut client: Client, options: Options) -> Result<(), Failure> {
    let kind = options.kind.as_deref().map(kinds::kind).transpose()?.unwrap_or_default().to_owned();
    if let Some(name) = options.name {
        let key = ResourceKey { kind, namespace: options.namespace, name };
        let resource = client.get(GetRequest { key: Some(key), revision: options.revision }).await?.into_inner();
        return match options.output {
            Format::Json => output::print_value(Format::Json, &json(&resource)),
            Format::Table | Format::Yaml => output::print(&resource.yaml),
        };
    }
    let everywhere = options.all_namespaces || kind.is_empty();
    let namespace = if everywhere { String::new() } else { options.namespace };
    let request = ListRequest { kind, namespace, revision: options.revision };
    let resources = client.list(request).await?.into_inner().resources;
    match options.output {
        Format::Table if resources.is_empty() => output::print("no resources\n"),
        Format::Table => output::print(&table(&resources)),
        Format::Json => output::print_value(Format::Json, &resources.iter().map(json).collect::<Vec<_>>()),
        Format::Yaml => {
            output::print(&resources.iter().map(|resource| resource.yaml.as_str()).collect::<Vec<_>>().join("---\n"))
        }
    }
}

fn table(resources: &[Resource]) -> String {
    let mut table = Table::new(&["KIND", "NAMESPACE", "NAME", "REVISION"]);
    for resource in resources {
        let key = resource.key.clone().unwrap_or_default();
        table.row([key.kind, key.namespace, key.name, resource.revision.to_string()]);
    }
    table.render()
}

/// The resource itself, as JSON; its revision is an annotation of the answer.
fn json(resource: &Resource) -> serde_json::Value {
    let content: serde_json::Value = serde_yaml::from_str(&resource.yaml).unwrap_or(serde_json::Value::Null);
    serde_json::json!({"revision": resource.revision, "resource": content})
}
