//! Settings of `run`: which application, as whom, and who sets the rules.

use std::{ffi::OsString, path::PathBuf, str::FromStr};

use clap::{Args, builder::BoolishValueParser};
use nix::sys::signal::Signal;
use rustix::thread::CapabilitySet;

use super::{
    Flags, Redirect, RedirectFlags, SettingsError,
    accounts::{Accounts, AppUser},
};

/// Flags of `run`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct LaunchFlags {
    /// User of the application: a number or a name of /etc/passwd. Default: the sidecar's own
    ///
    /// Needs root. Groups are as a container engine gives them: those of /etc/passwd and /etc/group, or GROUP alone; 0
    /// for a number that is not in /etc/passwd. HOME becomes the user's where it is the sidecar's own. The application
    /// has no capability that its user does not have.
    #[arg(long, env = "WEFT_APP_USER", value_name = "USER[:GROUP]")]
    pub(super) app_user: Option<String>,
    /// Capabilities that the sidecar has and the application must not: names without CAP_, comma separated
    ///
    /// With --redirect or --app-user NET_ADMIN always is one of them.
    #[arg(long, env = "WEFT_APP_DROP", value_name = "CAP", value_delimiter = ',')]
    pub(super) app_drop: Vec<String>,
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
    /// HOME in place of the sidecar's own.
    pub home: Option<PathBuf>,
    /// Capabilities that it does not get.
    pub without: CapabilitySet,
    /// Rules that are set before it starts.
    pub redirect: Option<Redirect>,
    /// Asks it to end.
    pub stop_signal: Signal,
}

impl Launch {
    /// Checks the flags. `own`: the sidecar's user and its HOME. With rules to set the sidecar becomes a transparent one.
    ///
    /// # Errors
    /// The first one that cannot be obeyed.
    pub fn new(flags: &mut Flags, launch: LaunchFlags, own: Own<'_>) -> Result<Self, SettingsError> {
        let user = launch.app_user.as_deref().map(|text| own.accounts.user(text)).transpose()?;
        // Engines set HOME of whom a container begins as, unless something else has set it: then it is left alone.
        let engines = own.home.is_none() || own.home == own.accounts.home(own.uid).or(Some("/"));
        let home = user.as_ref().filter(|user| engines && user.uid != own.uid);
        let home = home.map(|user| user.home.clone().unwrap_or_else(|| "/".into()));
        let redirect = if launch.redirect {
            flags.transparent.transparent = true;
            // Its user tells the sidecar from the application only where they differ.
            let uids = user.as_ref().filter(|user| user.uid != own.uid).map(|_| own.uid);
            Some(Redirect::new(flags, launch.rules, uids.as_slice())?)
        } else {
            None
        };
        let mut without = capabilities(&launch.app_drop)?;
        if user.is_some() || redirect.is_some() {
            // What the sidecar was given for the rules is no business of the application's.
            without |= CapabilitySet::NET_ADMIN;
        }
        let stop_signal = signal(&launch.stop_signal)?;
        Ok(Self { command: launch.command, user, home, without, redirect, stop_signal })
    }
}

/// Whom the sidecar runs as.
#[derive(Debug, Clone, Copy)]
pub struct Own<'a> {
    /// User id.
    pub uid: u32,
    /// HOME.
    pub home: Option<&'a str>,
    /// Who is known here.
    pub accounts: &'a Accounts,
}

fn capabilities(names: &[String]) -> Result<CapabilitySet, SettingsError> {
    let mut all = CapabilitySet::empty();
    for name in names.iter().map(|name| name.trim()).filter(|name| !name.is_empty()) {
        let known = name.to_ascii_uppercase();
        let Some(capability) = CapabilitySet::from_name(known.trim_start_matches("CAP_")) else {
            let remedy = "write names as capabilities(7) has them, as in NET_ADMIN";
            return Err(SettingsError::new("--app-drop", name, "not a capability", remedy));
        };
        all |= capability;
    }
    Ok(all)
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
