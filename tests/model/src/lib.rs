//! A model of the way from a commit to a client, for a checker that explores every order in which things can happen.
//!
//! - `state.rs`: the database, the proxies and the clients;
//! - `rules.rs`: the rules that the protocol consists of, each of which can be left out;
//! - `scenario.rs`: what takes part in a run, and what may go wrong in it;
//! - `protocol.rs`: what a tick has, what a proxy passes over, and when it knows that what it published survived;
//! - `horizon.rs`: the same for the variant that the code follows;
//! - `standby.rs`: a hot standby: what it shows, and its promotion;
//! - `actions.rs`: what can happen, and `enabled.rs`: when;
//! - `properties.rs`: what must hold in every state;
//! - `model.rs`: all that, as the checker sees it;
//! - `run.rs`: runs the checker, and prints a counterexample.
//!
//! `docs/model.md` says what is modelled, what is not, and what was found.

#![forbid(unsafe_code)]

pub mod actions;
pub mod enabled;
pub mod horizon;
pub mod model;
pub mod properties;
pub mod protocol;
pub mod rules;
pub mod run;
pub mod scenario;
pub mod standby;
pub mod state;

#[cfg(test)]
mod tests;
