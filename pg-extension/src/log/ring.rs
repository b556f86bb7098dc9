//! The ring: shared memory in which writers leave the segments that they have just inserted into the log, so that the
//! relay need not search the log for them.
//!
//! A writer adds an entry before its transaction becomes visible. Later entries overwrite the oldest ones, whether they
//! have been read or not. A reader that was too slow notices that, and reads the log instead. All databases share the
//! ring.
//!
//! Writers take turns by a lock, which each holds while it copies one entry. Readers take none. They copy first, and
//! then check whether a writer may have overwritten what they copied (a sequence lock).

use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
    fence,
};

use pgrx::prelude::*;

use crate::foreign::infallible::{LWLockAcquire, LWLockRelease};
use crate::settings;
use crate::shared_memory::Piece;

/// The longest segment that an entry contains, in bytes. Larger ones would fill the ring soon, and for them it matters
/// less that the relay must read the log.
const MAX_DATA: usize = 8 * 1024;

/// The bytes of a word, in which the ring is read and written.
const WORD: usize = size_of::<u64>();

/// The words of an entry before its data: its length in words and the database, the transaction, the stamp, the
/// ordinal, the partition and the length of the data.
const HEAD: usize = 5;

/// In place of the length of the data: there is none.
const NO_DATA: u32 = u32::MAX;

/// The words of the ring that are not for entries: how far it is written.
const ENDS: usize = 2;

/// The memory of the ring: how far it is written, and then the words of entries. None if the settings want no ring.
pub static RING: Piece = Piece::new(c"tidings_ring", || match settings::ring_size() {
    0 => 0,
    size => ENDS * WORD + size,
});

/// A segment that was just written.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Its database.
    pub database: pg_sys::Oid,
    /// The transaction that captured its events.
    pub xid: u64,
    /// The partition of the log that it is in.
    pub slot: usize,
    /// When it was written.
    pub stamp: u64,
    /// Its order in its transaction.
    pub ordinal: u64,
    /// Its bytes. None if they must be read from the log.
    pub data: Option<&'a [u8]>,
}

/// The ring as this process sees it. Positions count words from the start of the server, and never repeat.
#[derive(Clone, Copy)]
struct Ring {
    /// The end of the newest entry, which may not be complete yet.
    reserved: &'static AtomicU64,
    /// The end of the newest complete entry.
    complete: &'static AtomicU64,
    words: &'static [AtomicU64],
}

/// The ring, if there is one.
fn ring() -> Option<Ring> {
    // SAFETY: the values are atomics, and nobody else uses this memory.
    match unsafe { RING.values() } {
        [reserved, complete, words @ ..] => Some(Ring { reserved, complete, words }),
        _ => None,
    }
}

/// Adds an entry. Called inside a transaction, before it becomes visible.
pub fn put(entry: &Entry<'_>) {
    let Some(ring) = ring() else { return };
    let data = entry.data.filter(|data| data.len() <= MAX_DATA.min(ring.words.len() * WORD / 16));
    let length = data.map_or(NO_DATA, |data| data.len() as u32);
    let words = HEAD + data.map_or(0, |data| data.len().div_ceil(WORD));
    let head = [
        u64::from(entry.database.to_u32()) << 32 | words as u64,
        entry.xid,
        entry.stamp,
        entry.ordinal,
        (entry.slot as u64) << 32 | u64::from(length),
    ];
    let lock = RING.lock();
    // SAFETY: the lock was initialized together with the ring. It is released below: nothing in between can fail.
    unsafe { LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE) };
    ring.append(&head, data.unwrap_or_default());
    // SAFETY: this process holds the lock.
    unsafe { LWLockRelease(lock) };
}

impl Ring {
    /// Writes an entry behind the newest one. Called by one process at a time.
    fn append(&self, head: &[u64; HEAD], data: &[u8]) {
        let Self { reserved, complete, words } = self;
        let start = complete.load(Relaxed);
        let end = start + (HEAD + data.len().div_ceil(WORD)) as u64;
        reserved.store(end, Relaxed);
        // A reader that sees one of the words below also sees that they were reserved.
        fence(Release);
        let mut place = (start % words.len() as u64) as usize;
        let mut put = |word: u64| {
            words[place].store(word, Relaxed);
            place += 1;
            if place == words.len() {
                place = 0;
            }
        };
        // Three loops, because one chain of iterators would check for each word which part it comes from.
        for word in head {
            put(*word);
        }
        let (chunks, rest) = data.as_chunks::<WORD>();
        for bytes in chunks {
            put(u64::from_le_bytes(*bytes));
        }
        if !rest.is_empty() {
            let mut last = [0; WORD];
            last[..rest.len()].copy_from_slice(rest);
            put(u64::from_le_bytes(last));
        }
        complete.store(end, Release);
    }
}

/// Reads the entries that were added after the last reading.
pub struct Reader {
    position: u64,
    /// A copy of the newest entries.
    copy: Vec<u64>,
}

impl Reader {
    /// Starts at the newest entry.
    pub fn at_end() -> Self {
        Self { position: ring().map_or(0, |ring| ring.complete.load(Acquire)), copy: Vec::new() }
    }

    /// Copies the new entries. None if some were overwritten before, or if there is no ring.
    pub fn read(&mut self) -> Option<impl Iterator<Item = Entry<'_>>> {
        self.copy.clear();
        self.copy_new().then(|| Entries(&self.copy))
    }

    fn copy_new(&mut self) -> bool {
        let Some(Ring { reserved, complete, words }) = ring() else { return false };
        let start = std::mem::replace(&mut self.position, complete.load(Acquire));
        let (length, all) = ((self.position - start) as usize, words.len());
        if length > all {
            return false;
        }
        let place = (start % all as u64) as usize;
        let (back, front) = (&words[place..], &words[..place]);
        let words = back.iter().chain(front).take(length);
        self.copy.extend(words.map(|word| word.load(Relaxed)));
        // If a word was overwritten before it was copied, this sees at least where that entry ends.
        fence(Acquire);
        reserved.load(Relaxed) - start <= all as u64
    }
}

/// The entries in a copy of a part of the ring.
struct Entries<'a>(&'a [u64]);

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        let [first, xid, stamp, ordinal, last] = *self.0.first_chunk()?;
        let (entry, rest) = self.0.split_at_checked(first as u32 as usize)?;
        self.0 = rest;
        let data = match last as u32 {
            NO_DATA => None,
            length => Some(bytes(&entry[HEAD..]).get(..length as usize)?),
        };
        let (database, slot) = (pg_sys::Oid::from((first >> 32) as u32), (last >> 32) as usize);
        Some(Entry { database, xid, slot, stamp, ordinal, data })
    }
}

/// The bytes of words.
fn bytes(words: &[u64]) -> &[u8] {
    // SAFETY: any byte is a valid `u8`, and the length is that of the words. The extension is only built for
    // little-endian machines, so the bytes are in the order in which they were put.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}
