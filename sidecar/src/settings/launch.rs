//! Settings of `run`: which application, as whom, and who sets the rules.

use std::{ffi::OsString, str::FromStr};

use clap::{Args, builder::BoolishValueParser};
use nix::sys::signal::Signal;

use super::{Flags, Redirect, RedirectFlags, SettingsError};

/// Flags of `run`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct LaunchFlags {
    /// User of the application: UID or UID:GID; GID is UID when not given. Default: the sidecar's own
    ///
    /// Needs root. The application has no other groups and no capability that its user does not have.
    #[arg(long, env = "WEFT_APP_USER", value_name = "UID[:GID]")]
    pub(super) app_user: Option<String>,
    /// Set the rules of `init` before the application starts; implies --transparent
    ///
    /// Needs CAP_NET_ADMIN, which the application does not get. The rules stay when it ends: in a container they go with
    /// it, on a host `init --remove` removes them.
    #[arg(long, env = "WEFT_REDIRECT", value_parser = BoolishValueParser::new())]
    pub(super) redirect: bool,
    #[command(flatten)]
    pub(super) rules: RedirectFlags,
    /// The signal that asks the application to end: a name, or a number
    ///
    /// The sidecar itself is stopped with SIGTERM, and passes this one on when requests have ended. nginx and others end
    /// in order at another: see STOPSIGNAL of their images.
    #[arg(long, env = "WEFT_STOP_SIGNAL", value_name = "SIGNAL", default_value = "SIGTERM")]
    pub(super) stop_signal: String,
    /// The command and its arguments, after `--`
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

/// The application to start.
#[derive(Debug)]
pub struct Launch {
    /// Program and arguments; at least the program.
    pub command: Vec<OsString>,
    /// As whom. `None`: as the sidecar itself.
    pub user: Option<AppUser>,
    /// Rules that are set before it starts.
    pub redirect: Option<Redirect>,
    /// Asks it to end.
    pub stop_signal: Signal,
}

/// A user and a group, by number: there is no `/etc/passwd` in many images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Launch {
    /// Checks the flags. `own`: the sidecar's user. With rules to set the sidecar becomes a transparent one.
    ///
    /// # Errors
    /// The first one that cannot be obeyed.
    pub fn new(flags: &mut Flags, launch: LaunchFlags, own: u32) -> Result<Self, SettingsError> {
        let user = launch.app_user.as_deref().map(app_user).transpose()?;
        let redirect = if launch.redirect {
            flags.transparent.transparent = true;
            // Its user tells the sidecar from the application only where they differ.
            let uids = user.filter(|user| user.uid != own).map(|_| own);
            Some(Redirect::new(flags, launch.rules, uids.as_slice())?)
        } else {
            None
        };
        let stop_signal = signal(&launch.stop_signal)?;
        Ok(Self { command: launch.command, user, redirect, stop_signal })
    }
}

fn signal(text: &str) -> Result<Signal, SettingsError> {
    let name = text.trim().to_ascii_uppercase();
    let known = match name.parse::<i32>() {
        Ok(number) => Signal::try_from(number).ok(),
        Err(_a_name) if name.starts_with("SIG") => Signal::from_str(&name).ok(),
        Err(_a_name) => Signal::from_str(&format!("SIG{name}")).ok(),
    };
    known.ok_or_else(|| SettingsError::new("--stop-signal", text, "not a signal", "write a name, as in SIGQUIT"))
}

fn app_user(text: &str) -> Result<AppUser, SettingsError> {
    let text = text.trim();
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    // The highest number means "no change" to the kernel.
    let number = |digits: &str| digits.parse::<u32>().ok().filter(|number| *number != u32::MAX);
    match (number(uid), number(gid)) {
        (Some(uid), Some(gid)) => Ok(AppUser { uid, gid }),
        _ => {
            let remedy = "write UID or UID:GID in numbers, as in 1000:1000 (`id -u NAME` tells)";
            Err(SettingsError::new("--app-user", text, "not a user and a group", remedy))
        }
    }
}
