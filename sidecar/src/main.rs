//! `weft-sidecar`: see the library.

use std::process::ExitCode;

/// Small, and it returns memory: a sidecar is one of many on a machine.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    weft_telemetry::memory::small_pages();
    weft_sidecar::main(std::env::args_os())
}
