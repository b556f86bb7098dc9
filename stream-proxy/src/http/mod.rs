//! From a socket to a response. [`server`] accepts connections within the limits of [`crowd`] and [`reserve`] and
//! detects their protocol ([`tls`], [`prefixed`]); [`http1`] and [`http2`] serve them. [`routes`] finds the
//! response to a request with the help of [`query`], [`bearer`] and [`cors`]. [`problem`] has the errors,
//! [`body`] sends a stream over HTTP/2, and [`overview`] is the page of a proxy with `--open`.
//!
//! Not here: who may subscribe (`access`), and what a stream sends (`stream`).

pub mod bearer;
pub mod body;
pub mod caller;
pub mod cors;
pub mod crowd;
pub mod http1;
pub mod http2;
pub mod overview;
pub mod prefixed;
pub mod problem;
pub mod query;
pub mod reserve;
pub mod routes;
pub mod server;
pub mod tls;
