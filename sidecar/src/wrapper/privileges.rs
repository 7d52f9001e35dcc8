//! As whom the application runs, and which of the sidecar's capabilities it does not get.

use std::{
    io,
    process::{Child, Command},
};

use rustix::{
    process::{Gid, Uid, getuid},
    thread::{self, CapabilitySet},
};

use crate::settings::AppUser;

/// What an application may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Privileges {
    /// As whom. `None`: as the sidecar.
    pub user: Option<AppUser>,
    /// Capabilities that it never has, whatever its user.
    pub without: CapabilitySet,
}

impl Default for Privileges {
    /// Those of the sidecar.
    fn default() -> Self {
        Self { user: None, without: CapabilitySet::empty() }
    }
}

impl Privileges {
    /// Starts a command with them.
    ///
    /// # Errors
    /// The user cannot be taken on, or the command not started.
    pub(super) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        if *self == Self::default() {
            return command.spawn();
        }
        // To the kernel, users and capabilities are a thread's, and a child has those of the thread that starts it.
        std::thread::scope(|scope| {
            let starter = scope.spawn(|| {
                give_up(self.without);
                if let Some(user) = &self.user {
                    become_user(user)?;
                }
                command.spawn()
            });
            starter.join().unwrap_or_else(|_| Err(io::Error::other("the thread that starts it panicked")))
        })
    }
}

/// This thread, and what it starts, can never have these again.
fn give_up(capabilities: CapabilitySet) {
    // Not inheritable: then neither ambient, which would survive the start of a program.
    let mut done = thread::capabilities(None).and_then(|mut sets| {
        sets.inheritable.remove(capabilities);
        thread::set_capabilities(None, sets)
    });
    // Out of bounds: root, or a program with the capability in its file, would have it otherwise. SETPCAP is what it takes
    // to do so, so that it stays to the end.
    let ordered = capabilities.iter().filter(|one| *one != CapabilitySet::SETPCAP);
    for capability in ordered.chain((capabilities & CapabilitySet::SETPCAP).iter()) {
        done = done.and_then(|()| thread::remove_capability_from_bounding_set(capability));
    }
    if let Err(error) = done {
        tracing::warn!(
            %error,
            ?capabilities,
            "these capabilities could not be put out of the application's reach, which needs CAP_SETPCAP: give it a user \
             other than root with --app-user"
        );
    }
}

/// Groups first: who is no longer root cannot change them.
fn become_user(user: &AppUser) -> io::Result<()> {
    let own = getuid();
    if !own.is_root() && own.as_raw() == user.uid {
        return Ok(());
    }
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    thread::set_thread_groups(&groups)?;
    thread::set_thread_gid(Gid::from_raw(user.gid))?;
    thread::set_thread_uid(Uid::from_raw(user.uid))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::wrapper::Application;

    #[tokio::test]
    async fn the_application_has_its_user_and_no_power_over_the_network() {
        if !nix::unistd::geteuid().is_root() {
            println!("left out: starting an application as another user needs root");
            return;
        }
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        let script = r#"
            test "$(id -u):$(id -g):$(id -G)" = "$1" || exit 2
            while read -r name mask; do
                case $name in
                CapInh:|CapPrm:|CapEff:|CapBnd:|CapAmb:) test $((0x$mask & 0x1020)) = 0 || exit 3 ;;
                NoNewPrivs:) test "$mask" = "$2" || exit 4 ;;
                esac
                case "$1 $name" in
                0:*) ;;
                *CapEff:) test $((0x$mask)) = 0 || exit 5 ;;
                esac
            done </proc/self/status
            exit 42"#;
        let no_new = own.lines().find_map(|line| line.strip_prefix("NoNewPrivs:")).unwrap().trim().to_owned();
        let user = |uid, gid, groups: &[u32]| Some(AppUser { uid, gid, groups: groups.to_vec(), home: None });
        for (user, groups) in [
            (user(1234, 50, &[]), "1234:50:50"),
            (user(1234, 1234, &[7, 50]), "1234:1234:1234 7 50"),
            (user(0, 0, &[]), "0:0:0"),
        ] {
            let command = ["sh", "-c", script, "sh", groups, &no_new].map(OsString::from);
            let privileges = Privileges { user, without: CapabilitySet::NET_ADMIN | CapabilitySet::KILL };
            let application = Application::start(&command, &privileges, &[], false).unwrap();
            assert_eq!(application.ended().await, 42, "{groups}");
        }
        let bounds = |status: &str| status.lines().filter(|line| line.starts_with("Cap")).collect::<Vec<_>>().join(" ");
        let after = std::fs::read_to_string("/proc/self/status").unwrap();
        assert_eq!(bounds(&after), bounds(&own), "the sidecar keeps what it has");
    }
}
