//! A `numeric` as JSON: the text that Postgres gives it, from the bytes that it stores (utils/adt/numeric.c).

use crate::value::Stop;

/// A digit of a `numeric` is a number below 10,000.
const BASE_DIGITS: usize = 4;

const SIGN: u16 = 0xc000;
const SHORT: u16 = 0x8000;
const NEGATIVE: u16 = 0x4000;

/// A `numeric` taken apart.
enum Numeric<'a> {
    /// What JSON has no number for is a string.
    Word(&'static [u8]),
    Number {
        negative: bool,
        /// Decimal digits behind the point.
        scale: usize,
        /// How many digits stand in front of the point, less one.
        weight: i32,
        digits: &'a [u8],
    },
}

fn parse(bytes: &[u8]) -> Result<Numeric<'_>, Stop> {
    let (header, rest) = bytes.split_first_chunk().ok_or(Stop::Unknown)?;
    let header = u16::from_le_bytes(*header);
    Ok(match header & SIGN {
        SIGN => Numeric::Word(match header {
            0xc000 => b"\"NaN\"",
            0xd000 => b"\"Infinity\"",
            0xf000 => b"\"-Infinity\"",
            _ => return Err(Stop::Unknown),
        }),
        SHORT => {
            // The weight has seven bits, the first of which is its sign.
            let weight = i32::from(header & 0x3f) - i32::from(header & 0x40);
            Numeric::Number {
                negative: header & 0x2000 != 0,
                scale: usize::from(header >> 7 & 0x3f),
                weight,
                digits: rest,
            }
        }
        sign => {
            let (weight, digits) = rest.split_first_chunk().ok_or(Stop::Unknown)?;
            let weight = i32::from(i16::from_le_bytes(*weight));
            Numeric::Number { negative: sign == NEGATIVE, scale: usize::from(header & !SIGN), weight, digits }
        }
    })
}

impl Numeric<'_> {
    /// The bytes of its text, or a few more.
    fn length(&self) -> usize {
        match self {
            Self::Word(word) => word.len(),
            Self::Number { scale, weight, .. } => {
                "-0.".len() + BASE_DIGITS * usize::try_from(weight + 1).unwrap_or(0) + scale
            }
        }
    }
}

/// The bytes of the text of a `numeric`, or a few more.
pub fn length(bytes: &[u8]) -> Result<usize, Stop> {
    Ok(parse(bytes)?.length())
}

/// Writes a `numeric`, unless `out` gets longer than `most` by it, or nearly.
pub fn write(out: &mut Vec<u8>, bytes: &[u8], most: usize) -> Result<(), Stop> {
    let numeric = parse(bytes)?;
    if out.len() + numeric.length() > most.saturating_add("-0.".len() + BASE_DIGITS) {
        return Err(Stop::TooLong);
    }
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
    // No digit of Postgres is greater.
    let digit = digit % 10_000;
    [digit / 1000, digit / 100 % 10, digit / 10 % 10, digit % 10].map(|digit| b'0' + digit as u8)
}
