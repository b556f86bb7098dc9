//! Streams the events of a Tidings database to browsers over Server-Sent Events.
//!
//! The folders follow the way of an event and of a request. An event comes in through [`upstream`], which receives it
//! from Postgres, and goes out through [`stream`], which queues it to its subscribers and writes it to their sockets. A
//! request comes in through [`http`], which parses and answers it; [`access`] decides whether the client may subscribe;
//! [`proxy`] then opens the stream, and [`upstream::replay`] sends what the client missed, or [`upstream::snapshots`]
//! the current rows. [`poll`] gives one JSON answer with what a stream would send. [`check`] is
//! `tidings-proxy check`: it looks at what must be right before any of this works.
//!
//! Imports point one way: `http` uses `proxy`, which uses `access`, `upstream` and `stream`. `access` uses `upstream`
//! for its connections, `upstream` feeds `stream`, and `stream` knows neither HTTP nor Postgres.

#![forbid(unsafe_code)]

pub mod access;
pub mod addresses;
pub mod certificates;
pub mod check;
pub mod cli;
pub mod documents;
pub mod http;
pub mod judge;
pub mod metrics;
pub mod poll;
pub mod proxy;
pub mod route;
mod run;
pub mod stream;
pub mod upstream;

pub use run::{Setup, run};
