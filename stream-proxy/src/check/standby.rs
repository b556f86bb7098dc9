//! How far a standby is behind. Nothing can be written or notified there, so no event is sent on its way.

use std::time::Duration;

use crate::check::database::Connections;
use crate::check::report::Report;
use crate::upstream::follow::{Replay, replay};

/// Looks whether the standby is connected, and behind by `limit` at most.
pub async fn look(connections: &Connections, limit: Duration, report: &mut Report) -> Option<()> {
    match replay(&connections.speaker).await {
        Ok(Some(Replay { streams: true, delay, bytes, .. })) if delay <= limit => {
            report.right(
                "standby",
                format!("it is connected to its primary, and {} ms behind ({bytes} bytes)", delay.as_millis()),
            );
            Some(())
        }
        Ok(Some(Replay { streams, delay, bytes, .. })) => {
            let connected = if streams { "" } else { ", and not connected to its primary" };
            let detail = format!("it is {} s behind ({bytes} bytes){connected}", delay.as_secs());
            let fix = "Look at pg_stat_wal_receiver and pg_get_wal_replay_pause_state() there, at pg_stat_replication on the \
                primary, and at both logs.";
            report.wrong("standby", detail, fix);
            None
        }
        Ok(None) => {
            report.hint("standby", "it has just been promoted", "Check again.");
            None
        }
        Err(error) => {
            report.wrong("standby", error.to_string(), "The server's log may say more.");
            None
        }
    }
}
