//! The rules of the protocol. Each can be left out, because a model that can't fail proves nothing: `tests.rs` leaves
//! them out one after the other, and expects the checker to find what goes wrong.

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// A tick with a transaction that did not wait for its own commit is flushed before it is announced.
    FlushForAsynchronous,
    /// The same for a tick with a transaction of two phases: a failover may lose its commit and leave it prepared, to
    /// be committed again.
    FlushForPrepared,
    /// The same for a tick that would have another order if it were lost and cut again, because it lacks a transaction
    /// that has an earlier last stamp but is not visible yet.
    FlushWhileEarlierEnd,
    /// A prepared transaction counts as about to become visible as long as it is prepared, not only during its COMMIT
    /// PREPARED.
    PreparedMayEnd,
    /// A transaction that was flushed early writes a last segment with a new stamp when it commits, even an empty one.
    LargeOnesStampAgain,
    /// An announcement carries the snapshot that ends its tick, unless that tick was flushed first.
    SnapshotInAnnouncement,
    /// There is no snapshot in the announcement of a tick that was flushed first.
    NoSnapshotOfFlushed,
    /// After a lost tick, a proxy passes over what it has already published.
    PassOver,
    /// A snapshot hides only segments with a stamp up to that of the snapshot.
    SnapshotHasStamp,
    /// The relay looks for transactions that are about to end before it takes the snapshot. So a transaction that was
    /// stamped after the look is treated as if it came after one that is about to end.
    LookCoversLaterStamps,
    /// The first relay after a server start cuts what was committed before, then a tick with a mark; the snapshots of
    /// earlier ticks mean nothing after it.
    MarkAfterRestart,
    /// A proxy whose tick is lost asks whether the log still has what it published, and resets its clients if not.
    AskWhatIsLeft,
    /// A proxy that continues after a lost tick must have heard each lost tick to its end, and with a snapshot.
    AllLostTicksHeard,
    /// A client whose tick is neither in the proxy's memory nor in the log is reset.
    LostIdsAreUnknown,
    /// A client whose id is within a tick, before an event that the proxy passed over in that tick, is served from the
    /// log, because the proxy's memory has that event in an earlier tick.
    MemoryKnowsItsGaps,
    /// A client that reads the log has read what the log has, not what the proxy has published.
    LogEndsWhereItEnds,
    /// `tidings.position()` flushes what its snapshot sees, and the last tick.
    PositionIsFlushed,
    /// A position with a snapshot has the number of events after its tick that the snapshot sees, and its client is
    /// reset if the log has fewer.
    PositionHasCount,
    /// A client whose position is older than what is retained is reset.
    CheckRetention,
    /// A standby gets only what its primary has flushed.
    OnlyFlushedIsSent,
    /// A standby waits for an id, or for the place of a proxy, that is beyond the last tick that it has replayed.
    UnreplayedIsAwaited,
    /// A standby that has replayed a later tick does not wait for an earlier one: that one is lost.
    EarlierTickIsLost,
    /// A primary waits for the last tick that its relay has cut, while its sessions do not see it yet: a standby may
    /// show it by then.
    CutTickIsAwaited,
    /// A server waits for the transactions that a position has seen, while it does not show them itself.
    SeenIsAwaited,
    /// After a restart the clock continues above all its earlier values.
    ClockNeverGoesBack,
    /// A tick also has those transactions that were still running when the last tick was cut.
    Stragglers,
    /// Transactions are ordered by their stamps, not by their numbers.
    OrderByStamp,
    /// All segments of a transaction have the place of its last stamp.
    OrderByLastStamp,
}

/// All rules but some.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    without: Vec<Rule>,
}

impl Rules {
    /// All rules but these.
    pub fn without(rules: &[Rule]) -> Self {
        Self { without: rules.to_vec() }
    }

    /// Whether a rule is followed.
    pub fn has(&self, rule: Rule) -> bool {
        !self.without.contains(&rule)
    }
}
