//! From a socket to an answer. [`server`] accepts connections within the limits of [`crowd`] and detects their protocol
//! ([`tls`], [`prefixed`], [`socket`]). [`routes`] finds the answer to a request, [`query`] parses it, [`cors`] lets
//! pages read it, [`problem`] words the errors, and [`body`] sends a stream over HTTP/2.
//!
//! Not here: who may subscribe (`access`), and what a stream sends (`stream`).

pub mod body;
pub mod cors;
pub mod credentials;
pub mod crowd;
pub mod prefixed;
pub mod problem;
pub mod query;
pub mod routes;
pub mod server;
pub mod socket;
pub mod tls;
