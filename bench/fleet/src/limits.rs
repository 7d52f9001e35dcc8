//! File descriptors: every simulated sidecar holds a connection, and so does the control plane for it.

use anyhow::{Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Besides connections: files, logs, the runtime.
const REST: u64 = 256;

/// Makes room for so many connections, here and in the processes that are started from here.
///
/// # Errors
/// When the system does not allow as many.
pub fn raise(connections: usize) -> Result<()> {
    let need = connections as u64 + REST;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= need {
        return Ok(());
    }
    if setrlimit(Resource::RLIMIT_NOFILE, need, hard.max(need)).is_ok()
        || (need <= hard && setrlimit(Resource::RLIMIT_NOFILE, need, hard).is_ok())
    {
        return Ok(());
    }
    bail!(
        "{connections} sidecars need {need} open files, and this user may have {hard}: raise the hard limit \
         (`ulimit -Hn {need}` as root, or LimitNOFILE=), or simulate fewer with --sidecars"
    )
}
