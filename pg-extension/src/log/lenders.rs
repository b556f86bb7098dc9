//! Segments that borrow their outline from an earlier segment of the same session: [`tidings_wire::lender`]. This is
//! how a writer finds a segment to borrow from, and how a reader finds the borrowed outline.
//!
//! A session remembers the last transaction that began with each outline, once that transaction has committed. It
//! borrows only in the partition of the lender, while that has the same file: TRUNCATE gives a table a new one.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use pgrx::prelude::*;
use tidings_wire::SegmentError;
use tidings_wire::lender::{self, BORROWING, Lender};

use crate::log::layout::{LOG_PARTITIONS, log};
use crate::log::scan::{Rows, open_partition};
use crate::log::table::File;
use crate::subtransaction::attempt_all;

/// The longest segment that lends or borrows, in bytes. In longer ones the outline matters little, and Postgres may
/// store them out of line.
pub const MAX_SEGMENT: usize = 1500;

/// How many segments may borrow from the same one. If it is ever corrupt, only they are unreadable with it.
const MAX_BORROWERS: u32 = 1000;

/// The most lenders that a session remembers. Only tables that it has written lately need one.
const MAX_KNOWN: usize = 32;

/// The most bytes of borrowed outlines that a reader keeps. When there are more, it forgets all of them.
const MAX_LENT: usize = 1024 * 1024;

/// The outline that a segment begins with.
#[derive(Clone, Copy)]
pub struct FirstOutline {
    /// Its number in this process.
    pub number: u64,
    /// The length of its entry.
    pub length: usize,
}

/// A segment that this session has written and may borrow from.
#[derive(Clone, Copy)]
struct Known {
    /// The number of the outline that it begins with.
    outline: u64,
    /// The file of the partition that it is in.
    file: File,
    lender: Lender,
    borrowers: u32,
}

/// Outlines that were borrowed, by the segment that has them.
#[derive(Default)]
struct Lent {
    outlines: HashMap<Lender, Box<[u8]>>,
    /// Their total length.
    bytes: usize,
}

thread_local! {
    static KNOWN: RefCell<Vec<Known>> = const { RefCell::new(Vec::new()) };
    /// What the running transaction has written, if others may borrow from it after its commit.
    static OFFERED: Cell<Option<Known>> = const { Cell::new(None) };
    /// The same after the commit, until the next transaction writes.
    static COMMITTED: Cell<Option<Known>> = const { Cell::new(None) };
    static LENT: RefCell<Lent> = RefCell::default();
}

/// The segment that has this outline and is in this file, if the session knows one.
pub fn find(outline: u64, file: File) -> Option<Lender> {
    KNOWN.with_borrow_mut(|known| {
        if let Some(committed) = COMMITTED.take() {
            known.retain(|old| old.outline != committed.outline);
            if known.len() == MAX_KNOWN {
                known.remove(0);
            }
            known.push(committed);
        }
        let found = known.iter_mut().find(|known| known.outline == outline && known.file == file)?;
        found.borrowers += 1;
        (found.borrowers <= MAX_BORROWERS).then_some(found.lender)
    })
}

/// Notes a segment that begins with this outline and is the only one of the running transaction.
pub fn offer(outline: u64, file: File, lender: Lender) {
    OFFERED.set(Some(Known { outline, file, lender, borrowers: 0 }));
}

/// The transaction has committed: its segment may be borrowed from. Allowed after a commit, because it cannot fail.
pub fn commit() {
    if let Some(offered) = OFFERED.take() {
        COMMITTED.set(Some(offered));
    }
}

/// Forgets the transaction, at its end.
pub fn reset() {
    OFFERED.set(None);
}

/// The whole of a segment, with what it has borrowed. Called with an active snapshot that sees it. Fails if the lender
/// is gone or cannot be read.
pub fn complete(segment: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    if segment.first() != Some(&BORROWING) {
        return Ok(Cow::Borrowed(segment));
    }
    let mut whole = Vec::new();
    append_complete(&mut whole, segment)?;
    Ok(Cow::Owned(whole))
}

/// Appends the whole of a segment to other bytes, as [`complete`] returns it. If it fails, nothing is appended.
pub fn append_complete(out: &mut Vec<u8>, segment: &[u8]) -> Result<(), String> {
    let Some((lender, own)) = lender::split(segment).map_err(|error| error.to_string())? else {
        out.extend_from_slice(segment);
        return Ok(());
    };
    let known = LENT.with_borrow(|lent| lent.outlines.get(&lender).map(|outline| lender::complete(out, outline, own)));
    if known.is_some() {
        return Ok(());
    }
    // An error must not end the relay.
    let outline = attempt_all(|| read(lender))?.map_err(|error| error.to_string())?;
    lender::complete(out, &outline, own);
    LENT.with_borrow_mut(|lent| lent.add(lender, outline));
    Ok(())
}

/// Reads the outline that a lender has in the log.
fn read(lender: Lender) -> Result<Box<[u8]>, SegmentError> {
    let slot = usize::from(lender.slot);
    let partition = Some(slot).filter(|slot| *slot < LOG_PARTITIONS.len()).and_then(open_partition);
    let partition = partition.ok_or(SegmentError::Lender)?;
    let mut rows = Rows::of(&partition, lender.xid);
    let row = rows.next().ok_or(SegmentError::Lender)?;
    // SAFETY: the column is a `bytea` and not NULL.
    let data = unsafe { <&[u8]>::from_datum(row[log::DATA], false) };
    lender::first_entry(data.unwrap_or_default()).map(Box::from)
}

impl Lent {
    fn add(&mut self, lender: Lender, outline: Box<[u8]>) {
        self.bytes += outline.len() + size_of::<(Lender, Box<[u8]>)>();
        if self.bytes > MAX_LENT {
            *self = Self::default();
        }
        self.outlines.insert(lender, outline);
    }
}
