//! The rules of the issuer, without time, threads, randomness or network of their own.
//!
//! `state` is what the issuer knows, `authorization` what becomes of one consent and its refresh tokens, `exchange` what the
//! token endpoints do to them.

mod authorization;
mod exchange;
mod scopes;
mod state;
mod terms;

pub use authorization::Standing;
pub(super) use scopes::SCOPES;
pub use scopes::Scopes;
pub use state::Approval;
pub(super) use state::Rules;
pub use terms::{Denied, Granted, Refusal, Request};
