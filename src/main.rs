//! Parse, run, exit code.

use std::process::ExitCode;

/// Long-lived processes with many small records fragment the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    consentry::cli::main(std::env::args_os())
}
