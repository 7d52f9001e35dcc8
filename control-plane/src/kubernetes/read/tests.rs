use serde_json::json;
use weft_model::{AppProtocol, Resource};

use super::*;

fn yaml(subject: Subject, object: Value) -> String {
    match read(subject, &object).reading {
        Reading::Resource(resource) => resource.to_yaml(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_service_as_an_api_server_gives_it() {
    let object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "orders", "namespace": "shop", "uid": "u", "resourceVersion": "12", "generation": 3,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": { "app": "orders" },
            "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": "{}",
                "weft.mesh/service-accounts": "batch"
            },
            "managedFields": [{ "manager": "kubectl" }]
        },
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"],
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack", "internalTrafficPolicy": "Local",
            "externalTrafficPolicy": "Cluster", "allocateLoadBalancerNodePorts": true, "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 10800 } }, "trafficDistribution": "PreferClose",
            "publishNotReadyAddresses": true, "healthCheckNodePort": 30000, "somethingNew": [1],
            "selector": { "app": "orders" },
            "ports": [
                { "name": "http", "protocol": "TCP", "port": 80, "targetPort": "web", "nodePort": 30080 },
                { "name": "dns", "protocol": "UDP", "port": 53, "targetPort": 53 },
                { "name": "db", "port": 5432, "targetPort": 5432, "appProtocol": "example.com/own" },
                { "name": "tls", "port": 443, "appProtocol": "https" }
            ]
        },
        "status": { "loadBalancer": {} }
    });
    let found = read(Subject::Kind(Kind::Service), &object);
    assert_eq!((found.key.to_string(), found.generation, &*found.resource_version), ("shop/orders".into(), 3, "12"));
    let Reading::Resource(Resource::Service(service)) = found.reading else { panic!("{:?}", found.reading) };
    assert_eq!(service.spec.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [80, 5432, 443], "no UDP");
    assert_eq!(service.spec.ports[1].app_protocol, None, "a word of somebody else");
    assert_eq!(service.spec.ports[2].app_protocol, Some(AppProtocol::Tcp), "its own TLS passes through");
    assert_eq!(service.spec.cluster_ips, ["10.96.0.7", "fd00::7"]);
    assert_eq!(service.spec.selector["app"], "orders");
    assert_eq!(service.metadata.annotations.len(), 1, "only ours");
}

#[test]
fn what_is_none_of_the_meshs_business_is_left_out() {
    let metadata = json!({ "name": "x", "namespace": "shop" });
    for (kind, object) in [
        (Kind::Service, json!({ "spec": { "type": "ExternalName", "externalName": "example.com" } })),
        (Kind::Service, json!({ "spec": { "ports": [{ "port": 53, "protocol": "UDP" }] } })),
        (Kind::Service, json!({ "spec": { "clusterIP": "None" } })),
        (Kind::EndpointSlice, json!({ "addressType": "FQDN", "ports": [{ "port": 1 }], "endpoints": [] })),
        (Kind::EndpointSlice, json!({ "addressType": "IPv4", "ports": null, "endpoints": null })),
        (Kind::EndpointSlice, json!({ "addressType": "IPv4", "ports": [{ "name": "", "protocol": "TCP" }] })),
        (Kind::HttpRoute, json!({ "spec": { "parentRefs": [{ "name": "gateway" }], "rules": [{ "odd": 1 }] } })),
        (Kind::HttpRoute, json!({ "spec": { "parentRefs": [{ "kind": "Service", "group": "x", "name": "y" }] } })),
        (Kind::GrpcRoute, json!({ "spec": {} })),
    ] {
        let mut object = object;
        object["metadata"] = metadata.clone();
        assert_eq!(read(Subject::Kind(kind), &object).reading, Reading::Ignored, "{object}");
    }
}

#[test]
fn a_slice_as_an_api_server_gives_it() {
    let object = json!({
        "metadata": {
            "name": "orders-x7f2k", "namespace": "shop", "generateName": "orders-", "ownerReferences": [{ "uid": "u" }],
            "labels": {
                "kubernetes.io/service-name": "orders",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "service.kubernetes.io/headless": ""
            },
            "annotations": { "endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z" }
        },
        "addressType": "IPv4",
        "ports": [
            { "name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "http" },
            { "name": "dns", "port": 53, "protocol": "UDP" }
        ],
        "endpoints": [
            {
                "addresses": ["10.0.0.1"], "nodeName": "node-1", "zone": "a", "hints": { "forZones": [{ "name": "a" }] },
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "targetRef": { "kind": "Pod", "name": "orders-1", "namespace": "shop", "uid": "u" }
            },
            { "addresses": ["10.0.0.2"], "conditions": { "ready": null }, "deprecatedTopology": { "x": "y" } },
            { "addresses": [] }
        ]
    });
    let text = yaml(Subject::Kind(Kind::EndpointSlice), object);
    assert!(text.contains("- 10.0.0.1") && text.contains("- 10.0.0.2") && text.contains("zone: a"), "{text}");
    assert!(!text.contains("dns") && !text.contains("headless") && !text.contains("trigger"), "{text}");
}

#[test]
fn a_route_with_defaults_filled_in_and_a_gateway_among_its_parents() {
    let object = json!({
        "metadata": { "name": "orders", "namespace": "shop", "generation": 2, "managedFields": [] },
        "spec": {
            "parentRefs": [
                { "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge" },
                { "group": "", "kind": "Service", "name": "orders", "namespace": "shop", "port": 80 }
            ],
            "rules": [{
                "matches": [{ "path": { "type": "PathPrefix", "value": "/" } }],
                "backendRefs": [{ "group": "", "kind": "Service", "name": "orders-v1", "port": 80, "weight": 1 }]
            }]
        },
        "status": { "parents": [{ "controllerName": "example.com/other" }] }
    });
    let found = read(Subject::Kind(Kind::HttpRoute), &object);
    assert_eq!(found.parents.len(), 1);
    assert_eq!(found.parents[0]["namespace"], "shop", "the status repeats it as written");
    assert_eq!(found.status, [json!({ "controllerName": "example.com/other" })]);
    let Reading::Resource(Resource::HttpRoute(route)) = found.reading else { panic!("{:?}", found.reading) };
    assert_eq!(route.spec.parent_refs.len(), 1);
}

#[test]
fn our_own_kinds_are_read_strictly() {
    let object = json!({
        "metadata": {
            "name": "orders", "namespace": "shop",
            "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{}" }
        },
        "spec": { "targetRefs": [{ "kind": "Service", "name": "orders" }], "timeouts": { "reqest": "1s" } }
    });
    let Reading::Invalid(findings) = read(Subject::Kind(Kind::TrafficPolicy), &object).reading else { panic!() };
    assert_eq!(findings[0].field, "spec.timeouts.reqest");
    let mesh = json!({ "metadata": { "name": "default" }, "spec": { "mtls": { "mode": "permissive" } }, "status": {} });
    assert!(yaml(Subject::Kind(Kind::Mesh), mesh).contains("permissive"));
}

#[test]
fn pods() {
    let pod = |spec: Value, status: Value| {
        let object =
            json!({ "metadata": { "name": "p", "labels": { "app": "orders" } }, "spec": spec, "status": status });
        match read(Subject::Pod, &object).reading {
            Reading::Pod(pod) => pod,
            other => panic!("{other:?}"),
        }
    };
    let running = json!({ "phase": "Running", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }] });
    let plain = pod(json!({ "serviceAccountName": "orders", "containers": [{ "name": "app" }] }), running.clone());
    assert_eq!((plain.inbound, plain.ips.len(), &*plain.account), (None, 2, "orders"));
    let native = json!({ "initContainers": [{ "name": "weft-sidecar", "restartPolicy": "Always" }], "containers": [] });
    assert_eq!(pod(native.clone(), running.clone()).inbound, Some(15006));
    assert_eq!(pod(native.clone(), json!({})).ips, [] as [IpAddr; 0], "not yet");
    assert_eq!(
        pod(native.clone(), json!({ "phase": "Succeeded", "podIPs": [{ "ip": "10.0.0.1" }] })).ips,
        [] as [IpAddr; 0]
    );
    let mut node = native;
    node["hostNetwork"] = true.into();
    assert_eq!(pod(node, running.clone()).ips, [] as [IpAddr; 0], "the node's, not its own");
    let ports = json!([{ "name": "weft-inbound", "containerPort": 20006 }]);
    let other = json!({ "containers": [{ "name": "weft-sidecar", "ports": ports }] });
    assert_eq!(pod(other, running).inbound, Some(20006));
}
