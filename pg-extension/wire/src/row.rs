//! The packed values of one event, and how they are written as the difference from those of the previous event.
//!
//! The rows that one statement changes are alike column by column: the same date, the next number, an address with the
//! same beginning. So each value is written without the leading bytes that it has in common with the previous one
//! (front coding, as in dictionaries and index pages). A byte precedes it: the upper nibble is the number of common
//! bytes, the lower nibble the number of new bytes that follow. A nibble of 15 means that the excess over 15 follows as
//! a length (see [`crate::value`]), the upper nibble's first.

use crate::value::{read_length, write_length};

/// The value of a nibble that means this number or more.
const MORE: usize = 15;

/// Most values are shorter than this many bytes.
const USUAL: usize = 16;

/// Packed values, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    bytes: Vec<u8>,
    /// Where each value ends.
    ends: Vec<u32>,
}

impl Row {
    /// Removes all values but keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// Releases the memory beyond this many bytes.
    pub fn shrink_to(&mut self, bytes: usize) {
        self.bytes.shrink_to(bytes);
        self.ends.shrink_to(bytes / size_of::<u32>());
    }

    /// Adds one value, which `pack` appends. If that fails, the row is unusable until [`Row::clear`].
    pub fn push<E>(&mut self, pack: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        pack(&mut self.bytes)?;
        // The caller keeps a row below 4 GiB; see `size`.
        self.ends.push(self.bytes.len() as u32);
        Ok(())
    }

    /// The bytes of all values. Callers that pack values keep a row below 4 GiB.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The number of values.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// The values.
    pub fn values(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.count()).map(|index| self.value(index))
    }

    /// A value; empty if there is none with this index.
    fn value(&self, index: usize) -> &[u8] {
        let Some(&end) = self.ends.get(index) else { return &[] };
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start as usize..end as usize]
    }

    /// Appends the row as the difference from another one.
    pub fn write_after(&self, previous: &Self, out: &mut Vec<u8>) {
        out.reserve(self.size() + self.count());
        for (index, value) in self.values().enumerate() {
            let shared = common(value, previous.value(index));
            let rest = &value[shared..];
            out.push((shared.min(MORE) << 4 | rest.len().min(MORE)) as u8);
            for number in [shared, rest.len()] {
                if number >= MORE {
                    write_length(out, number - MORE);
                }
            }
            out.extend_from_slice(rest);
        }
    }

    /// Reads a row of `count` values, written as the difference from another row, from the front of the bytes, which
    /// are shortened by it.
    pub fn read_after(&mut self, previous: &Self, count: usize, bytes: &mut &[u8]) -> Option<()> {
        self.clear();
        self.ends.reserve(count);
        self.bytes.reserve(bytes.len().min(count * USUAL));
        for index in 0..count {
            let (head, rest) = bytes.split_first()?;
            *bytes = rest;
            let mut number = |number: usize| {
                if number < MORE { Some(number) } else { Some(MORE + read_length(bytes)?) }
            };
            let (shared, length) = (number(usize::from(head >> 4))?, number(usize::from(head & 15))?);
            let (rest, others) = bytes.split_at_checked(length)?;
            *bytes = others;
            self.bytes.extend_from_slice(previous.value(index).get(..shared)?);
            self.bytes.extend_from_slice(rest);
            self.ends.push(u32::try_from(self.bytes.len()).ok()?);
        }
        Some(())
    }
}

/// The number of leading bytes that two values have in common.
fn common(a: &[u8], b: &[u8]) -> usize {
    const STEP: usize = 8;
    let word = |bytes: &[u8]| bytes.first_chunk::<STEP>().map(|word| u64::from_le_bytes(*word));
    let most = a.len().min(b.len());
    let (a, b) = (&a[..most], &b[..most]);
    let mut at = 0;
    while let (Some(x), Some(y)) = (word(&a[at..]), word(&b[at..])) {
        if x != y {
            return at + (x ^ y).trailing_zeros() as usize / 8;
        }
        at += STEP;
    }
    at + a[at..].iter().zip(&b[at..]).take_while(|(x, y)| x == y).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(values: &[Vec<u8>]) -> Row {
        let mut row = Row::default();
        for value in values {
            let pushed: Result<(), ()> = row.push(|out| {
                out.extend_from_slice(value);
                Ok(())
            });
            assert!(pushed.is_ok());
        }
        row
    }

    fn values() -> impl Strategy<Value = Vec<Vec<u8>>> {
        // Few different bytes and many lengths: much in common, and short and long forms of each number.
        prop::collection::vec(prop::collection::vec(0..2u8, 0..300), 5)
    }

    proptest! {
        #[test]
        fn a_row_comes_out_as_it_went_in(before in values(), mut after in values(), same in 0..400usize) {
            let kept = same.min(before[0].len());
            after[0].splice(0..0, before[0][..kept].iter().copied());
            let (before, after) = (row(&before), row(&after));
            for previous in [&before, &Row::default()] {
                let mut bytes = Vec::new();
                after.write_after(previous, &mut bytes);
                bytes.push(7);
                let (mut back, mut rest) = (Row::default(), &bytes[..]);
                prop_assert_eq!(back.read_after(previous, after.count(), &mut rest), Some(()));
                prop_assert_eq!((&back, rest), (&after, &[7u8][..]));
            }
        }

        #[test]
        fn equal_values_take_at_most_three_bytes(value in prop::collection::vec(any::<u8>(), 0..400)) {
            let row = row(&[value]);
            let mut bytes = Vec::new();
            row.write_after(&row, &mut bytes);
            prop_assert!(bytes.len() <= 3);
        }
    }
}
