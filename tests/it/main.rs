//! Integration tests: the real binary, started as an operator would, against issuers that answer over a real socket.

mod cli;
mod docs;
mod harness;
mod oidc;
