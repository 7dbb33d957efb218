//! Integration tests: the real binary, started as an operator would, against issuers that answer over a real socket.

mod api;
mod harness;
mod oidc;
mod roles;
