//! What only a proxyless gRPC client gets: a listener for each target that it dials, with the routes inside.

use std::sync::Arc;

use weft_xds::resource::Encoded;

use super::{Client, Flavour, encode, names, routes};
use crate::index::World;

/// The listener of a target, `orders`, `orders.default` or `orders.default:8080`.
pub fn listener(world: &World, client: &Client, target: &str) -> Option<Arc<Encoded>> {
    let host = names::Host::parse(target, &client.service.namespace)?;
    let port = routes::resolve(world, &host)?;
    // Matched against the target, which has led here already.
    let domains = vec!["*".into()];
    let built = routes::virtual_host(world, &host.service, port, target, domains)?;
    let routes = encode::routes::encode(&built, Flavour::Grpc);
    Some(Encoded::new(target, &encode::listener::api(target, routes)))
}
