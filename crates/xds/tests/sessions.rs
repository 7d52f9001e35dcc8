//! The rules of both sessions and of the client, one by one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{World, cluster, host};
use weft_proto::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
    },
    google::rpc::Status,
};
use weft_xds::{
    client::{Change, Client, Node},
    resource::ResourceType::{self, Cluster, Endpoints, Listener, Route, VirtualHost},
    server::{DeltaSession, Event, Options, ProtocolError, SotwSession, View},
};

fn subscribe(ty: ResourceType, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: ty.url().into(),
        resource_names_subscribe: names.iter().map(|it| (*it).into()).collect(),
        ..Default::default()
    }
}

fn unsubscribe(ty: ResourceType, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: ty.url().into(),
        resource_names_unsubscribe: names.iter().map(|it| (*it).into()).collect(),
        ..Default::default()
    }
}

fn refusal(message: &str) -> Option<Status> {
    Some(Status { code: 13, message: message.into(), details: Vec::new() })
}

fn answer(response: &DeltaDiscoveryResponse, error_detail: Option<Status>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        error_detail,
        ..Default::default()
    }
}

fn names(response: &DeltaDiscoveryResponse) -> (Vec<&str>, Vec<&str>) {
    let set = response.resources.iter().map(|it| it.name.as_str()).collect();
    (set, response.removed_resources.iter().map(String::as_str).collect())
}

/// A session and the world that it looks at.
struct Delta {
    session: DeltaSession,
    world: World,
}

impl Delta {
    fn new() -> Self {
        let mut world = World::default();
        world.retarget(0, 0, false);
        world.retarget(1, 1, false);
        Self { session: DeltaSession::new(Options::default()), world }
    }

    fn request(&mut self, request: DeltaDiscoveryRequest) -> Vec<Event> {
        self.session.on_request(request).unwrap()
    }

    fn change(&mut self, change: impl FnOnce(&mut World) -> Vec<common::Key>) {
        for (ty, name) in change(&mut self.world) {
            self.session.dirty(ty, [name.as_str()]);
        }
    }

    #[track_caller]
    fn next(&mut self, ty: ResourceType) -> DeltaDiscoveryResponse {
        let response = self.session.next_response(&self.world).expect("a response");
        assert_eq!(ResourceType::from_url(&response.type_url), Some(ty));
        response
    }

    #[track_caller]
    fn quiet(&mut self) {
        let response = self.session.next_response(&self.world);
        assert!(response.is_none(), "{response:?}");
    }

    /// Sends the next response and accepts it.
    #[track_caller]
    fn exchange(&mut self, ty: ResourceType) -> DeltaDiscoveryResponse {
        let response = self.next(ty);
        self.request(answer(&response, None));
        response
    }
}

#[test]
fn an_empty_first_request_is_a_wildcard_for_clusters_and_listeners_only() {
    let mut it = Delta::new();
    it.request(subscribe(Cluster, &[]));
    assert_eq!(names(&it.exchange(Cluster)).0, [cluster(0), cluster(1)]);
    for ty in [Listener, Endpoints, VirtualHost] {
        it.request(subscribe(ty, &[]));
        let response = it.exchange(ty);
        assert_eq!(names(&response), (vec![], vec![]), "{ty}: answered, if with nothing");
    }
    it.change(|world| world.retarget(2, 2, false));
    assert_eq!(names(&it.exchange(Cluster)).0, [cluster(2)]);
    it.quiet();
    it.request(unsubscribe(Cluster, &["*"]));
    it.change(|world| world.touch_cluster(2, false));
    it.quiet();
}

#[test]
fn virtual_hosts_have_no_wildcard() {
    let mut it = Delta::new();
    let error = it.session.on_request(subscribe(VirtualHost, &["*"])).unwrap_err();
    assert_eq!(error, ProtocolError::NoWildcard(VirtualHost));
}

#[test]
fn a_name_that_does_not_exist_is_removed_for_every_type() {
    for ty in ResourceType::ALL {
        let mut it = Delta::new();
        it.request(subscribe(ty, &["nothing"]));
        assert_eq!(names(&it.exchange(ty)), (vec![], vec!["nothing"]));
        it.session.dirty(ty, ["nothing"]);
        it.quiet();
        it.request(subscribe(ty, &["nothing"]));
        assert_eq!(names(&it.exchange(ty)).1, ["nothing"], "asked again, answered again");
    }
}

#[test]
fn one_response_of_a_type_is_in_flight_and_changes_meanwhile_come_once() {
    let mut it = Delta::new();
    it.request(subscribe(Cluster, &[&cluster(0)]));
    let first = it.next(Cluster);
    it.change(|world| world.touch_cluster(0, false));
    it.change(|world| world.touch_cluster(0, false));
    it.quiet();
    assert!(!it.session.acked_all());
    it.request(answer(&first, None));
    let second = it.exchange(Cluster);
    assert_eq!(second.resources[0].version, *it.world.get(Cluster, &cluster(0)).unwrap().version);
    it.quiet();
    assert!(it.session.acked_all());
}

#[test]
fn an_answer_with_another_nonce_says_nothing() {
    let mut it = Delta::new();
    it.request(subscribe(Cluster, &[&cluster(0)]));
    let first = it.next(Cluster);
    let stale = DeltaDiscoveryResponse { nonce: "of another stream".into(), ..first.clone() };
    assert_eq!(it.request(answer(&stale, refusal("no"))), []);
    assert!(!it.session.acked_all());
    assert!(matches!(&it.request(answer(&first, None))[..], [Event::Acked { resources, .. }] if resources.len() == 1));
    assert_eq!(it.request(answer(&first, None)), [], "a repeated answer");
}

#[test]
fn what_was_refused_is_kept_and_not_sent_again() {
    let mut it = Delta::new();
    it.request(subscribe(Cluster, &[&cluster(0), &cluster(1)]));
    let response = it.next(Cluster);
    let events = it.request(answer(&response, refusal(&format!("{}: type: is bad", cluster(1)))));
    assert!(
        matches!(&events[..], [Event::Nacked { resources, .. }] if *resources[0].0 == *cluster(1) && resources.len() == 1)
    );
    it.session.dirty_all();
    it.quiet();
    let status = it.session.status();
    assert_eq!((status[0].acked, status[0].nacks.len(), &*status[0].nacks[0].0), (1, 1, &*cluster(1)));
    it.change(|world| world.touch_cluster(1, false));
    assert_eq!(names(&it.exchange(Cluster)).0, [cluster(1)]);
    assert!(it.session.status()[0].nacks.is_empty());
}

#[test]
fn a_refusal_that_names_nothing_blames_all() {
    let mut it = Delta::new();
    it.request(subscribe(Cluster, &[&cluster(0), &cluster(1)]));
    let response = it.next(Cluster);
    it.request(answer(&response, refusal("missing ]: [")));
    assert_eq!(it.session.status()[0].nacks.len(), 2);
    it.request(subscribe(Cluster, &[&cluster(0)]));
    assert_eq!(names(&it.exchange(Cluster)).0, [cluster(0)], "asked for, sent although refused");
}

#[test]
fn a_name_is_not_blamed_for_a_longer_one() {
    let mut it = Delta::new();
    it.request(subscribe(Cluster, &["default/c0:80", "default/c1:80", "default/c0:8", "c0:80"]));
    let response = it.next(Cluster);
    let events = it.request(answer(&response, refusal("cluster(s) default/c0:80: no, default/c0:80.5 neither")));
    assert!(
        matches!(&events[..], [Event::Nacked { resources, .. }] if resources.len() == 1 && *resources[0].0 == *"default/c0:80")
    );
}

#[test]
fn endpoints_come_again_after_their_cluster() {
    let mut it = Delta::new();
    it.request(subscribe(Cluster, &[]));
    it.exchange(Cluster);
    it.request(subscribe(Endpoints, &[&cluster(0), &cluster(1)]));
    it.exchange(Endpoints);
    it.change(|world| world.touch_cluster(0, false));
    let held_back = it.next(Cluster);
    assert_eq!(names(&it.exchange(Endpoints)).0, [cluster(0)], "before the cluster is accepted");
    it.request(answer(&held_back, None));
    it.quiet();
}

#[test]
fn order_of_pushes_and_removals() {
    let mut it = Delta::new();
    it.request(subscribe(VirtualHost, &[&host(0)]));
    it.exchange(VirtualHost);
    it.request(subscribe(Endpoints, &[&cluster(0), &cluster(2)]));
    it.exchange(Endpoints);
    it.request(subscribe(Cluster, &[&cluster(0), &cluster(2)]));
    it.exchange(Cluster);
    it.exchange(Endpoints);
    it.change(|world| world.retarget(0, 2, false));
    assert_eq!(names(&it.exchange(Cluster)), (vec![&*cluster(2)], vec![]));
    assert_eq!(names(&it.exchange(Endpoints)), (vec![&*cluster(2)], vec![]));
    let routes = it.next(VirtualHost);
    it.quiet();
    it.request(answer(&routes, refusal("no")));
    it.quiet();
    it.change(|world| world.retarget(0, 2, false));
    it.exchange(VirtualHost);
    assert_eq!(names(&it.exchange(Endpoints)).1, [cluster(0)], "only now, and in reverse");
    assert_eq!(names(&it.exchange(Cluster)).1, [cluster(0)]);
    it.quiet();
}

#[test]
fn routes_wait_for_clusters_that_cannot_be_sent_yet() {
    let mut it = Delta::new();
    it.request(subscribe(VirtualHost, &[&host(0)]));
    it.exchange(VirtualHost);
    it.request(subscribe(Cluster, &[]));
    let warming = it.next(Cluster);
    it.change(|world| world.retarget(0, 3, false));
    it.quiet();
    it.request(answer(&warming, None));
    assert_eq!(names(&it.next(Cluster)).0, [cluster(3)]);
    assert_eq!(names(&it.next(VirtualHost)).0, [host(0)]);
}

#[test]
fn a_reconnected_client_gets_what_differs() {
    let mut it = Delta::new();
    let version = |it: &Delta, index| it.world.get(Cluster, &cluster(index)).unwrap().version.to_string();
    let mut request = subscribe(Cluster, &[]);
    request.initial_resource_versions =
        [(cluster(0), version(&it, 0)), (cluster(1), "old".into()), (cluster(4), "gone".into())].into();
    it.request(request);
    let first = it.next(Cluster);
    assert_eq!(names(&first), (vec![&*cluster(1)], vec![]), "removals wait for the burst of first requests to end");
    it.request(answer(&first, None));
    assert_eq!(names(&it.exchange(Cluster)), (vec![], vec![&*cluster(4)]));
    it.quiet();
}

#[test]
fn responses_are_cut_at_their_bound() {
    let mut it = Delta::new();
    it.session = DeltaSession::new(Options { max_bytes: 1, ..Options::default() });
    it.request(subscribe(Cluster, &[]));
    assert_eq!(names(&it.exchange(Cluster)).0, [cluster(0)]);
    assert_eq!(names(&it.exchange(Cluster)).0, [cluster(1)]);
    it.quiet();
}

#[test]
fn subscriptions_are_bounded() {
    let options = Options { max_names: 2, ..Options::default() };
    let mut delta = DeltaSession::new(options.clone());
    delta.on_request(subscribe(Cluster, &["a", "b"])).unwrap();
    let error = delta.on_request(subscribe(Endpoints, &["a"])).unwrap_err();
    assert_eq!(error.to_string(), "more than 2 resources subscribed to on one stream");
    let error = delta.on_request(subscribe(Cluster, &[&"x".repeat(2000)])).unwrap_err();
    assert!(matches!(error, ProtocolError::LongName { length: 2000, .. }));
    let mut sotw = SotwSession::new(options);
    assert!(sotw.on_request(names_of(Cluster, &["a", "b", "c"], None)).is_err());
}

#[test]
fn an_unknown_type_is_ignored() {
    let request = DeltaDiscoveryRequest { type_url: "type.googleapis.com/x".into(), ..Default::default() };
    let mut it = Delta::new();
    assert_eq!(it.request(request), [Event::UnknownType("type.googleapis.com/x".into())]);
    it.quiet();
}

fn names_of(ty: ResourceType, names: &[&str], answered: Option<&DiscoveryResponse>) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: ty.url().into(),
        resource_names: names.iter().map(|it| (*it).into()).collect(),
        response_nonce: answered.map(|it| it.nonce.clone()).unwrap_or_default(),
        version_info: answered.map(|it| it.version_info.clone()).unwrap_or_default(),
        ..Default::default()
    }
}

fn sotw() -> (SotwSession, World) {
    let mut world = World::default();
    world.retarget(0, 0, false);
    world.retarget(1, 1, false);
    (SotwSession::new(Options::default()), world)
}

#[test]
fn sotw_names_grow_in_bursts() {
    let (mut session, world) = sotw();
    session.on_request(names_of(Endpoints, &[&cluster(0)], None)).unwrap();
    let first = session.next_response(&world).unwrap();
    assert_eq!(first.resources.len(), 1);
    // While the answer is under way: the nonce is empty, the names count.
    session.on_request(names_of(Endpoints, &[&cluster(0), &cluster(1)], None)).unwrap();
    assert!(session.next_response(&world).is_none());
    session.on_request(names_of(Endpoints, &[&cluster(0), &cluster(1)], Some(&first))).unwrap();
    let second = session.next_response(&world).unwrap();
    assert_eq!(second.resources.len(), 2, "the full set");
    // A nonce that is out of date: ignored, names and all.
    assert_eq!(session.on_request(names_of(Endpoints, &[], Some(&first))).unwrap(), []);
    session.on_request(names_of(Endpoints, &[&cluster(0), &cluster(1)], Some(&second))).unwrap();
    assert!(session.next_response(&world).is_none() && session.acked_all());
    // Fewer names need no answer.
    session.on_request(names_of(Endpoints, &[&cluster(0)], Some(&second))).unwrap();
    assert!(session.next_response(&world).is_none());
}

#[test]
fn sotw_the_same_nonce_again_asks_for_a_resend() {
    let (mut session, world) = sotw();
    session.on_request(names_of(Endpoints, &[&cluster(0)], None)).unwrap();
    let first = session.next_response(&world).unwrap();
    session.on_request(names_of(Endpoints, &[&cluster(0)], Some(&first))).unwrap();
    assert!(session.next_response(&world).is_none(), "that was the ACK");
    session.on_request(names_of(Endpoints, &[&cluster(0)], Some(&first))).unwrap();
    let again = session.next_response(&world).unwrap();
    assert_eq!(again.version_info, first.version_info);
    assert_ne!(again.nonce, first.nonce);
}

#[test]
fn sotw_every_first_request_is_answered_whatever_version_it_brings() {
    let (mut session, world) = sotw();
    let mut request = names_of(Cluster, &[], None);
    session.on_request(request.clone()).unwrap();
    let version = session.next_response(&world).unwrap().version_info;
    let mut restarted = SotwSession::new(Options::default());
    request.version_info = version.clone();
    restarted.on_request(request).unwrap();
    let response = restarted.next_response(&world).unwrap();
    assert_eq!((response.version_info, response.resources.len()), (version, 2), "equal after a restart");
    restarted.on_request(names_of(Route, &[], None)).unwrap();
    assert!(restarted.next_response(&world).unwrap().resources.is_empty(), "and no wildcard for routes");
}

#[test]
fn sotw_an_empty_list_after_names_means_none() {
    let (mut session, world) = sotw();
    session.on_request(names_of(Cluster, &[&cluster(0)], None)).unwrap();
    let first = session.next_response(&world).unwrap();
    assert_eq!(first.resources.len(), 1);
    session.on_request(names_of(Cluster, &[], Some(&first))).unwrap();
    assert!(session.next_response(&world).is_none());
    assert!(!session.wants(Cluster, &cluster(0)));
}

#[test]
fn sotw_what_was_refused_is_not_sent_again_until_it_changes() {
    let (mut session, mut world) = sotw();
    session.on_request(names_of(Cluster, &[], None)).unwrap();
    let first = session.next_response(&world).unwrap();
    let mut nack = names_of(Cluster, &[], Some(&first));
    nack.error_detail = refusal(&format!("Error adding/updating cluster(s) {}: bad", cluster(1)));
    let events = session.on_request(nack).unwrap();
    assert!(matches!(&events[..], [Event::Nacked { resources, .. }] if resources.len() == 1));
    session.dirty_all();
    assert!(session.next_response(&world).is_none());
    world.touch_cluster(1, false);
    session.dirty(Cluster, [&*cluster(1)]);
    assert!(session.next_response(&world).is_some());
}

#[test]
fn sotw_endpoints_that_do_not_exist_are_none() {
    let (mut session, world) = sotw();
    session.on_request(names_of(Endpoints, &["default/new:80"], None)).unwrap();
    assert_eq!(session.next_response(&world).unwrap().resources.len(), 1);
}

#[test]
fn the_client_acks_refuses_and_keeps_the_last_good_version() {
    let mut world = World::default();
    world.retarget(0, 0, false);
    let mut client =
        Client::new(Node { id: "default/web/1".into(), user_agent: "weft-sidecar".into(), ..Node::default() });
    client.subscribe(Cluster, &cluster(0));
    client.subscribe(Cluster, &cluster(1));
    assert!(client.next_request().is_none(), "no stream");
    let first = client.on_connected();
    assert_eq!(first[0].node.as_ref().unwrap().user_agent_name, "weft-sidecar");
    let resource = |world: &World, index| {
        let it = world.get(Cluster, &cluster(index)).unwrap();
        Resource {
            name: it.name.to_string(),
            version: it.version.to_string(),
            resource: Some(it.any.clone()),
            ..Default::default()
        }
    };
    let respond = |resources, nonce: &str| DeltaDiscoveryResponse {
        type_url: Cluster.url().into(),
        resources,
        nonce: nonce.into(),
        ..Default::default()
    };
    let updates = client.on_response(respond(vec![resource(&world, 0)], "1"));
    assert!(matches!(&updates[..], [update] if matches!(update.change, Change::Set { .. })));
    let ack = client.next_request().unwrap();
    assert_eq!((ack.response_nonce.as_str(), ack.error_detail, ack.node), ("1", None, None));
    assert!(client.on_response(respond(vec![resource(&world, 0)], "2")).is_empty(), "a duplicate");

    world.touch_cluster(0, true);
    world.retarget(1, 1, false);
    let good = client.version(Cluster, &cluster(0)).unwrap().clone();
    let updates = client.on_response(respond(vec![resource(&world, 0), resource(&world, 1)], "3"));
    assert!(matches!(&updates[0].change, Change::Rejected { error, .. } if error.field == "type"));
    assert!(matches!(&updates[1].change, Change::Set { .. }), "the good one goes live");
    assert_eq!(client.version(Cluster, &cluster(0)), Some(&good));
    client.next_request().unwrap();
    let nack = client.next_request().unwrap();
    let message = nack.error_detail.unwrap().message;
    assert!(message.starts_with("default/c0:80: type: "), "{message}");

    client.on_disconnected();
    let again = client.on_connected();
    assert_eq!(again[0].initial_resource_versions.len(), 2);
    assert_eq!(again[0].initial_resource_versions[&cluster(0)], *good);

    let mut removal = respond(Vec::new(), "4");
    removal.removed_resources = vec![cluster(0), "never wanted".into()];
    let updates = client.on_response(removal);
    assert!(matches!(&updates[..], [update] if matches!(update.change, Change::Removed)));
}

#[test]
fn the_client_starts_from_a_cache() {
    let mut world = World::default();
    world.retarget(0, 0, false);
    let cached = world.get(Cluster, &cluster(0)).unwrap();
    let mut client = Client::new(Node::default());
    client.restore(Cluster, &cluster(0), &cached.version, &cached.any).unwrap();
    assert!(client.restore(Endpoints, "x", "1", &cached.any).is_err());
    assert!(client.restore(Cluster, "another name", "1", &cached.any).is_err());
    let first = client.on_connected();
    assert_eq!((first.len(), first[0].initial_resource_versions.len()), (1, 1));
}

#[test]
fn a_name_dropped_and_wanted_again_is_told_as_both() {
    let mut client = Client::new(Node::default());
    client.subscribe(VirtualHost, &host(0));
    client.on_connected();
    client.unsubscribe(VirtualHost, &host(0));
    client.subscribe(VirtualHost, &host(0));
    let requests: Vec<_> = std::iter::from_fn(|| client.next_request()).collect();
    assert_eq!(requests[0].resource_names_unsubscribe, [host(0)]);
    assert_eq!(requests[1].resource_names_subscribe, [host(0)]);
}

#[test]
fn what_was_said_before_a_response_arrives_before_its_ack() {
    let mut client = Client::new(Node::default());
    client.subscribe(VirtualHost, &host(0));
    client.on_connected();
    client.unsubscribe(VirtualHost, &host(0));
    client.subscribe(VirtualHost, &host(0));
    let response = DeltaDiscoveryResponse {
        type_url: VirtualHost.url().into(),
        removed_resources: vec![host(0)],
        nonce: "1".into(),
        ..Default::default()
    };
    client.on_response(response);
    client.subscribe(VirtualHost, &host(1));
    let requests: Vec<_> = std::iter::from_fn(|| client.next_request()).collect();
    assert_eq!(requests[0].resource_names_unsubscribe, [host(0)]);
    assert_eq!(requests[1].resource_names_subscribe, [host(0)]);
    assert_eq!(requests[2].response_nonce, "1");
    assert_eq!(requests[3].resource_names_subscribe, [host(1)]);
}
