//! Other people's statements that concern the extension: [`hooks`] sees each utility statement, [`attach`] checks
//! ATTACH PARTITION, and [`removal`] takes the locks for DROP … CASCADE. They call the other storeys; none calls them.

pub mod attach;
pub mod hooks;
pub mod removal;
