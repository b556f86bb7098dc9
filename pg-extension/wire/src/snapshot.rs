//! Which transactions a snapshot sees, in the text form of Postgres's `pg_snapshot`: `<xmin>:<xmax>:<xid>,<xid>…`.

use std::fmt;
use std::str::FromStr;

/// Which transactions a snapshot sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// All transactions below this one have ended.
    pub xmin: u64,
    /// Transactions from this one on had not started.
    pub xmax: u64,
    /// The transactions between the two that were still running, in ascending order. A prepared one counts as running.
    pub running: Vec<u64>,
}

/// The text is not a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a snapshot: expected <xmin>:<xmax>:<xid>,<xid>…")]
pub struct SnapshotError;

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
    type Err = SnapshotError;

    fn from_str(text: &str) -> Result<Self, SnapshotError> {
        let mut fields = text.split(':');
        let mut next = || fields.next().ok_or(SnapshotError);
        let (xmin, xmax, running) = (number(next()?)?, number(next()?)?, next()?);
        let mut running = match running {
            "" => Vec::new(),
            list => list.split(',').map(number).collect::<Result<Vec<_>, _>>()?,
        };
        // Postgres accepts these, too.
        running.dedup();
        let snapshot = Self { xmin, xmax, running };
        if fields.next().is_none() && snapshot.is_valid() { Ok(snapshot) } else { Err(SnapshotError) }
    }
}

impl Snapshot {
    /// Whether a transaction had ended.
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.running.binary_search(&xid).is_err())
    }

    /// Whether it sees everything that an earlier snapshot sees. The SQL function `tidings.covers` must give the same
    /// answer.
    pub fn covers(&self, earlier: &Self) -> bool {
        // The earlier one must not see any transaction that had not started at this one.
        let unknown = earlier.running.iter().filter(|xid| **xid >= self.xmax).count() as u64;
        !self.running.iter().any(|xid| earlier.sees(*xid)) && self.xmax + unknown >= earlier.xmax
    }

    /// Whether Postgres would accept it.
    fn is_valid(&self) -> bool {
        let ascending = self.running.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = self.running.iter().all(|xid| (self.xmin..self.xmax).contains(xid));
        // Transaction 0 of an epoch of transaction ids does not exist, so no snapshot begins or ends with it.
        let exist = [self.xmin, self.xmax].iter().all(|xid| xid % (1 << 32) != 0);
        ascending && inside && exist && self.xmin <= self.xmax
    }
}

/// A whole number that a `bigint` of Postgres can hold, in digits only: no sign, no blank.
pub(crate) fn number(text: &str) -> Result<u64, SnapshotError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let value = digits.then(|| text.parse::<i64>().ok()).flatten().ok_or(SnapshotError)?;
    Ok(value.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_may_be_listed_twice() {
        assert_eq!(
            "10:14:11,11,13".parse::<Snapshot>().map(|snapshot| snapshot.to_string()),
            Ok("10:14:11,13".to_owned())
        );
        assert_eq!("10:14:11,13,11".parse::<Snapshot>(), Err(SnapshotError));
    }

    #[test]
    fn a_snapshot_covers_what_saw_no_more() {
        for (later, earlier, covers) in [
            ("10:10:", "10:10:", true),
            ("10:10:", "5:9:5,7", true),
            ("10:12:10", "10:12:10,11", true),
            ("10:12:10", "11:12:11", false),
            ("10:12:10", "10:13:10", false),
            // What had not started at the later one was still running at the earlier one: a standby's snapshot.
            ("10:12:10", "10:13:10,12", true),
            ("10:12:10", "10:14:10,12", false),
        ] {
            let [a, b] = [later, earlier].map(|text| text.parse::<Snapshot>().unwrap());
            assert_eq!(a.covers(&b), covers, "{later} and {earlier}");
        }
    }
}
