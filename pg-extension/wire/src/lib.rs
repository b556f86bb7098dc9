//! What the extension and the proxy agree on, and nothing else: no Postgres, no network, no unsafe code.
//!
//! - [`position`]: a place in the total order of events, as text.
//! - [`segment`]: the events of one transaction as the bytes of one log row.
//! - [`outline`]: what the payloads of a watch have in common, [`row`]: the values of an event, each packed as
//!   [`value`] says.
//! - [`numeric`], [`jsonb`], [`varlena`], [`time`], [`interval`], [`string`]: what Postgres stores, and how `to_jsonb`
//!   tells it.
//! - [`batch`]: one tick as the text of a few notifications.
//! - [`topic`]: the name a client subscribes to.
//! - [`template`]: how a topic is made of a row's columns, or taken apart again.
//!
//! Every parser takes bytes it does not trust and answers with an error, never a panic; every length in the input
//! is checked before memory is set aside for it.

#![forbid(unsafe_code)]

pub mod batch;
pub mod interval;
pub mod jsonb;
pub mod numeric;
pub mod outline;
pub mod position;
pub mod row;
pub mod segment;
pub mod string;
pub mod template;
pub mod time;
pub mod topic;
pub mod value;
pub mod varlena;

pub use batch::{Announcement, BatchError, MOVED, Part};
pub use position::{Position, PositionError, Seen};
pub use row::Row;
pub use segment::{Event, SegmentError};
pub use template::{Piece, Template, TemplateError};
pub use topic::{Topic, TopicError};
