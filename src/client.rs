//! HTTP over the Unix socket, for the command line and for any Rust program.
