//! Rewritten paths and redirects.

use http::StatusCode;
use proptest::prelude::*;
use weft_xds::resource::{PathMatch, PathRewrite, Redirect};

use super::{fields, head};
use crate::route::{
    Authority, Target,
    matches::path_passes,
    rewrite::{redirect, rewrite},
};

#[test]
fn prefixes_and_whole_paths() {
    let separated = |prefix: &str| PathMatch::SeparatedPrefix(prefix.into());
    let prefix = |prefix: &str| PathMatch::Prefix(prefix.into());
    let to = |replacement: &str| PathRewrite::Prefix(replacement.into());
    for (matched, rule, path, expected) in [
        (separated("/foo"), to("/xyz"), "/foo/bar", "/xyz/bar"),
        (separated("/foo"), to("/xyz"), "/foo", "/xyz"),
        (separated("/foo"), to("/xyz"), "/foo/", "/xyz/"),
        (separated("/foo"), to("/xyz/"), "/foo/bar", "/xyz/bar"),
        (separated("/foo/"), to("/xyz"), "/foo/bar", "/xyz/bar"),
        (separated("/foo"), to("/"), "/foo/bar", "/bar"),
        (separated("/foo"), to("/"), "/foo", "/"),
        (separated("/foo"), to(""), "/foo", "/"),
        (separated("/"), to("/v2"), "/bar", "/v2/bar"),
        (separated("/"), to("/v2"), "/", "/v2/"),
        (prefix("/"), to("/v2"), "/bar", "/v2/bar"),
        (prefix("/foo"), to("/x"), "/foobar", "/xbar"),
        (prefix("/foo/"), to("/x"), "/foo/bar", "/x/bar"),
        (prefix("/foo/"), to("/x/"), "/foo/bar", "/x/bar"),
        (prefix("/a"), to("/x/"), "/a./b", "/x/b"),
        (PathMatch::Exact("/foo".into()), to("/x"), "/foo", "/x"),
        (separated("/foo"), PathRewrite::Full("/all".into()), "/foo/bar", "/all"),
        (separated("/foo"), PathRewrite::Full("all".into()), "/foo/bar", "/all"),
    ] {
        assert_eq!(rewrite(&rule, &matched, path, None), expected, "{matched:?} {rule:?} {path}");
        let with_query = rewrite(&rule, &matched, path, Some("a=/foo"));
        assert_eq!(with_query, format!("{expected}?a=/foo"), "{matched:?} {rule:?} {path}");
    }
}

#[test]
fn redirects() {
    let plain = Redirect { scheme: None, host: None, port: None, path: None, status: StatusCode::FOUND };
    let matched = PathMatch::SeparatedPrefix("/foo".into());
    let cases = [
        (plain.clone(), "http://orders.default:8080/foo/bar?q=1"),
        (Redirect { scheme: Some("https".into()), ..plain.clone() }, "https://orders.default/foo/bar?q=1"),
        (Redirect { host: Some("shop.example".into()), ..plain.clone() }, "http://shop.example:8080/foo/bar?q=1"),
        (Redirect { port: Some(80), ..plain.clone() }, "http://orders.default/foo/bar?q=1"),
        (
            Redirect { scheme: Some("https".into()), port: Some(8443), ..plain.clone() },
            "https://orders.default:8443/foo/bar?q=1",
        ),
        (
            Redirect { path: Some(PathRewrite::Prefix("/new".into())), ..plain.clone() },
            "http://orders.default:8080/new/bar?q=1",
        ),
        (Redirect { path: Some(PathRewrite::Full("/".into())), ..plain }, "http://orders.default:8080/?q=1"),
    ];
    let headers = fields(&[]);
    let authority = Authority::parse("orders.default:8080").expect("a host");
    for (rule, expected) in cases {
        let head = head("/foo/bar", Some("q=1"), &headers);
        let (status, location) = redirect(&rule, &matched, &head, &authority).expect("a location");
        assert_eq!((status, location.to_str().expect("text")), (StatusCode::FOUND, expected));
    }
}

proptest! {
    #[test]
    fn a_rewritten_path_is_still_normal(
        path in "(/[a-c.]{1,3}){0,4}/?", cut: prop::sample::Index, to in "(/[x-z]{1,3}){0,2}/?", separated: bool,
    ) {
        let raw = if path.is_empty() { "/".to_owned() } else { path };
        let path = Target::parse(&raw).expect("a path").path.into_owned();
        let prefix = path[..=cut.index(path.len())].into();
        let matched = if separated { PathMatch::SeparatedPrefix(prefix) } else { PathMatch::Prefix(prefix) };
        if path_passes(&matched, &path) {
            let new = rewrite(&PathRewrite::Prefix(to.into()), &matched, &path, None);
            prop_assert_eq!(&*Target::parse(&new).expect("a path").path, &*new);
        }
    }
}
