//! A segment that borrows its first entry, an outline, from an earlier segment: the lender. Most transactions have one
//! event, and then the outline, which is the same each time, would be a large part of the row.
//!
//! Such a segment is the version byte 4, the partition of the lender (u8) and its transaction (a LEB128 varint), and
//! then the entries after the first one. The lender begins with an outline of its own, and is the only segment of its
//! transaction. It is in the same partition of the log, and its transaction committed before the borrower's began. So
//! whoever sees the borrower also sees the lender, and both are removed at the same time.

use std::ops::Deref;

use crate::segment::{self, OUTLINE_HEADER, SegmentError, VERSION};

/// The first byte of a segment that borrows its first entry.
pub const BORROWING: u8 = 4;

/// The most bytes before the entries of a segment that borrows one.
const MAX_PREFIX: usize = 2 + u64::BITS.div_ceil(7) as usize;

/// The segment that lends its first entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lender {
    /// The partition of the log that it is in.
    pub slot: u8,
    /// Its transaction.
    pub xid: u64,
}

/// What a segment that borrows has before its entries: the version byte and its lender.
#[derive(Debug)]
pub struct Prefix {
    bytes: [u8; MAX_PREFIX],
    length: usize,
}

impl Deref for Prefix {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Lender {
    /// What a segment that borrows from this one has before its entries, with the version byte.
    pub fn prefix(self) -> Prefix {
        let mut bytes = [0; MAX_PREFIX];
        let (mut length, mut rest) = (2, self.xid);
        bytes[..length].copy_from_slice(&[BORROWING, self.slot]);
        while rest >= 0x80 {
            bytes[length] = rest as u8 | 0x80;
            length += 1;
            rest >>= 7;
        }
        bytes[length] = rest as u8;
        Prefix { bytes, length: length + 1 }
    }
}

/// The lender of a segment and the segment's own entries. None if it borrows nothing.
pub fn split(segment: &[u8]) -> Result<Option<(Lender, &[u8])>, SegmentError> {
    let Some((&BORROWING, rest)) = segment.split_first() else { return Ok(None) };
    let (&slot, mut rest) = rest.split_first().ok_or(SegmentError::Short)?;
    let (mut xid, mut shift) = (0, 0);
    loop {
        let (&byte, after) = rest.split_first().ok_or(SegmentError::Short)?;
        rest = after;
        if shift >= u64::BITS {
            return Err(SegmentError::Lender);
        }
        xid |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return Ok(Some((Lender { slot, xid }, rest)));
        }
    }
}

/// The first entry of a segment that lends it: an outline.
pub fn first_entry(segment: &[u8]) -> Result<&[u8], SegmentError> {
    let Some((&VERSION, entries)) = segment.split_first() else { return Err(SegmentError::Lender) };
    let length = segment::outline_length(entries).ok_or(SegmentError::Lender)?;
    entries.get(..OUTLINE_HEADER + length).ok_or(SegmentError::Short)
}

/// Appends a segment that borrows nothing: it consists of the borrowed entry and the segment's own ones.
pub fn complete(out: &mut Vec<u8>, borrowed: &[u8], own: &[u8]) {
    out.reserve(1 + borrowed.len() + own.len());
    out.push(VERSION);
    out.extend_from_slice(borrowed);
    out.extend_from_slice(own);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Row;
    use crate::segment::{Event, append, append_filled, append_outline, events};

    /// A segment with one event that fills an outline, and the length of the outline's entry.
    fn filled(topic: &str) -> (Vec<u8>, usize) {
        let mut segment = vec![VERSION];
        append_outline(&mut segment, 0, "changed", "{\"a\":1}");
        let outline = segment.len() - 1;
        append_filled(&mut segment, 0, topic, &Row::default(), &Row::default());
        (segment, outline)
    }

    #[test]
    fn what_was_borrowed_is_put_back() {
        let ((lender, length), (whole, _)) = (filled("a"), filled("b"));
        let of = Lender { slot: 3, xid: 1 << 33 };
        let stored = [&of.prefix(), &whole[1 + length..]].concat();
        assert_eq!(stored.len(), whole.len() - 1 - length + 2 + 5);
        let Ok(Some((found, own))) = split(&stored) else { panic!("it borrows") };
        assert_eq!(found, of);
        let mut completed = vec![7];
        complete(&mut completed, first_entry(&lender).unwrap(), own);
        assert_eq!(completed, [&[7], &whole[..]].concat());
        // Without the lender it is of no known version.
        assert_eq!(events(&stored).next(), Some(Err(SegmentError::Version)));
    }

    #[test]
    fn a_segment_that_begins_with_no_outline_lends_nothing() {
        let mut plain = vec![VERSION];
        append(&mut plain, &Event { topic: "t", event: "e", payload: "p".into() });
        let (whole, _) = filled("a");
        for bad in [&plain[..], &[], &[VERSION], &[BORROWING, 0, 5], &whole[..6]] {
            assert!(first_entry(bad).is_err(), "{bad:?}");
        }
        assert_eq!(split(&plain), Ok(None));
    }

    proptest! {
        #[test]
        fn any_transaction_can_lend(slot: u8, xid: u64) {
            let lender = Lender { slot, xid };
            let prefix = lender.prefix();
            prop_assert!(prefix.len() <= MAX_PREFIX);
            prop_assert_eq!(split(&prefix), Ok(Some((lender, &[][..]))));
        }

        #[test]
        fn no_bytes_break_it(mut bytes in prop::collection::vec(any::<u8>(), 0..30)) {
            let _ = first_entry(&bytes);
            bytes.insert(0, BORROWING);
            let _ = split(&bytes);
        }
    }
}
