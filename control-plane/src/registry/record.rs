//! A workload as the registry's table keeps it.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use weft_identity::SpiffeId;
use weft_xds::resource::Health;

use crate::{
    index::{ObjectKey, WorkloadEntry, WorkloadPort},
    store::{StoreError, decode, encode},
};

/// Id → [`Record`] as JSON. Draining workloads are not in it: they do not come back.
const WORKLOADS: TableDefinition<&str, &[u8]> = TableDefinition::new("workloads");

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    namespace: String,
    service: String,
    identity: String,
    address: SocketAddr,
    ports: Vec<Port>,
    weight: u32,
    labels: BTreeMap<String, String>,
    region: String,
    zone: String,
    healthy: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Port {
    name: String,
    port: u16,
    protocol: String,
    /// 0, as of those that were written before it was known: `port`.
    #[serde(default)]
    app: u16,
}

/// Makes the row of a workload agree with `workload`.
pub fn write(transaction: &WriteTransaction, id: &str, workload: Option<&WorkloadEntry>) -> Result<(), StoreError> {
    let mut table = transaction.open_table(WORKLOADS)?;
    match workload.filter(|workload| workload.health != Health::Draining) {
        Some(workload) => table.insert(id, encode(&record(workload)).as_slice())?,
        None => table.remove(id)?,
    };
    Ok(())
}

/// Every workload of the table.
pub fn read_all(transaction: &WriteTransaction) -> Result<Vec<WorkloadEntry>, StoreError> {
    let table = transaction.open_table(WORKLOADS)?;
    let mut workloads = Vec::new();
    for row in table.iter()? {
        let (id, value) = row?;
        let record: Record = decode("workloads", value.value())?;
        match SpiffeId::parse(&record.identity) {
            Ok(identity) => workloads.push(entry(id.value(), record, identity)),
            Err(error) => tracing::warn!(workload = id.value(), %error, "a stored workload is left out"),
        }
    }
    Ok(workloads)
}

fn record(workload: &WorkloadEntry) -> Record {
    let port = |port: &WorkloadPort| Port {
        name: port.name.to_string(),
        port: port.port,
        protocol: port.protocol.to_string(),
        app: port.app,
    };
    Record {
        namespace: workload.service.namespace.to_string(),
        service: workload.service.name.to_string(),
        identity: workload.identity.as_str().to_owned(),
        address: workload.address,
        ports: workload.ports.iter().map(port).collect(),
        weight: workload.weight,
        labels: (*workload.labels).clone(),
        region: workload.region.to_string(),
        zone: workload.zone.to_string(),
        healthy: workload.health == Health::Healthy,
    }
}

fn entry(id: &str, record: Record, identity: SpiffeId) -> WorkloadEntry {
    let port = |port: Port| WorkloadPort {
        name: port.name.into(),
        port: port.port,
        protocol: port.protocol.into(),
        app: if port.app == 0 { port.port } else { port.app },
    };
    WorkloadEntry {
        id: id.into(),
        service: ObjectKey::new(record.namespace, record.service),
        identity,
        address: record.address,
        ports: record.ports.into_iter().map(port).collect(),
        weight: record.weight,
        labels: Arc::new(record.labels),
        region: record.region.into(),
        zone: record.zone.into(),
        health: if record.healthy { Health::Healthy } else { Health::Unhealthy },
    }
}
