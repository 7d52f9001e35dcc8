//! What holds for every input.

use proptest::prelude::*;
use weft_model::{Kind, KnownServices, Period, Resource, ResourceSet, parse, reference, validate};

/// The examples, cut into lines.
fn lines() -> Vec<&'static str> {
    Kind::ALL.into_iter().flat_map(|kind| reference::example(kind).lines()).collect()
}

/// Every resource of the examples, and some that conflict with them.
fn resources() -> Vec<Resource> {
    let conflicts = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: conflict, namespace: shop}
spec:
  parentRefs: [{kind: Service, name: orders}]
  rules: [{backendRefs: [{name: nobody, port: 1}]}, {backendRefs: [{name: orders, port: 1}]}]
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {name: overlap, namespace: shop}
spec: {targetRefs: [{kind: Service, name: orders}], timeouts: {request: 1s, connect: 2s}, loadBalancer: {sourceIp: {}}}
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {name: another, namespace: shop}
spec: {targetRefs: [{kind: Service, name: orders}, {kind: HTTPRoute, name: gone}], timeouts: {request: 3s}}
";
    let texts = Kind::ALL.into_iter().map(reference::example).chain([conflicts]);
    texts.flat_map(|text| parse("f", text.as_bytes(), "default").documents).map(|document| document.resource).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let parsed = parse("f", &bytes, "default");
        for finding in parsed.errors {
            prop_assert!(finding.line > 0 && finding.column > 0, "{finding}");
        }
    }

    #[test]
    fn any_text_of_yaml_is_read_or_refused(text in "[-a-z:?&*<!|>'\"{}\\[\\], \n#%@`~0-9\t]{0,200}") {
        parse("f", text.as_bytes(), "default");
    }

    /// Lines of the examples, moved, left out, doubled and spoilt.
    #[test]
    fn spoilt_resources_are_read_or_refused(
        picks in prop::collection::vec((any::<prop::sample::Index>(), 0..6usize, any::<prop::sample::Index>()), 1..60),
    ) {
        let lines = lines();
        let mut text = String::new();
        for (line, how, place) in picks {
            let mut line = (*line.get(&lines)).to_owned();
            let at = line.floor_char_boundary(place.index(line.len() + 1));
            match how {
                0 => line.truncate(at),
                1 => line.insert(at, ' '),
                2 => line.insert(at, '['),
                3 => line.insert_str(at, ": "),
                _ => {}
            }
            text.push_str(&line);
            text.push('\n');
        }
        let parsed = parse("f", text.as_bytes(), "default");
        for document in parsed.documents {
            let yaml = document.resource.to_yaml();
            let back = parse("f", yaml.as_bytes(), "default");
            prop_assert!(back.errors.is_empty(), "{yaml}\n{:?}", back.errors);
            prop_assert_eq!(&back.documents[0].resource, &document.resource);
        }
    }

    /// One byte of an example changed: never a panic, and what is still accepted comes back the same.
    #[test]
    fn one_byte_changed(kind in prop::sample::select(Kind::ALL.to_vec()), place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = reference::example(kind).as_bytes().to_vec();
        let at = place.index(bytes.len());
        bytes[at] = byte;
        for document in parse("f", &bytes, "default").documents {
            let yaml = document.resource.to_yaml();
            let back = parse("f", yaml.as_bytes(), "default");
            prop_assert!(back.errors.is_empty(), "{yaml}\n{:?}", back.errors);
            prop_assert_eq!(&back.documents[0].resource, &document.resource);
        }
    }

    /// Values of text come back as they were, whatever they look like to YAML.
    #[test]
    fn text_survives_the_canonical_form(value in "\\PC{0,40}", version in "[0-9a-z.]{1,8}") {
        let text = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "a", "annotations": {"note": value, "version": version}},
            "spec": {"ports": [{"port": 80}]},
        });
        let parsed = parse("f", text.to_string().as_bytes(), "default");
        prop_assert!(parsed.errors.is_empty(), "{:?}", parsed.errors);
        let resource = &parsed.documents[0].resource;
        prop_assert_eq!(&resource.metadata().annotations["note"], &value);
        let back = parse("f", resource.to_yaml().as_bytes(), "default");
        prop_assert!(back.errors.is_empty(), "{:?}\n{}", back.errors, resource.to_yaml());
        prop_assert_eq!(&back.documents[0].resource, resource);
    }

    #[test]
    fn the_order_of_resources_makes_no_difference(resources in Just(resources()).prop_shuffle()) {
        let expected = validate(&self::resources().into_iter().collect(), &KnownServices::new());
        prop_assert!(expected.len() > 5);
        let set: ResourceSet = resources.into_iter().collect();
        prop_assert_eq!(validate(&set, &KnownServices::new()), expected);
    }

    #[test]
    fn durations_come_back(nanoseconds in 0..u64::MAX) {
        let period = Period(std::time::Duration::from_nanos(nanoseconds));
        prop_assert_eq!(Period::parse(&period.to_string()), Ok(period));
    }

    #[test]
    fn any_text_is_a_duration_or_none(text in "[0-9a-z. -]{0,24}") {
        if let Ok(period) = Period::parse(&text) {
            prop_assert_eq!(Period::parse(&period.to_string()), Ok(period));
        }
    }
}

/// Line breaks to YAML 1.1, text to YAML 1.2.
#[test]
fn separators_survive_the_canonical_form() {
    for value in ["\u{2028}A", "A\u{2029}B", "\u{85}A", "A\u{85}"] {
        let text = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "a", "annotations": {"note": value}},
            "spec": {"ports": [{"port": 80}]},
        });
        let parsed = parse("f", text.to_string().as_bytes(), "default");
        let resource = &parsed.documents[0].resource;
        let back = parse("f", resource.to_yaml().as_bytes(), "default");
        assert!(back.errors.is_empty(), "{value:?}: {:?}", back.errors);
        assert_eq!(&back.documents[0].resource, resource, "{value:?}");
    }
}
