//! The parts of the tests, of `make run` and of `make bench`: real clusters, real proxies, exact clients.
//!
//! - [`wait`]: waiting for a condition.
//! - [`process`]: child processes that never outlive their owner, and what `/proc` says about them.
//! - [`cluster`]: a throw-away Postgres cluster that has the extension preloaded.
//! - [`clock`]: a wrong clock for a server.
//! - [`database`]: a database with the extension, and sessions in it.
//! - [`proxy`]: the real proxy binary.
//! - [`release`]: the proxy and the library of an earlier release.
//! - [`oracle`]: random tables, watches and transactions; what clients hold is compared with the tables.
//! - [`packages`]: the packages of `make package`.
//! - [`namespaces`]: processes, mounts and a network of their own for commands that run as root.
//! - [`debian`]: a Debian machine with nothing in it.
//! - [`balancer`]: Debian's load balancers, with the configurations of `docs/`.
//! - [`cable`]: the network between a client and a server, which can be cut.
//! - [`application`]: an application that the proxy asks about access, and that answers as a test wants.
//! - [`http`]: one plain request, and the body of its response as it arrives.
//! - [`identity`]: a server's certificate and key.
//! - [`sse`]: the event-stream grammar, and one connection that reads it.
//! - [`follower`]: a client that reconnects, as a browser does, until it has seen the event that it waits for.
//! - [`page`]: a page of `docs/` as a reader would follow it.
//! - [`teamboard`]: the demonstration's schema and backend.
//! - [`ledger`]: many writers whose committed writes are all recorded, and a check of what clients received.
//! - [`membership`]: rights that are granted and revoked, and a check that nobody received what it must not.

pub mod application;
pub mod balancer;
pub mod cable;
pub mod clock;
pub mod cluster;
pub mod database;
pub mod debian;
pub mod follower;
pub mod http;
pub mod identity;
pub mod ledger;
pub mod membership;
pub mod namespaces;
pub mod oracle;
pub mod packages;
pub mod page;
pub mod pool;
pub mod process;
pub mod proxy;
pub mod release;
pub mod sse;
pub mod teamboard;
pub mod wait;

pub use cable::Cable;
pub use cluster::{Cluster, shared};
pub use database::{Database, Session};
pub use follower::Follower;
pub use proxy::Proxy;
pub use sse::{Frame, Item, Sse};
pub use wait::{DEADLINE, SetAtTheEnd, eventually, until};
