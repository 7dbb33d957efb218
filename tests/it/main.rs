//! Integration tests: the real binary, started as an operator would, against issuers that answer over a real socket.

mod alive;
mod api;
mod cli;
mod damage;
mod disk;
mod docs;
mod fleet;
mod harness;
mod kills;
mod lifecycle;
mod oidc;
mod roles;
mod secrets;
