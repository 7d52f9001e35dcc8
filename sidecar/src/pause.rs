//! `pause`: a process that keeps a container, and so its network namespace, in being.

use std::io;

use rustix::thread::{self, CapabilitySet, CapabilitySets};
use tokio::signal::unix::{SignalKind, signal};

/// Gives up every capability, and waits for SIGTERM or SIGINT. Process 1 of a container would not end by either without a handler.
///
/// # Errors
/// No signal handler can be installed.
pub fn pause() -> io::Result<()> {
    const NONE: CapabilitySet = CapabilitySet::empty();
    // There is one thread, so these are the process's.
    thread::set_capabilities(None, CapabilitySets { effective: NONE, permitted: NONE, inheritable: NONE })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        Ok(())
    })
}
