//! From Postgres to the hub. [`session`] follows the relay's notifications over one connection, for all clients.
//! [`replay`] brings one client from its old position to the present, with the queries in [`reads`]. [`registry`]
//! reports which topics are being watched. [`database`] makes all connections: [`connection_string`], [`password`] and
//! [`settings`] are the parts of it, and [`inbox`] holds the notifications that have arrived.
//!
//! Not here: queries about access (`access`).

pub mod connection_string;
pub mod database;
pub mod inbox;
pub mod password;
pub mod reads;
pub mod registry;
pub mod replay;
pub mod session;
pub mod settings;
pub mod tls;
