//! The two protocols of a stream, so that one task serves both.

use std::{collections::BTreeSet, sync::Arc};

use weft_proto::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse},
};
use weft_xds::{
    resource::ResourceType,
    server::{DeltaSession, Event, Options, ProtocolError, SotwSession, TypeStatus, View},
};

/// A protocol's state machine for one stream.
pub(super) trait Protocol: Send + 'static {
    /// What comes in.
    type Request: Send + 'static;
    /// What goes out.
    type Response: Send + 'static;
    /// As in logs.
    const NAME: &'static str;

    fn new(options: Options) -> Self;
    fn node(request: &Self::Request) -> Option<&Node>;
    fn on_request(&mut self, request: Self::Request) -> Result<Vec<Event>, ProtocolError>;
    fn dirty(&mut self, ty: ResourceType, names: &BTreeSet<Arc<str>>);
    fn dirty_all(&mut self);
    fn next_response(&mut self, view: &impl View) -> Option<Self::Response>;
    fn acked_all(&self) -> bool;
    fn status(&self) -> Vec<TypeStatus>;
}

/// Writes the methods that both state machines have alike.
macro_rules! protocol {
    ($session:ty, $request:ty, $response:ty, $name:literal) => {
        impl Protocol for $session {
            type Request = $request;
            type Response = $response;
            const NAME: &'static str = $name;

            fn new(options: Options) -> Self {
                <$session>::new(options)
            }

            fn node(request: &Self::Request) -> Option<&Node> {
                request.node.as_ref()
            }

            fn on_request(&mut self, request: Self::Request) -> Result<Vec<Event>, ProtocolError> {
                <$session>::on_request(self, request)
            }

            fn dirty(&mut self, ty: ResourceType, names: &BTreeSet<Arc<str>>) {
                <$session>::dirty(self, ty, names.iter().map(|name| &**name));
            }

            fn dirty_all(&mut self) {
                <$session>::dirty_all(self);
            }

            fn next_response(&mut self, view: &impl View) -> Option<Self::Response> {
                <$session>::next_response(self, view)
            }

            fn acked_all(&self) -> bool {
                <$session>::acked_all(self)
            }

            fn status(&self) -> Vec<TypeStatus> {
                <$session>::status(self)
            }
        }
    };
}

protocol!(DeltaSession, DeltaDiscoveryRequest, DeltaDiscoveryResponse, "delta");
protocol!(SotwSession, DiscoveryRequest, DiscoveryResponse, "sotw");
