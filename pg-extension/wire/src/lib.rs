//! The formats that the extension and the proxy share, and nothing else: no Postgres, no network, no unsafe code.
//!
//! - [`position`]: a place in the total order of events, as text. [`snapshot`]: which transactions a snapshot sees.
//! - [`segment`]: the events of one transaction as the bytes of one log row. [`lender`]: an earlier segment that has
//!   its first entry. [`outline`]: the text that the payloads of a watch have in common. [`row`]: the values of one
//!   event, each in the packed form of [`value`].
//! - [`numeric`], [`jsonb`], [`varlena`], [`time`], [`interval`], [`string`]: values in the form that Postgres stores,
//!   rendered as `to_jsonb` renders them. [`limit`], [`error`]: how long the JSON may get, and what can go wrong.
//! - [`batch`]: one tick as the text of a few notifications. [`page`]: segments of the log as one value.
//! - [`topic`]: the name that a client subscribes to. [`template`]: how a topic is made from the columns of a row, and
//!   how a topic is parsed into its values.
//!
//! Every parser takes untrusted bytes and returns an error, never a panic. Every length in the input is checked before
//! memory is allocated for it.

#![forbid(unsafe_code)]

pub mod batch;
pub mod error;
pub mod interval;
pub mod jsonb;
pub mod lender;
pub mod limit;
pub mod numeric;
pub mod outline;
pub mod page;
pub mod position;
pub mod row;
pub mod segment;
pub mod snapshot;
pub mod string;
pub mod template;
pub mod time;
pub mod topic;
pub mod value;
pub mod varlena;

pub use batch::{Announcement, BatchError, LEAVE, MOVED, Part};
pub use error::{PackError, ReadError, TooLong};
pub use limit::Limit;
pub use page::{PageError, PagePart};
pub use position::{Position, PositionError, Seen};
pub use row::Row;
pub use segment::{Event, Recheck, SegmentError};
pub use snapshot::Snapshot;
pub use template::{Piece, Template, TemplateError};
pub use topic::{Topic, TopicError};
