//! A `jsonb` as JSON, from the bytes that Postgres stores (utils/jsonb.h): containers of entries, which say what their
//! values are and how long, and behind the entries the values.

use crate::value::{self, Stop};
use crate::varlena::{self, word};
use crate::{numeric, string};

/// What a container's header says: how many elements or members, and of what.
const COUNT: u32 = 0x0fff_ffff;
const SCALAR: u32 = 0x1000_0000;
const OBJECT: u32 = 0x2000_0000;

/// What an entry says: its length, or where it ends (for every 32nd), and its type.
const LENGTH: u32 = 0x0fff_ffff;
const ENDS: u32 = 0x8000_0000;
const TYPE: u32 = 0x7000_0000;

const STRING: u32 = 0x0000_0000;
const NUMERIC: u32 = 0x1000_0000;
const FALSE: u32 = 0x2000_0000;
const TRUE: u32 = 0x3000_0000;
const NULL: u32 = 0x4000_0000;
const CONTAINER: u32 = 0x5000_0000;

/// Deeper ones are left to Postgres, which needs no stack for them.
const DEEPEST: usize = 64;

/// Where the JSON goes.
trait Sink {
    /// Text as it is.
    fn text(&mut self, text: &[u8]);
    /// A string, to be escaped.
    fn string(&mut self, text: &[u8]);
    /// A number.
    fn numeric(&mut self, bytes: &[u8]) -> Result<(), Stop>;
    /// Whether there is room for more.
    fn check(&self) -> Result<(), Stop>;
}

/// JSON that may not be longer than so many bytes.
struct Json<'a> {
    out: &'a mut Vec<u8>,
    most: usize,
}

impl Sink for Json<'_> {
    fn text(&mut self, text: &[u8]) {
        self.out.extend_from_slice(text);
    }

    fn string(&mut self, text: &[u8]) {
        string::write(self.out, text);
    }

    fn numeric(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        numeric::write(self.out, bytes, self.most)
    }

    fn check(&self) -> Result<(), Stop> {
        if self.out.len() > self.most { Err(Stop::TooLong) } else { Ok(()) }
    }
}

/// JSON that is not kept: it only matters whether it can be written, and how long it is.
struct Trial {
    /// With every character of its strings escaped.
    longest: usize,
    /// With none.
    shortest: usize,
    most: usize,
}

impl Sink for Trial {
    fn text(&mut self, text: &[u8]) {
        self.longest += text.len();
        self.shortest += text.len();
    }

    fn string(&mut self, text: &[u8]) {
        self.longest += value::WIDEST * text.len() + "\"\"".len();
        self.shortest += text.len() + "\"\"".len();
    }

    fn numeric(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.longest += numeric::length(bytes)?;
        self.shortest += 1;
        Ok(())
    }

    fn check(&self) -> Result<(), Stop> {
        if self.longest > self.most { Err(Stop::TooLong) } else { Ok(()) }
    }
}

/// Writes a `jsonb`, or an array or object in one, unless `out` gets longer than `most` bytes by it.
pub fn write(out: &mut Vec<u8>, bytes: &[u8], most: usize) -> Result<(), Stop> {
    container(&mut Json { out, most }, bytes, 0)
}

/// Whether [`write()`] can write it, as at most [`value::WIDEST`] times its bytes and at least a [`value::SPARSEST`]th.
pub fn check_packable(bytes: &[u8]) -> Result<(), Stop> {
    let mut trial = Trial { longest: 0, shortest: 0, most: value::WIDEST * bytes.len() };
    container(&mut trial, bytes, 0)?;
    if bytes.len() >= value::SPARSEST * trial.shortest { Err(Stop::Unknown) } else { Ok(()) }
}

fn container(out: &mut impl Sink, bytes: &[u8], depth: usize) -> Result<(), Stop> {
    let header = word(bytes, 0)?;
    let count = (header & COUNT) as usize;
    if depth > DEEPEST {
        return Err(Stop::Unknown);
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

/// Writes the value of an entry: its type, the bytes behind all entries, and where among them it begins.
fn entry(out: &mut impl Sink, value: (u32, &[u8], usize), depth: usize) -> Result<(), Stop> {
    let (kind, bytes, start) = value;
    // These two begin at a multiple of four.
    let aligned = || bytes.get(start.next_multiple_of(4)..).ok_or(Stop::Unknown);
    match kind {
        STRING => out.string(bytes.get(start..).ok_or(Stop::Unknown)?),
        NUMERIC => out.numeric(varlena::split(aligned()?).ok_or(Stop::Unknown)?.0)?,
        FALSE => out.text(b"false"),
        TRUE => out.text(b"true"),
        NULL => out.text(b"null"),
        CONTAINER => container(out, aligned()?, depth + 1)?,
        _ => return Err(Stop::Unknown),
    }
    out.check()
}

/// The entries of a container, from one on.
struct Entries<'a> {
    container: &'a [u8],
    /// What lies behind all entries.
    values: &'a [u8],
    next: usize,
    /// Where the next one's value begins.
    start: usize,
}

impl<'a> Entries<'a> {
    fn new(container: &'a [u8], count: usize, first: usize) -> Result<Self, Stop> {
        let values = container.get(4 + 4 * count..).ok_or(Stop::Unknown)?;
        // Back to the last entry that says where it ends; behind that, lengths add up.
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

    fn next(&mut self) -> Result<(u32, &'a [u8], usize), Stop> {
        let entry = word(self.container, 4 + 4 * self.next)?;
        let length = (entry & LENGTH) as usize;
        let end = if entry & ENDS != 0 { length } else { self.start + length };
        let start = std::mem::replace(&mut self.start, end);
        self.next += 1;
        Ok((entry & TYPE, self.values.get(..end).ok_or(Stop::Unknown)?, start))
    }
}
