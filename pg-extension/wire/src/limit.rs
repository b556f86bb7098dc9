//! How long the JSON of packed bytes may get: the factors between the two, and the limit that is set for it.

use crate::error::TooLong;

/// One byte of a packed value makes at most this many bytes of JSON. A NULL, which has no bytes, makes four.
pub const WIDEST: usize = 6;

/// One byte of JSON takes at most this many bytes when its value is packed.
pub const SPARSEST: usize = 4;

/// The most bytes of JSON that a value, or a payload, may take.
#[derive(Clone, Copy, Debug)]
pub struct Limit(usize);

impl Limit {
    /// No limit.
    pub const NONE: Self = Self(usize::MAX);

    /// A limit of this many bytes.
    pub const fn new(bytes: usize) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> usize {
        self.0
    }

    /// Fails if JSON of this many bytes exceeds the limit.
    pub fn check(self, bytes: usize) -> Result<(), TooLong> {
        if bytes > self.0 { Err(TooLong) } else { Ok(()) }
    }

    /// Where the limit ends for JSON that is about to be appended to `out`.
    pub fn after(self, out: &[u8]) -> End {
        End(out.len().saturating_add(self.0))
    }
}

/// The length that a buffer may have while one value's JSON is appended to it.
#[derive(Clone, Copy, Debug)]
pub struct End(usize);

impl End {
    /// Fails if a buffer of this length exceeds the limit.
    pub fn check(self, length: usize) -> Result<(), TooLong> {
        if length > self.0 { Err(TooLong) } else { Ok(()) }
    }

    /// The same limit with this many bytes more.
    pub fn plus(self, bytes: usize) -> Self {
        Self(self.0.saturating_add(bytes))
    }
}
