//! `consentry` keeps OAuth consents and API keys alive: an encrypted vault of long-lived secrets, a scheduler that
//! refreshes access tokens before they lapse, and a Unix socket that hands them to the application beside it.
//!
//! `ARCHITECTURE.md` in the repository is the map.

pub mod api;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod consent;
pub mod cron;
pub mod daemon;
pub mod hardening;
pub mod http;
pub mod keeper;
pub mod lifecycle;
pub mod links;
pub mod metrics;
pub mod model;
pub mod notice;
pub mod outbox;
pub mod provider;
pub mod sandbox;
pub mod secret_file;
mod serve;
pub mod shutdown;
#[cfg(test)]
mod simulation;
mod task;
pub mod telemetry;
#[cfg(test)]
mod tests;
pub mod vault;
pub mod wire;
