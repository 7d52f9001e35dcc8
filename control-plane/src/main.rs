//! The control plane's binary.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    weft_telemetry::memory::small_pages();
    weft_control_plane::main(std::env::args_os())
}
