//! From Postgres to the hub. [`session`] is the live connection, one for all clients; [`chain`] puts the ticks in
//! order, from notifications and from the [`log`]. [`replay`] brings one client from an old position to the present,
//! with the queries in [`reads`]. [`snapshots`] starts clients with the current rows, which it reads with [`reading`].
//! [`registry`] reports which topics have subscribers, and [`hearing`] finds out whether notifications arrive at all.
//!
//! [`database`] makes all connections: [`connection_string`] and [`parameters`] say where the database is,
//! [`password`], [`tls`] and [`settings`] how to connect, and [`inbox`] holds the notifications that have arrived.
//! [`presence`] closes all of them when a statement needs the database alone. [`one_server`] keeps those that check
//! access at the server that the session follows.
//!
//! [`follow`] takes the place of notifications at a hot standby. [`standing`] is what the other parts of the proxy need
//! to know of the server. [`dialect`] has the statements that differ while the extension in the database is older.
//!
//! Not here: queries about access (`access`).

pub mod chain;
pub mod connection_string;
pub mod database;
pub mod dialect;
pub mod follow;
pub mod hearing;
pub mod inbox;
pub mod log;
pub mod one_server;
pub mod parameters;
pub mod password;
pub mod presence;
pub mod reading;
pub mod reads;
pub mod registry;
pub mod replay;
pub mod session;
pub mod settings;
pub mod snapshots;
pub mod standing;
pub mod tls;
