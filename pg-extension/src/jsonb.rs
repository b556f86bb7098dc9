//! A `jsonb` as JSON, from the bytes that Postgres stores (utils/jsonb.h): containers of entries, which say what their values are and
//! how long, and behind the entries the values.

use crate::value::Stop;
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

/// Writes a `jsonb`, or an array or object in one.
pub fn write(out: &mut Vec<u8>, bytes: &[u8], most: usize) -> Result<(), Stop> {
    write_container(out, bytes, most, 0)
}

fn write_container(out: &mut Vec<u8>, bytes: &[u8], most: usize, depth: usize) -> Result<(), Stop> {
    let header = word(bytes, 0)?;
    let count = (header & COUNT) as usize;
    if depth > DEEPEST {
        return Err(Stop::Unknown);
    }
    let write_value = |out: &mut Vec<u8>, value: (u32, &[u8], usize)| {
        write_value(out, value, most, depth)?;
        if out.len() > most { Err(Stop::TooLong) } else { Ok(()) }
    };
    if header & OBJECT != 0 {
        let (mut keys, mut values) = (Entries::new(bytes, 2 * count, 0)?, Entries::new(bytes, 2 * count, count)?);
        out.push(b'{');
        for i in 0..count {
            if i > 0 {
                out.push(b',');
            }
            write_value(out, keys.next()?)?;
            out.push(b':');
            write_value(out, values.next()?)?;
        }
        out.push(b'}');
    } else {
        let mut values = Entries::new(bytes, count, 0)?;
        let is_scalar = header & SCALAR != 0;
        if !is_scalar {
            out.push(b'[');
        }
        for i in 0..count {
            if i > 0 {
                out.push(b',');
            }
            write_value(out, values.next()?)?;
        }
        if !is_scalar {
            out.push(b']');
        }
    }
    Ok(())
}

/// Writes the value of an entry: its type, the bytes behind all entries, and where among them it begins.
fn write_value(out: &mut Vec<u8>, value: (u32, &[u8], usize), most: usize, depth: usize) -> Result<(), Stop> {
    let (kind, bytes, start) = value;
    // These two begin at a multiple of four.
    let aligned = || bytes.get(start.next_multiple_of(4)..).ok_or(Stop::Unknown);
    match kind {
        STRING => string::write(out, bytes.get(start..).ok_or(Stop::Unknown)?),
        NUMERIC => numeric::write(out, varlena::split(aligned()?).ok_or(Stop::Unknown)?.0, most)?,
        FALSE => out.extend_from_slice(b"false"),
        TRUE => out.extend_from_slice(b"true"),
        NULL => out.extend_from_slice(b"null"),
        CONTAINER => write_container(out, aligned()?, most, depth + 1)?,
        _ => return Err(Stop::Unknown),
    }
    Ok(())
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
