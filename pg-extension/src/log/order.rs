//! The order of the segments in a tick. The SQL function `tidings.tick_segments` must use the same order.

/// What is known of a segment beside its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The partition that it is in.
    pub slot: usize,
    /// The transaction that captured its events.
    pub xid: u64,
    /// When it was written.
    pub stamp: u64,
    /// Its order in its transaction.
    pub ordinal: u64,
}

/// Puts the segments of a tick in order: transactions by their last stamp, and those of a transaction by their ordinal.
/// Afterwards each segment has its transaction's last stamp.
pub fn put_in_order<T: AsMut<Head> + AsRef<Head>>(segments: &mut [T]) {
    // Most transactions have one segment.
    segments.sort_unstable_by_key(|segment| segment.as_ref().xid);
    for transaction in segments.chunk_by_mut(|a, b| a.as_ref().xid == b.as_ref().xid) {
        let last = transaction.iter().map(|segment| segment.as_ref().stamp).max().unwrap_or(0);
        transaction.iter_mut().for_each(|segment| segment.as_mut().stamp = last);
    }
    segments.sort_unstable_by_key(|segment| (segment.as_ref().stamp, segment.as_ref().ordinal));
}
