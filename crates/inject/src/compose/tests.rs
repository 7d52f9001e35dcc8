//! A shop → its overlay and what is said about it; and what is refused.

use std::collections::BTreeMap;

use super::{Image, InjectError, Options, Plan, Project, overlay, plan, text};

const SHOP: &str = r#"
name: shop
services:
  frontend:
    image: shop/frontend
    ports: ["8080:8080"]
    environment: [ "NO_PROXY=metadata.internal" ]
    networks: { default: { aliases: [www] } }
    links: ["orders_api:api"]
  orders_api:
    build: .
    command: ["serve", "--greeting", "$$HELLO"]
    labels: { weft.mesh/service: orders, weft.mesh/version: v2, weft.mesh/ports: "7000/http" }
    read_only: true
    user: "1000"
    stop_grace_period: 30s
    healthcheck: { test: [CMD, /orders, health] }
  cache:
    image: redis
    expose: ["6379", "7000/udp"]
  migrate:
    image: shop/orders
    entrypoint: [/migrate]
    restart: "no"
  monitor:
    image: monitor
    network_mode: host
  legacy:
    image: legacy
    labels: { weft.mesh/inject: "false" }
"#;

fn shop_images() -> BTreeMap<String, Result<Image, String>> {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let image = |entrypoint, command, user: &str| Image {
        entrypoint: words(entrypoint),
        command: words(command),
        user: user.to_owned(),
        ..Image::default()
    };
    let redis = Image {
        exposed: vec!["6379/tcp".to_owned()],
        stop_signal: Some("SIGINT".to_owned()),
        ..image("docker-entrypoint.sh", "redis-server", "")
    };
    let images = [
        ("frontend", image("/frontend", "--listen :8080 --price 5$$", "nonroot")),
        ("orders_api", Image { healthcheck: true, ..image("/orders", "serve", "") }),
        ("cache", redis),
        ("migrate", image("/orders", "serve", "")),
    ];
    images.into_iter().map(|(name, image)| (name.to_owned(), Ok(image))).collect()
}

fn options() -> Options {
    Options {
        namespace: "default".to_owned(),
        only: Vec::new(),
        exclude: Vec::new(),
        transparent: false,
        separate: false,
        image_prefix: String::new(),
        version: "1.2.3".to_owned(),
        control_plane_user: "1000:1000".to_owned(),
        grpc_port: 15010,
        http_port: 15080,
        command: "weft inject compose".to_owned(),
        files: vec!["compose.yaml".to_owned()],
        data: "./.weft".to_owned(),
    }
}

fn planned(file: &str, options: &Options) -> Result<Plan, InjectError> {
    plan(&Project::read(file, false).unwrap(), &shop_images(), options)
}

#[test]
fn a_shop() {
    let plan = planned(SHOP, &options()).unwrap();
    insta::assert_snapshot!("shop_overlay", overlay(&plan, &options()));
    insta::assert_snapshot!("shop_text", text(&plan));
}

#[test]
fn a_shop_with_redirect_rules() {
    let options = Options { transparent: true, command: "weft inject compose --transparent".to_owned(), ..options() };
    let plan = planned(SHOP, &options).unwrap();
    insta::assert_snapshot!("transparent_overlay", overlay(&plan, &options));
    insta::assert_snapshot!("transparent_text", text(&plan));
}

const BESIDE: &str = r#"
services:
  frontend:
    image: shop/frontend
    ports: ["8080:8080"]
    hostname: front
    restart: always
    environment: { WEFT_EXCLUDE_INBOUND_PORTS: "9000", WEFT_LOG: debug, OTHER: x }
    networks: { default: { aliases: [www], ipv4_address: 10.1.1.1 }, back: null }
    extra_hosts: ["old.example=10.2.2.2"]
    links: ["orders:api", migrate]
    sysctls: { net.core.somaxconn: "1024", kernel.shmmax: "9" }
    depends_on: { migrate: { condition: service_completed_successfully } }
  orders:
    image: shop/orders
    profiles: [more]
    labels: { weft.mesh/ports: "7000/http" }
    stop_grace_period: 30s
  migrate: { image: shop/orders, entrypoint: [/migrate] }
networks: { back: {} }
"#;

#[test]
fn sidecars_in_containers_of_their_own() {
    let separate = Options { separate: true, command: "weft inject compose --separate".to_owned(), ..options() };
    let plan = planned(BESIDE, &separate).unwrap();
    insta::assert_snapshot!("separate_overlay", overlay(&plan, &separate));
    insta::assert_snapshot!("separate_text", text(&plan));
    let both = Options { transparent: true, ..separate };
    let plan = planned(BESIDE, &both).unwrap();
    insta::assert_snapshot!("separate_transparent_overlay", overlay(&plan, &both));
}

#[test]
fn what_cannot_be_beside_its_sidecar() {
    let separate = Options { separate: true, ..options() };
    for (file, parts) in [
        ("frontend: { image: x, scale: 2 }", &["services.frontend.scale", "2 containers", "--separate"][..]),
        ("frontend: { image: x }, frontend-weft-net: { image: x }", &["services.frontend:", "`frontend-weft-net`"]),
        (
            "frontend: { image: x }, guest: { image: x, network_mode: 'service:frontend' }",
            &["services.guest.network_mode", "service:frontend"],
        ),
    ] {
        let error = planned(&format!("services: {{ {file} }}"), &separate).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{file}: {error}");
    }
    // Nothing need be known of an image that nobody changes.
    let plan = planned("services: { other: { image: x, expose: [80] } }", &separate).unwrap();
    assert_eq!(
        plan.meshed[0].notes,
        ["nothing is known about its image: the ports it exposes are taken from the file alone"]
    );
}

#[test]
fn rules_cost_the_application_no_privilege_and_give_it_none() {
    let transparent = Options { transparent: true, ..options() };
    let planned = |service: &str| {
        let file = format!("services: {{ frontend: {{ {service} }} }}");
        planned(&file, &transparent).map_err(|error| error.to_string())
    };
    let capabilities = |service: &str| {
        let plan = planned(&format!("image: x, {service}")).unwrap();
        let document: serde_json::Value = serde_yaml::from_str(&overlay(&plan, &transparent)).unwrap();
        let service = &document["services"]["frontend"];
        assert_eq!(service["user"], "0:0");
        let names = |value: &serde_json::Value| value.to_string().replace(['[', ']', '"'], "");
        let dropped = service["environment"].get("WEFT_APP_DROP").map(names).unwrap_or_default();
        assert_eq!(names(&service["cap_add"]), dropped, "all that is added is taken away again");
        dropped
    };
    assert_eq!(capabilities(""), "NET_ADMIN");
    assert_eq!(capabilities("cap_drop: [all]"), "KILL,SETGID,SETPCAP,SETUID,NET_ADMIN");
    assert_eq!(capabilities("cap_drop: [CAP_KILL, CHOWN]"), "KILL,NET_ADMIN");
    assert_eq!(capabilities("cap_drop: [ALL], cap_add: [SETUID, CAP_NET_ADMIN]"), "KILL,SETGID,SETPCAP");
    assert_eq!(capabilities("privileged: true"), "");
    assert!(
        planned("image: x, cap_add: [NET_ADMIN]").unwrap().meshed[0]
            .notes
            .iter()
            .any(|note| note.contains("NET_ADMIN"))
    );
    let file = "services: { other: { image: x, entrypoint: [y] } }";
    let error = plan(&Project::read(file, false).unwrap(), &shop_images(), &transparent).unwrap_err().to_string();
    assert!(error.contains("services.other: as whom it runs is not known") && error.contains("`user`"), "{error}");
}

#[test]
fn services_without_a_network_in_common_get_one() {
    let file = "services: { frontend: { image: f, expose: [80], networks: [front] }, cache: { image: c, networks: [back] }, \
                migrate: { image: m, networks: [front, back] } }";
    let plan = planned(file, &options()).unwrap();
    assert!(plan.own_network);
    let calls = |name: &str| {
        let meshed = plan.meshed.iter().find(|meshed| meshed.service == name).unwrap();
        meshed.neighbours.iter().map(|other| other.mesh.as_str()).collect::<Vec<_>>()
    };
    // Who was out of reach stays so.
    assert_eq!((calls("frontend"), calls("cache")), (vec![], vec![]));
    assert_eq!(calls("migrate"), ["frontend", "cache"]);
    let document: serde_json::Value = serde_yaml::from_str(&overlay(&plan, &options())).unwrap();
    assert_eq!(document["networks"], serde_json::json!({ "weft-mesh": {} }));
    let joined =
        |name: &str| document["services"][name]["networks"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(joined("frontend"), ["front", "weft-mesh"]);
    assert_eq!(joined("weft-control-plane"), ["weft-mesh"]);
}

#[test]
fn the_control_plane_meets_the_services_where_all_are() {
    let file = "services: { frontend: { image: f, networks: [front, all] }, cache: { image: c, networks: [all] } }\n\
                networks: { front: {}, all: { internal: true } }";
    let plan = planned(file, &options()).unwrap();
    let networks: Vec<&str> = plan.control_plane_networks.iter().map(String::as_str).collect();
    assert!(!plan.own_network);
    // An internal network publishes no ports.
    assert_eq!(networks, ["all", "default"]);
}

#[test]
fn a_neighbour_on_the_same_port_is_called_by_the_proxy() {
    let file = "services: { frontend: { image: f, expose: [80], links: ['cache:store'] }, cache: { image: c, expose: [80] }, \
                migrate: { image: m } }";
    let plan = planned(file, &options()).unwrap();
    let of = |name: &str| plan.meshed.iter().find(|meshed| meshed.service == name).unwrap();
    let calls = |name: &str| of(name).neighbours.iter().map(|other| other.mesh.as_str()).collect::<Vec<_>>();
    // Else the sidecar would hold the port on which the application wants to listen.
    assert_eq!((calls("frontend"), calls("migrate")), (vec![], vec!["frontend", "cache"]));
    assert!(of("frontend").notes.iter().any(|note| note.contains("cache") && note.contains("HTTP_PROXY")));
    assert!(of("frontend").no_proxy.contains(&"store".to_owned()), "a name that the mesh does not know");
}

#[test]
fn what_an_image_exposes_is_its_own_entrypoints() {
    let ports = |entrypoint: &str| {
        let plan = planned(&format!("services: {{ cache: {{ image: redis{entrypoint} }} }}"), &options()).unwrap();
        plan.meshed[0].ports.iter().map(|port| port.port).collect::<Vec<_>>()
    };
    assert_eq!((ports(""), ports(", entrypoint: [redis-cli]")), (vec![6379], vec![]));
}

#[test]
fn what_is_chosen() {
    let chosen = |only: &[&str], exclude: &[&str]| {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let options = Options { only: owned(only), exclude: owned(exclude), ..options() };
        let names = |plan: Plan| plan.meshed.iter().map(|meshed| meshed.service.clone()).collect::<Vec<_>>().join(" ");
        planned(SHOP, &options).map(names).map_err(|error| error.to_string())
    };
    assert_eq!(chosen(&[], &[]).unwrap(), "frontend orders_api cache migrate");
    assert_eq!(chosen(&["frontend", "cache"], &[]).unwrap(), "frontend cache");
    assert_eq!(chosen(&[], &["migrate", "cache"]).unwrap(), "frontend orders_api");
    assert!(
        chosen(&["fronted"], &[])
            .unwrap_err()
            .starts_with("services.fronted: there is no such service; there are frontend")
    );
    assert!(chosen(&["legacy"], &[]).unwrap_err().contains("there is none to put into the mesh"));
}

#[test]
fn what_is_refused_says_where_and_what_to_do() {
    let with = |service: &str| {
        format!("services: {{ frontend: {{ image: x, {service} }}, orders: {{ image: y, entrypoint: [z] }} }}")
    };
    for (service, parts) in [
        ("labels: { weft.mesh/port: '80' }", &["services.frontend.labels.weft.mesh/port", "no such label"][..]),
        ("labels: { weft.mesh/inject: 'no' }", &["weft.mesh/inject", "`no` is neither"]),
        ("labels: { weft.mesh/service: My_Shop }", &["weft.mesh/service", "`My_Shop` is not a name"]),
        ("labels: { weft.mesh/ports: 80/smtp }", &["weft.mesh/ports", "80/smtp", "no such protocol"]),
        (
            "labels: { weft.mesh/service: orders }, expose: [15006]",
            &["services.frontend.ports", "15006 is the sidecar's"],
        ),
        ("entrypoint: [], command: []", &["services.frontend", "neither the file nor the image has a command"]),
    ] {
        let error = planned(&with(service), &options()).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{service}: {error}");
    }
    let unknown = "services: { other: { image: x, command: [serve] } }";
    let error = planned(unknown, &options()).unwrap_err().to_string();
    assert!(error.starts_with("services.other: its entrypoint is not known") && error.contains("--exclude"), "{error}");
    let twins = "services: { a_b: { entrypoint: [x] }, a.b: { entrypoint: [x] } }";
    let error = planned(twins, &options()).unwrap_err().to_string();
    assert!(error.contains("would both be `a-b`") && error.contains("weft.mesh/service"), "{error}");
}

#[test]
fn an_address_stays_when_others_come() {
    let addresses = |file: &str| {
        let plan = planned(file, &options()).unwrap();
        let neighbours = plan.meshed.into_iter().find(|meshed| meshed.service == "migrate").unwrap().neighbours;
        neighbours.into_iter().map(|other| (other.mesh, other.address)).collect::<BTreeMap<_, _>>()
    };
    let few = addresses("services: { migrate: { image: x }, cache: { image: x } }");
    let more =
        addresses("services: { frontend: { image: x, expose: [80] }, migrate: { image: x }, cache: { image: x } }");
    assert_eq!(few["cache"], more["cache"]);
    assert_ne!(more["cache"], more["frontend"]);
}
