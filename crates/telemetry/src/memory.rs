//! What a process asks of the kernel about its memory.

/// Has the kernel back this process with small pages only, from now on and in its children.
///
/// Transparent huge pages make a process that uses a few hundred kilobytes here and there pay two megabytes for each: a
/// small daemon on a machine that has them always on is four times its size. Call it first in `main`.
pub fn small_pages() {
    // A kernel that does not know the request leaves things as they are: larger, and otherwise the same.
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        tracing::debug!(%error, "huge pages could not be turned off");
    }
}
