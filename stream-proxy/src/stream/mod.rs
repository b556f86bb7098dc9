//! From an event to the sockets of its subscribers. [`frame`] encodes an event once. [`hub`] queues it to each
//! [`subscriber`] of its topic's [`audience`], and a [`tally`] counts what became of it; who queued it
//! writes it to the [`socket`] at once if it is [`due`] and the socket takes it; otherwise the client's [`writer`] does. A [`place`] says where a subscriber is. [`channels`] does the same for plain channels, without history.
//! A [`hold`] keeps back what a subscriber may get only after its right has been checked again. [`heartbeat`] keeps
//! idle streams alive and ends those that stall or are too old.
//!
//! Not here: HTTP, and where events come from.

pub mod audience;
pub mod batch;
pub mod channels;
pub mod due;
pub mod frame;
pub mod heartbeat;
pub mod hold;
pub mod hub;
pub mod place;
pub mod socket;
pub mod subscriber;
pub mod tally;
pub mod writer;
