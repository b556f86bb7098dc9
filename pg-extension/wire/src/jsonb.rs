//! A `jsonb` as JSON, from the bytes that Postgres stores (utils/jsonb.h): a container has a header, then an entry for
//! each value with its type and length, then the values.

use crate::error::{PackError, ReadError};
use crate::limit::{End, Limit, SPARSEST, WIDEST};
use crate::varlena::{self, word};
use crate::{numeric, string};

/// The parts of a container's header: the number of elements or members, and flags.
const COUNT: u32 = 0x0fff_ffff;
const SCALAR: u32 = 0x1000_0000;
const OBJECT: u32 = 0x2000_0000;

/// The parts of an entry: its type, and its length or, in every 32nd entry, where it ends.
const LENGTH: u32 = 0x0fff_ffff;
const ENDS: u32 = 0x8000_0000;
const TYPE: u32 = 0x7000_0000;

const STRING: u32 = 0x0000_0000;
const NUMERIC: u32 = 0x1000_0000;
const FALSE: u32 = 0x2000_0000;
const TRUE: u32 = 0x3000_0000;
const NULL: u32 = 0x4000_0000;
const CONTAINER: u32 = 0x5000_0000;

/// The deepest nesting that is followed. Postgres renders deeper values: it does so without recursion.
const DEEPEST: usize = 64;

/// What the parts of the JSON are passed to.
trait Sink {
    /// Text that is JSON already.
    fn text(&mut self, text: &[u8]);
    /// A string, to be escaped.
    fn string(&mut self, text: &[u8]);
    /// A number.
    fn numeric(&mut self, bytes: &[u8]) -> Result<(), ReadError>;
    /// Fails if the limit is exceeded.
    fn check(&self) -> Result<(), ReadError>;
}

/// Writes the JSON, up to a limit.
struct Json<'a> {
    out: &'a mut Vec<u8>,
    end: End,
}

impl Sink for Json<'_> {
    fn text(&mut self, text: &[u8]) {
        self.out.extend_from_slice(text);
    }

    fn string(&mut self, text: &[u8]) {
        string::write(self.out, text);
    }

    fn numeric(&mut self, bytes: &[u8]) -> Result<(), ReadError> {
        numeric::write(self.out, bytes, self.end)
    }

    fn check(&self) -> Result<(), ReadError> {
        Ok(self.end.check(self.out.len())?)
    }
}

/// Writes nothing, but finds out whether the JSON can be written, and bounds of its length.
struct Trial {
    /// The length if every character of every string must be escaped.
    longest: usize,
    /// The length if none must be.
    shortest: usize,
    limit: Limit,
}

impl Sink for Trial {
    fn text(&mut self, text: &[u8]) {
        self.longest += text.len();
        self.shortest += text.len();
    }

    fn string(&mut self, text: &[u8]) {
        self.longest += WIDEST * text.len() + "\"\"".len();
        self.shortest += text.len() + "\"\"".len();
    }

    fn numeric(&mut self, bytes: &[u8]) -> Result<(), ReadError> {
        self.longest += numeric::length(bytes)?;
        self.shortest += 1;
        Ok(())
    }

    fn check(&self) -> Result<(), ReadError> {
        Ok(self.limit.check(self.longest)?)
    }
}

/// Appends a `jsonb` as JSON. Fails once `out` is longer than `end`.
pub fn write(out: &mut Vec<u8>, bytes: &[u8], end: End) -> Result<(), ReadError> {
    container(&mut Json { out, end }, bytes, 0)
}

/// Whether [`write()`] can write it, and the JSON's length is at most [`WIDEST`] times that of the stored bytes and
/// more than a [`SPARSEST`]th of it.
pub fn check_packable(bytes: &[u8]) -> Result<(), PackError> {
    let mut trial = Trial { longest: 0, shortest: 0, limit: Limit::new(WIDEST * bytes.len()) };
    container(&mut trial, bytes, 0)?;
    if bytes.len() >= SPARSEST * trial.shortest { Err(PackError::Unsupported) } else { Ok(()) }
}

fn container(out: &mut impl Sink, bytes: &[u8], depth: usize) -> Result<(), ReadError> {
    let header = word(bytes, 0)?;
    let count = (header & COUNT) as usize;
    if depth > DEEPEST {
        return Err(ReadError::Corrupt);
    }
    if header & OBJECT != 0 {
        let (mut keys, mut values) = (Entries::new(bytes, 2 * count, 0)?, Entries::new(bytes, 2 * count, count)?);
        out.text(b"{");
        for i in 0..count {
            if i > 0 {
                out.text(b",");
            }
            entry(out, keys.next()?, depth)?;
            out.text(b":");
            entry(out, values.next()?, depth)?;
        }
        out.text(b"}");
    } else {
        let mut values = Entries::new(bytes, count, 0)?;
        let is_scalar = header & SCALAR != 0;
        if !is_scalar {
            out.text(b"[");
        }
        for i in 0..count {
            if i > 0 {
                out.text(b",");
            }
            entry(out, values.next()?, depth)?;
        }
        if !is_scalar {
            out.text(b"]");
        }
    }
    out.check()
}

/// Writes the value of an entry, which is given as its type, the bytes after all entries, and where among them the
/// value begins.
fn entry(out: &mut impl Sink, value: (u32, &[u8], usize), depth: usize) -> Result<(), ReadError> {
    let (kind, bytes, start) = value;
    // Numbers and containers begin at a multiple of four.
    let aligned = || bytes.get(start.next_multiple_of(4)..).ok_or(ReadError::Corrupt);
    match kind {
        STRING => out.string(bytes.get(start..).ok_or(ReadError::Corrupt)?),
        NUMERIC => out.numeric(varlena::split(aligned()?).ok_or(ReadError::Corrupt)?.0)?,
        FALSE => out.text(b"false"),
        TRUE => out.text(b"true"),
        NULL => out.text(b"null"),
        CONTAINER => container(out, aligned()?, depth + 1)?,
        _ => return Err(ReadError::Corrupt),
    }
    out.check()
}

/// The entries of a container, from a given one on.
struct Entries<'a> {
    container: &'a [u8],
    /// The bytes after all entries.
    values: &'a [u8],
    next: usize,
    /// Where the value of the next entry begins.
    start: usize,
}

impl<'a> Entries<'a> {
    fn new(container: &'a [u8], count: usize, first: usize) -> Result<Self, ReadError> {
        let values = container.get(4 + 4 * count..).ok_or(ReadError::Corrupt)?;
        // Look back for the last entry that says where it ends, and add the lengths of the entries after it.
        let mut start = 0;
        for before in (0..first).rev() {
            let entry = word(container, 4 + 4 * before)?;
            start += (entry & LENGTH) as usize;
            if entry & ENDS != 0 {
                break;
            }
        }
        Ok(Self { container, values, next: first, start })
    }

    fn next(&mut self) -> Result<(u32, &'a [u8], usize), ReadError> {
        let entry = word(self.container, 4 + 4 * self.next)?;
        let length = (entry & LENGTH) as usize;
        let end = if entry & ENDS != 0 { length } else { self.start + length };
        let start = std::mem::replace(&mut self.start, end);
        self.next += 1;
        Ok((entry & TYPE, self.values.get(..end).ok_or(ReadError::Corrupt)?, start))
    }
}
