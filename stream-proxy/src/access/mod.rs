//! Who may subscribe to what. [`auth`] turns a request into an identity, with [`token`] and [`keys`], and decides.
//! [`gate`] asks the database: questions wait in a [`line`], and each [`worker`] asks them over its own connection.
//! [`login`] checks that the proxy's own database roles have no power that they must not have.
//!
//! Not here: the rules themselves, which are in the database.

pub mod auth;
pub mod check;
pub mod gate;
pub mod keys;
pub mod line;
pub mod login;
pub mod token;
pub mod turns;
pub mod worker;
