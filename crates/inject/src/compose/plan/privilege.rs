//! What a wrapper that sets rules must be allowed, and an application must not have thereby.

use crate::compose::file::Service;

/// Capabilities that the sidecar needs and the service would not have by itself, with the usual ones of the engine.
pub fn missing(service: &Service, notes: &mut Vec<String>) -> Vec<&'static str> {
    let all = "ALL".to_owned();
    let given = |name: &str, usual: bool| {
        let (name, added, dropped) = (name.to_owned(), &service.cap_add, &service.cap_drop);
        let dropped = dropped.contains(&all) || dropped.contains(&name);
        service.privileged || added.contains(&name) || added.contains(&all) || usual && !dropped
    };
    if given(RULES, false) {
        notes.push(
            "the file gives it NET_ADMIN, which its application does not get, since it could change the rules: leave the \
             service out if it needs it"
                .to_owned(),
        );
    }
    let needed = USUAL.into_iter().map(|name| (name, true)).chain([(RULES, false)]);
    needed.filter(|(name, usual)| !given(name, *usual)).map(|(name, _)| name).collect()
}

const RULES: &str = "NET_ADMIN";
/// To start the application as its user, and to pass signals on to it; containers have these unless they are dropped.
const USUAL: [&str; 4] = ["KILL", "SETGID", "SETPCAP", "SETUID"];
