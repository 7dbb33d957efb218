//! A year in a minute: the real keeper, lifecycle, journal and seals on simulated time, against the stand-in issuer's
//! rules as the judge.
//!
//! One seed decides everything: who is enrolled, what the issuer, the network, the disk and the clock do wrong and when,
//! at which step the process dies, what callers and operators ask for. There is one thread, time stands still while
//! anything can run, and whatever leaves the process or reaches the disk takes a step of [`machine::Machine`], on any of
//! which the process may die. The disk forgets what was not synced (`vault::Disk`).
//!
//! | file | what it plays |
//! | --- | --- |
//! | `machine` | the computer: true time, the clock that it shows, its deaths |
//! | `network` | the way to the issuers and back, and their bad days |
//! | `fleet` | the customers: their organizations, consents and keys |
//! | `life` | one life of the process: the keeper, its callers, its operator |
//! | `judge` | what must hold, and what did not |
//! | `year` | the whole run, from the first life to the last |
//!
//! A run that goes wrong says its seed; `CONSENTRY_SIMULATION_SEED=N cargo test simulation` replays it exactly, and
//! `make simulate SEEDS=1000` runs as many as wanted.

mod fleet;
mod judge;
mod life;
mod machine;
mod network;
mod tests;
mod year;
