//! Parse, run, exit code.

use std::process::ExitCode;

/// Long-lived processes with many small records fragment the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // With huge pages the first byte that is touched of any two megabytes costs all of them, and a worker twice the memory. The
    // allocator is built so that it asks for none; this is for kernels that give them unasked.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    consentry::cli::main(std::env::args_os())
}
