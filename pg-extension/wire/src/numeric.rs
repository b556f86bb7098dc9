//! A `numeric` as JSON: the text that Postgres prints for it, from the bytes that Postgres stores
//! (utils/adt/numeric.c).

use crate::error::ReadError;
use crate::limit::End;

/// The decimal digits in one digit of a `numeric`, which is a number below 10,000.
const BASE_DIGITS: usize = 4;

const SIGN: u16 = 0xc000;
const SHORT: u16 = 0x8000;
const NEGATIVE: u16 = 0x4000;

/// A parsed `numeric`.
enum Numeric<'a> {
    /// NaN and the infinities: JSON has no such numbers, so they are strings.
    Word(&'static [u8]),
    Number {
        negative: bool,
        /// The number of decimal digits after the point.
        scale: usize,
        /// The number of digits (of four decimal digits) before the point, minus one.
        weight: i32,
        digits: &'a [u8],
    },
}

fn parse(bytes: &[u8]) -> Result<Numeric<'_>, ReadError> {
    let (header, rest) = bytes.split_first_chunk().ok_or(ReadError::Corrupt)?;
    let header = u16::from_le_bytes(*header);
    Ok(match header & SIGN {
        SIGN => Numeric::Word(match header {
            0xc000 => b"\"NaN\"",
            0xd000 => b"\"Infinity\"",
            0xf000 => b"\"-Infinity\"",
            _ => return Err(ReadError::Corrupt),
        }),
        SHORT => {
            // The weight has seven bits; the highest one is its sign.
            let weight = i32::from(header & 0x3f) - i32::from(header & 0x40);
            Numeric::Number {
                negative: header & 0x2000 != 0,
                scale: usize::from(header >> 7 & 0x3f),
                weight,
                digits: rest,
            }
        }
        sign => {
            let (weight, digits) = rest.split_first_chunk().ok_or(ReadError::Corrupt)?;
            let weight = i32::from(i16::from_le_bytes(*weight));
            Numeric::Number { negative: sign == NEGATIVE, scale: usize::from(header & !SIGN), weight, digits }
        }
    })
}

impl Numeric<'_> {
    /// An upper bound for the length of its text, at most a few bytes above it.
    fn length(&self) -> usize {
        match self {
            Self::Word(word) => word.len(),
            Self::Number { scale, weight, .. } => {
                "-0.".len() + BASE_DIGITS * usize::try_from(weight + 1).unwrap_or(0) + scale
            }
        }
    }
}

/// An upper bound for the length of a `numeric`'s text, at most a few bytes above it.
pub fn length(bytes: &[u8]) -> Result<usize, ReadError> {
    Ok(parse(bytes)?.length())
}

/// Appends a `numeric`'s text. Fails, before anything is written, if `out` would become longer than `end`; a few bytes
/// more may pass, because the length is an estimate.
pub fn write(out: &mut Vec<u8>, bytes: &[u8], end: End) -> Result<(), ReadError> {
    let numeric = parse(bytes)?;
    end.plus("-0.".len() + BASE_DIGITS).check(out.len() + numeric.length())?;
    let (negative, scale, weight, digits) = match numeric {
        Numeric::Word(word) => {
            out.extend_from_slice(word);
            return Ok(());
        }
        Numeric::Number { negative, scale, weight, digits } => (negative, scale, weight, digits),
    };
    let digit = |place: i32| {
        let pair = usize::try_from(place).ok().and_then(|place| digits.get(2 * place..2 * place + 2));
        pair.map_or(0, |pair| u16::from_le_bytes([pair[0], pair[1]]))
    };
    if negative {
        out.push(b'-');
    }
    let first = if weight < 0 { 0 } else { digit(0) };
    out.extend_from_slice(itoa::Buffer::new().format(first).as_bytes());
    for place in 1..=weight {
        out.extend_from_slice(&four(digit(place)));
    }
    if scale > 0 {
        out.push(b'.');
        let end = out.len() + scale;
        let mut place = weight + 1;
        while out.len() < end {
            out.extend_from_slice(&four(digit(place)));
            place += 1;
        }
        out.truncate(end);
    }
    Ok(())
}

fn four(digit: u16) -> [u8; BASE_DIGITS] {
    // Postgres stores no digit of 10,000 or more; untrusted bytes may hold one.
    let digit = digit % 10_000;
    [digit / 1000, digit / 100 % 10, digit / 10 % 10, digit % 10].map(|digit| b'0' + digit as u8)
}
