//! Integration tests: the real binary, started as an operator would, against issuers that answer over a real socket.

mod alive;
mod api;
mod backup;
mod board;
mod browser;
mod cli;
mod damage;
mod deploy;
mod disk;
mod docs;
mod events;
mod fleet;
mod foresight;
mod foretold;
mod hardening;
mod harness;
mod keys;
mod kills;
mod lifecycle;
mod limits;
mod oidc;
mod pages;
mod resolve;
mod roles;
mod secrets;
mod webhooks;
