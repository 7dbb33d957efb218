//! The stand-in issuer: Visma Connect's and Dinero's token endpoints on a loopback port, because Dinero offers no
//! sandbox of its own.
//!
//! It is two things in one. [`Issuer`] is the rules alone: a state machine behind a mutex, handed the time with every
//! call and, where asked, a seed instead of the system's randomness; simulations use it as the judge of what really
//! happened. [`Sandbox`] puts it behind HTTP, with a page on which a person approves a consent, faults on request and
//! a control surface under `/sandbox/`. It keeps no file and forgets everything when it ends.
//!
//! It is no security product: access tokens look like RS256 JWTs but carry no RSA signature, and whoever reaches the
//! port controls it. What it mimics is what the issuers document, or several public clients agree on; where that is
//! silent it takes the harsher reading, so that a worker that gets along with it gets along with the real one.

mod config;
mod fault;
mod http;
mod issuer;
mod mint;
mod people;
mod record;
mod ring_list;
mod rules;
mod server;

pub use config::SandboxConfig;
pub use fault::{Fault, FaultKind};
pub use issuer::Issuer;
pub use record::{Entry, GrantType, Outcome, RECORD_CAPACITY};
pub use rules::{Approval, Denied, Granted, Refusal, Request, Scopes, Standing};
pub use server::Sandbox;

#[cfg(test)]
mod tests;
