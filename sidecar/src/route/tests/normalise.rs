//! One normalisation: what it makes, what it refuses, and that it makes one of all spellings.

use std::borrow::Cow;

use proptest::prelude::*;

use crate::route::normalise::{Authority, Host, HostError, Target, TargetError};

#[test]
fn paths() {
    for (raw, normal) in [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a/b/", "/a/b/"),
        ("//a///b//", "/a/b/"),
        ("/./a/./b/.", "/a/b/"),
        ("/a/../b", "/b"),
        ("/a/b/..", "/a/"),
        ("/..", "/"),
        ("/../../a", "/a"),
        ("/a/..//..", "/"),
        ("/%2e%2E/a", "/a"),
        ("/a/%2e%2e/b", "/b"),
        ("/.%2e/b", "/b"),
        ("/%41%7a%7E%5f%2D", "/Az~_-"),
        ("/%c3%a9", "/%C3%A9"),
        ("/é", "/%C3%A9"),
        ("/%20", "/%20"),
        ("/%252e%252e/", "/%252e%252e/"),
        ("/a{b}|c\"<>^`", "/a%7Bb%7D%7Cc%22%3C%3E%5E%60"),
        ("/...", "/..."),
        ("/.a/..b/", "/.a/..b/"),
        ("/a;x=1/b;y", "/a;x=1/b;y"),
        ("/a:b@c!$&'()*+,;=", "/a:b@c!$&'()*+,;="),
        ("/%3b%3F%23%25", "/%3B%3F%23%25"),
    ] {
        let target = Target::parse(raw).unwrap_or_else(|error| panic!("{raw}: {error}"));
        assert_eq!(target.path, normal, "{raw}");
        assert_eq!(target.query, None, "{raw}");
    }
}

#[test]
fn refused_targets() {
    for (raw, why) in [
        ("", TargetError::NotOrigin),
        ("*", TargetError::NotOrigin),
        ("a/b", TargetError::NotOrigin),
        ("?a=1", TargetError::NotOrigin),
        ("http://orders/a", TargetError::NotOrigin),
        ("/a%2fb", TargetError::EscapedSlash),
        ("/a%2Fb", TargetError::EscapedSlash),
        ("/a%5cb", TargetError::Backslash),
        ("/a%5Cb", TargetError::Backslash),
        ("/a\\b", TargetError::Backslash),
        ("/a%00b", TargetError::Nul),
        ("/a\0b", TargetError::Nul),
        ("/a#b", TargetError::Fragment),
        ("/a?b#c", TargetError::Fragment),
        ("/a b", TargetError::Control),
        ("/a\tb", TargetError::Control),
        ("/a\r\nb", TargetError::Control),
        ("/a\x7fb", TargetError::Control),
        ("/a?b c", TargetError::Control),
        ("/a?b\0c", TargetError::Control),
        ("/%", TargetError::Percent),
        ("/%4", TargetError::Percent),
        ("/%4g", TargetError::Percent),
        ("/%+1", TargetError::Percent),
        ("/a/..;/b", TargetError::DotParameter),
        ("/a/.;x=1/b", TargetError::DotParameter),
        ("/a/%2e%2e;/b", TargetError::DotParameter),
    ] {
        assert_eq!(Target::parse(raw), Err(why), "{raw:?}");
    }
}

#[test]
fn queries_stay_as_they_are() {
    let target = Target::parse("/a/../b?x=/../y//z&%41=\\?").expect("a path");
    assert_eq!((&*target.path, target.query), ("/b", Some("x=/../y//z&%41=\\?")));
    assert_eq!(target.path_and_query(), "/b?x=/../y//z&%41=\\?");
    assert_eq!(Target::parse("/a?").expect("a path").path_and_query(), "/a?");
}

#[test]
fn what_is_normal_is_not_copied() {
    for path in ["/", "/orders/7/items", "/a.b/c..d;e=1", "/a/b/", "/a%20b%C3%A9", "/.well-known/..x"] {
        assert!(matches!(Target::parse(path).expect("a path").path, Cow::Borrowed(_)), "{path}");
    }
}

#[test]
fn hosts() {
    for (raw, host, port) in [
        ("orders", "orders", None),
        ("Orders.DEFAULT:80", "orders.default", Some(80)),
        ("orders.default.", "orders.default", None),
        ("orders.default.:8080", "orders.default", Some(8080)),
        ("a_b-c.d", "a_b-c.d", None),
        ("10.0.0.1:65535", "10.0.0.1", Some(65535)),
        ("[::1]", "[::1]", None),
        ("[0:0:0:0:0:0:0:1]:80", "[::1]", Some(80)),
        ("1.example", "1.example", None),
        ("0xzz", "0xzz", None),
    ] {
        let authority = Authority::parse(raw).unwrap_or_else(|error| panic!("{raw}: {error}"));
        assert_eq!((authority.host(), authority.port()), (host, port), "{raw}");
        let shown = authority.to_string();
        assert_eq!(Authority::parse(&shown).as_ref(), Ok(&authority), "{shown}");
        assert_eq!(authority.clone().into_owned(), authority);
    }
    assert!(matches!(Authority::parse("10.0.0.1").expect("a host").kind(), Host::Ip(ip) if ip.is_ipv4()));
    assert!(matches!(Authority::parse("[::1]").expect("a host").kind(), Host::Ip(ip) if ip.is_ipv6()));
}

#[test]
fn refused_hosts() {
    let (long_label, long_name) = ("a".repeat(64), "abc.".repeat(64) + "d");
    for (raw, why) in [
        ("", HostError::Empty),
        (".", HostError::Empty),
        (":80", HostError::Empty),
        ("user@orders", HostError::UserInfo),
        ("user:pw@orders:80", HostError::UserInfo),
        ("orders..default", HostError::Invalid),
        (".orders", HostError::Invalid),
        ("orders..", HostError::Invalid),
        ("orders default", HostError::Invalid),
        ("orders/default", HostError::Invalid),
        ("orders%2edefault", HostError::Invalid),
        ("örders", HostError::Invalid),
        ("orders,evil", HostError::Invalid),
        ("a\0b", HostError::Invalid),
        ("127.1", HostError::Invalid),
        ("2130706433", HostError::Invalid),
        ("0x7f.0.0.0x1", HostError::Invalid),
        ("1.2.3.4.5", HostError::Invalid),
        ("010.0.0.1", HostError::Invalid),
        ("[::1", HostError::Invalid),
        ("[::1]x", HostError::Invalid),
        ("[fe80::1%25eth0]", HostError::Invalid),
        ("[10.0.0.1]", HostError::Invalid),
        ("orders:", HostError::Port),
        ("orders:0", HostError::Port),
        ("orders:65536", HostError::Port),
        ("orders:+80", HostError::Port),
        ("orders:80:80", HostError::Port),
        ("::1", HostError::Port),
        ("[::1]:", HostError::Port),
        (&long_label, HostError::TooLong),
        (&long_name, HostError::TooLong),
    ] {
        assert_eq!(Authority::parse(raw), Err(why), "{raw:?}");
    }
}

/// One segment that stays as it is, and the ways to spell it.
fn segment() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_~-][a-zA-Z0-9._~-]{0,6}"
}

/// A path of segments, and another spelling of it.
fn spelled() -> impl Strategy<Value = (String, String)> {
    let part = (segment(), 0u8..5, any::<u32>());
    prop::collection::vec(part, 1..6).prop_map(|parts| {
        let (mut plain, mut other) = (String::new(), String::new());
        for (segment, detour, escapes) in parts {
            plain.push('/');
            plain.push_str(&segment);
            other.push_str(["/", "//", "/./", "/x/../", "/%2E/y/%2e%2E//"][usize::from(detour)]);
            for (at, byte) in segment.bytes().enumerate() {
                match escapes >> (2 * at) & 3 {
                    0 => other.push_str(&format!("%{byte:02x}")),
                    1 => other.push_str(&format!("%{byte:02X}")),
                    _ => other.push(char::from(byte)),
                }
            }
        }
        (plain, other)
    })
}

proptest! {
    #[test]
    fn all_spellings_are_one_path((plain, other) in spelled()) {
        let target = Target::parse(&plain).expect("plain");
        prop_assert_eq!(&target.path, &plain);
        prop_assert_eq!(Target::parse(&other).expect("plain").path, plain);
    }

    #[test]
    fn normal_is_normal(raw in "/[a-c./%25eEfF;\\\\#? \u{e9}{}~0-9]{0,24}") {
        let Ok(target) = Target::parse(&raw) else { return Ok(()) };
        let sent = target.path_and_query().into_owned();
        let again = Target::parse(&sent).expect("what is sent on can be read");
        prop_assert!(matches!(again.path, Cow::Borrowed(_)), "{raw} {sent}");
        prop_assert_eq!(&again, &target);
        let path = &*target.path;
        prop_assert!(path.starts_with('/') && !path.contains("//"));
        prop_assert!(path.split('/').all(|segment| segment != "." && segment != ".."));
        prop_assert!(!path.bytes().any(|byte| byte <= b' ' || byte >= 0x7f || matches!(byte, b'\\' | b'#' | b'?')));
        let lower = path.to_ascii_lowercase();
        prop_assert!(!["%2f", "%5c", "%00", "%2e"].iter().any(|bad| lower.contains(bad)), "{path}");
    }

    #[test]
    fn nothing_makes_it_panic(raw in any::<String>()) {
        let _ = (Target::parse(&raw), Authority::parse(&raw));
    }

    #[test]
    fn hosts_stay_as_they_come_out(raw in "[a-zA-Z0-9.:\\[\\]x_-]{0,20}") {
        let Ok(authority) = Authority::parse(&raw) else { return Ok(()) };
        let shown = authority.to_string();
        prop_assert_eq!(Authority::parse(&shown), Ok(authority.clone()));
        prop_assert!(!authority.host().bytes().any(|byte| byte.is_ascii_uppercase()) && !authority.host().ends_with('.'));
    }
}
