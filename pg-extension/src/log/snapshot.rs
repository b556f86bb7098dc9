//! Which transactions a snapshot sees, by their 64-bit ids, as far as the log needs it.

use std::ffi::CString;
use std::fmt;
use std::str::FromStr;

use pgrx::direct_function_call_as_datum;
use pgrx::prelude::*;

/// A snapshot. As text it is what `pg_snapshot` writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The oldest transaction that it does not see.
    xmin: u64,
    /// Transactions from this on had not started.
    pub xmax: u64,
    /// Those below that were running, in order. A prepared one runs.
    pub running: Vec<u64>,
}

impl Snapshot {
    /// The active snapshot of this process.
    pub fn active() -> Self {
        // SAFETY: there is one, of a running server.
        let snapshot = unsafe { &*pg_sys::GetActiveSnapshot() };
        let next = next_xid();
        // The snapshot has 32 bits of ids that are all below the next one.
        let full = |xid: pg_sys::TransactionId| next - u64::from((next as u32).wrapping_sub(xid.into_inner()));
        // In recovery Postgres cannot distinguish subtransactions from other transactions, and lists all running ones
        // where it normally lists subtransactions. If that list overflows, it lacks only subtransactions.
        let (running, count) = match snapshot.takenDuringRecovery {
            true => (snapshot.subxip, snapshot.subxcnt.unsigned_abs()),
            false => (snapshot.xip, snapshot.xcnt),
        };
        // SAFETY: each list has as many elements as its counter says.
        let running = (0..count as usize).map(|i| full(unsafe { *running.add(i) }));
        Self { xmin: full(snapshot.xmin), xmax: full(snapshot.xmax), running: running.collect() }.in_order()
    }

    /// A snapshot that sees all transactions below `xmax` except those in a list.
    pub fn new(xmax: u64, mut running: Vec<u64>) -> Self {
        running.sort_unstable();
        running.dedup();
        Self { xmin: running.first().copied().unwrap_or(xmax), xmax, running }
    }

    fn in_order(mut self) -> Self {
        self.running.sort_unstable();
        self
    }

    /// The same as if transactions from `limit` on had not started.
    pub fn below(mut self, limit: u64) -> Self {
        if limit < self.xmax {
            self.running.retain(|xid| *xid < limit);
            self = Self::new(limit, self.running);
        }
        self
    }

    /// The same as a value of type `pg_snapshot`.
    pub fn datum(&self) -> pg_sys::Datum {
        let text = CString::new(self.to_string()).unwrap_or_default();
        // SAFETY: the function takes a C string, and copies it.
        let datum = unsafe { direct_function_call_as_datum(pg_sys::pg_snapshot_in, &[Some(text.as_ptr().into())]) };
        datum.unwrap_or_else(|| error!("not a snapshot: {self}"))
    }

    /// The oldest transaction that may still write, or has ended since: a prepared one has no process and writes no
    /// more.
    pub fn oldest_process(&self) -> u64 {
        // SAFETY: looks through the list of processes.
        let has_process = |xid: &&u64| unsafe { pg_sys::BackendXidGetPid((**xid as u32).into()) } != 0;
        self.running.iter().find(has_process).copied().unwrap_or(self.xmax)
    }
}

/// The id of the next transaction; in recovery, the first id above all known transactions of the primary.
pub fn next_xid() -> u64 {
    // SAFETY: a reading of shared memory.
    unsafe { pg_sys::ReadNextFullTransactionId() }.value
}

/// Whether the active snapshot was taken in recovery. It then sees commits in the order in which the primary logged
/// them, which is not always the order in which they became visible on the primary.
pub fn is_of_recovery() -> bool {
    // SAFETY: there is one.
    unsafe { (*pg_sys::GetActiveSnapshot()).takenDuringRecovery }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (i, xid) in self.running.iter().enumerate() {
            write!(f, "{}{xid}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for Snapshot {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut fields = text.splitn(3, ':');
        let mut field = || fields.next().unwrap_or_default();
        let (xmin, xmax) = (field().parse()?, field().parse()?);
        let running = field().split(',').filter(|xid| !xid.is_empty()).map(str::parse).collect::<Result<_, _>>()?;
        Ok(Self { xmin, xmax, running })
    }
}
