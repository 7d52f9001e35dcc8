//! What a request is and whom it asks for. Pure: its head in, [`Call`] or a refusal out.

use std::rc::Rc;

use http::{HeaderValue, Method, Uri, Version, header, request::Parts};

use super::{answer::Failed, headers, marks::Marks};
use crate::{
    http1::strict::MAX_FIELDS,
    listener::is_probe,
    reason::Reason,
    route::{Authority, Host, Target, host::MeshHost},
    worker::{Conn, Origin},
};

/// A host that was asked for. The next request of a connection mostly asks for the same.
#[derive(Debug)]
pub struct Named {
    /// The host.
    pub authority: Authority<'static>,
    /// Where it goes.
    pub whither: Whither,
    /// What the next hop's Host will say.
    pub sent: HeaderValue,
    /// The Host field says that already.
    pub kept: bool,
    /// As the request line had it.
    line: Option<Box<str>>,
    /// As the Host field had it.
    field: Option<HeaderValue>,
}

/// A request that may go on.
#[derive(Debug)]
pub struct Call {
    /// The host that it asks for, and where it goes.
    pub named: Rc<Named>,
    /// The request line's target, or HTTP/2's path.
    pub uri: Uri,
    /// It came as to a forward proxy: with a whole URI, or as CONNECT.
    pub to_proxy: bool,
    /// What its head has.
    pub has: Marks,
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whither {
    /// To a service: key of its virtual host. `certainly`: the name cannot be one of the outside world.
    Mesh {
        /// Canonical authority.
        key: Box<str>,
        /// By its form the name can only be a service's.
        certainly: bool,
    },
    /// To the outside world.
    Outside,
    /// To the application.
    App,
}

impl Call {
    /// Path and query, normalised.
    /// # Errors
    /// `bad_path`.
    pub fn target(&self) -> Result<Target<'_>, Failed> {
        let raw = match self.uri.path_and_query() {
            Some(raw) => raw.as_str(),
            None => "/",
        };
        Target::parse(raw).map_err(|error| Failed::told(Reason::BadPath, error.to_string()))
    }
}

/// Looks at a request's head.
/// # Errors
/// What is refused before anything is asked or decided: see the reasons of side `app` with status 4xx.
pub fn classify(conn: &Conn, parts: &mut Parts, has: Marks) -> Result<Call, Failed> {
    if let Some(reason) = conn.refuse.get() {
        return Err(reason.into());
    }
    if let Origin::Probe(port) = conn.origin
        && !is_probe(&conn.worker.path.shared.settings.transparent, port, conn.peer, parts)
    {
        return Err(Reason::PlaintextRefused.into());
    }
    if parts.headers.len() > MAX_FIELDS {
        return Err(Reason::HeadersTooLarge.into());
    }
    if parts.version == Version::HTTP_2 {
        http2_fields(parts, has)?;
    }
    if has.has(Marks::HOPS) && headers::hops(&parts.headers) >= headers::MAX_HOPS {
        return Err(Reason::LoopDetected.into());
    }
    if parts.method == Method::CONNECT && (parts.version == Version::HTTP_2 || conn.origin != Origin::Outbound) {
        return Err(Failed::told(Reason::ClientProtocolError, "CONNECT is taken at the outbound port, over HTTP/1.1"));
    }
    let uri = std::mem::take(&mut parts.uri);
    let named = named(conn, &uri, parts)?;
    let to_proxy = parts.method == Method::CONNECT || uri.scheme().is_some() && parts.version != Version::HTTP_2;
    Ok(Call { named, uri, to_proxy, has })
}

fn named(conn: &Conn, uri: &Uri, parts: &Parts) -> Result<Rc<Named>, Failed> {
    let mut fields = parts.headers.get_all(header::HOST).iter();
    let field = fields.next();
    let more = fields.next().is_some();
    let line = uri.authority().map(|line| line.as_str());
    let mut last = conn.named.borrow_mut();
    if let Some(same) = &*last
        && !more
        && same.line.as_deref() == line
        && same.field.as_ref() == field
    {
        return Ok(Rc::clone(same));
    }
    let authority = authority(uri, parts, &conn.origin)?;
    let whither = match &conn.origin {
        Origin::Inbound(_) | Origin::Probe(_) => Whither::App,
        // Where it was sent decides, whatever it calls itself.
        Origin::Fixed(key) | Origin::Original(key) => Whither::Mesh { key: key.clone(), certainly: true },
        Origin::Outbound => whither(&authority, &conn.worker.path.shared.settings.namespace)?,
    };
    // A copy of its own: the field's bytes are part of a whole head.
    let field = field.and_then(|field| HeaderValue::from_bytes(field.as_bytes()).ok());
    let (sent, kept) = sent(&conn.origin, &authority, field.as_ref());
    let named = Rc::new(Named { authority, whither, sent, kept, line: line.map(Box::from), field });
    *last = Some(Rc::clone(&named));
    Ok(named)
}

/// What the next hop's Host will say, and whether that is what the field says. A fixed authority is the name that counts;
/// what the application calls its local port by is nobody's name.
fn sent(origin: &Origin, authority: &Authority<'_>, field: Option<&HeaderValue>) -> (HeaderValue, bool) {
    let unknown = || HeaderValue::from_static("unknown");
    match (origin, field) {
        (Origin::Fixed(key), _) => (HeaderValue::from_str(key).unwrap_or_else(|_key| unknown()), false),
        (Origin::Outbound | Origin::Original(_) | Origin::Inbound(_) | Origin::Probe(_), Some(host))
            if host == authority.host() =>
        {
            (host.clone(), true)
        }
        _ => (HeaderValue::from_str(&authority.to_string()).unwrap_or_else(|_host| unknown()), false),
    }
}

/// The host: the URI's, else the Host field. Both, if they are there, must say the same.
fn authority(uri: &Uri, parts: &Parts, origin: &Origin) -> Result<Authority<'static>, Failed> {
    let bad = |error: String| Failed::told(Reason::BadHost, error);
    let parse = |raw: &str| Authority::parse(raw).map(Authority::into_owned).map_err(|error| bad(error.to_string()));
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(bad("there are two Host fields".into()));
    }
    let host = match host {
        None => None,
        Some(host) => Some(parse(host.to_str().map_err(|error| bad(error.to_string()))?)?),
    };
    let line = uri.authority().map(|line| parse(line.as_str())).transpose()?;
    match (line, host) {
        (Some(line), Some(host)) if !same(&line, &host) => {
            Err(bad(format!("the request asks for {line}, its Host is {host}")))
        }
        (Some(line), _) => Ok(line),
        (None, Some(host)) => Ok(host),
        (None, None) => match origin {
            Origin::Fixed(key) | Origin::Original(key) => parse(key),
            Origin::Outbound | Origin::Inbound(_) | Origin::Probe(_) => Err(bad("there is no host".into())),
        },
    }
}

fn same(one: &Authority<'_>, other: &Authority<'_>) -> bool {
    let port = |authority: &Authority<'_>| authority.port().unwrap_or(80);
    one.host() == other.host() && port(one) == port(other)
}

fn whither(authority: &Authority<'_>, namespace: &str) -> Result<Whither, Failed> {
    if authority.kind() != Host::Name {
        return Ok(Whither::Outside);
    }
    if authority.host() == "localhost" || authority.host().ends_with(".localhost") {
        return Err(Reason::ExternalRefused.into());
    }
    Ok(match MeshHost::parse(authority, namespace) {
        None => Whither::Outside,
        Some(host) => {
            // `orders` and `orders.shop.svc` are services; `example.com` may be either.
            let certainly = authority.host().split('.').count() != 2;
            Whither::Mesh { key: host.key().into(), certainly }
        }
    })
}

/// Connection-bound fields, which HTTP/2 forbids. The h2 library refuses them, too.
fn http2_fields(parts: &Parts, has: Marks) -> Result<(), Failed> {
    let forbidden = [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE];
    if has.has(Marks::HOP_BY_HOP)
        && let Some(name) = forbidden.iter().find(|name| parts.headers.contains_key(*name))
    {
        return Err(Failed::told(Reason::ClientProtocolError, format!("{name} in HTTP/2")));
    }
    if has.has(Marks::TE) && parts.headers.get_all(header::TE).iter().any(|te| te != "trailers") {
        return Err(Failed::told(Reason::ClientProtocolError, "te other than trailers in HTTP/2"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(host: &str) -> Option<Whither> {
        whither(&Authority::parse(host).unwrap(), "shop").ok()
    }

    #[test]
    fn names_of_services_and_of_the_outside() {
        let mesh = |key: &str, certainly| Some(Whither::Mesh { key: key.into(), certainly });
        assert_eq!(ask("orders"), mesh("orders.shop", true));
        assert_eq!(ask("orders:81"), mesh("orders.shop:81", true));
        assert_eq!(ask("Orders.Other.SVC.cluster.local.:81"), mesh("orders.other:81", true));
        assert_eq!(ask("orders.other.mesh"), mesh("orders.other", true));
        assert_eq!(ask("example.com"), mesh("example.com", false));
        assert_eq!(ask("www.example.com"), Some(Whither::Outside));
        assert_eq!(ask("10.0.0.1:80"), Some(Whither::Outside));
        assert_eq!(ask("localhost:15001"), None);
        assert_eq!(ask("app.localhost"), None);
    }
}
