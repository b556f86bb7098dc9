//! Open files and memory of the proxies and the relay: at the end they have about what they had at the start.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;

use tidings_tests::process::{memory, open_files};
use tidings_tests::{Proxy, eventually, until};

use crate::report::Report;
use crate::run::locked;
use crate::server::Server;

/// How many more files a process may have open at the end than at the beginning. Postgres keeps files open that it has
/// used once: in the relay those of the log's and the ticks' partitions with their indexes, and of some forty catalogs
/// and their indexes. A leak would be one for each of thousands of ticks. A proxy keeps its second connection, and those
/// over which it has read rows.
const MORE_FILES: [(&str, usize); 2] = [("proxy", 8), ("relay", 80)];

/// The memory, in addition to the history, that a process may have at the end: what an allocator does not return, of
/// the 1 MiB pages that are read from the log and of queues that were full.
const MORE_MEMORY: u64 = 48 << 20;

/// Open files, and bytes of memory, of a process.
pub type Size = (usize, u64);

/// Those of a proxy and of the relay at the beginning.
#[derive(Debug)]
pub struct Sizes {
    proxy: Size,
    relay: Size,
}

/// Those of a process.
pub fn size(pid: u32) -> Option<Size> {
    Some((open_files(pid)?, memory(pid, "RssAnon")?))
}

impl Sizes {
    /// The figures of the beginning. All proxies are alike.
    pub fn take(server: &Server, proxies: &[Mutex<Proxy>]) -> Self {
        let relay = || server.database(|database| size(database.wait_relay()));
        let proxy = eventually("the size of a proxy", || size(locked(&proxies[0]).pid()));
        Self { proxy, relay: eventually("the size of the relay", relay) }
    }

    /// What has grown that should not have grown.
    pub fn compare(&self, server: &Server, proxies: &[Mutex<Proxy>], history: &str, report: &Report) -> Vec<String> {
        let history: u64 = match history.strip_suffix("MiB") {
            Some(n) => n.parse::<u64>().map(|n| n << 20).unwrap_or(0),
            None => history.strip_suffix("KiB").and_then(|n| n.parse::<u64>().ok()).map_or(0, |n| n << 10),
        };
        let mut faults = Vec::new();
        let mut compare = |name: &str, before: (usize, u64), now: (usize, u64), memory: u64, files: usize| {
            report.say(format_args!(
                "{name}: files {} -> {}, memory {} -> {} KiB",
                before.0,
                now.0,
                before.1 >> 10,
                now.1 >> 10
            ));
            if now.0 > before.0 + files || now.1 > before.1 + memory {
                faults
                    .push(format!("{name} has grown: {before:?} files and bytes in the beginning, {now:?} in the end"));
            }
        };
        for (i, proxy) in proxies.iter().enumerate() {
            let proxy = locked(proxy);
            proxy.wait_clients(0);
            until("no replay is running any more", || proxy.metric("tidings_replays") == 0.0);
            let [(_, more), _] = MORE_FILES;
            // The last connections may still be closing.
            until("the proxy has closed what it had open", || {
                open_files(proxy.pid()).is_some_and(|files| files <= self.proxy.0 + more)
            });
            let now = size(proxy.pid()).expect("a proxy");
            compare(&format!("proxy {i}"), self.proxy, now, history + MORE_MEMORY, more);
        }
        report.write("relay-files", &relay_files(server));
        let relay = server.database(|database| size(database.wait_relay())).expect("a relay");
        let [_, (_, more)] = MORE_FILES;
        compare("relay", self.relay, relay, MORE_MEMORY, more);
        faults
    }
}

/// What the relay has open, by the relation.
fn relay_files(server: &Server) -> String {
    server.database(|database| {
        let folder = format!("/proc/{}/fd", database.wait_relay());
        let links = fs::read_dir(folder).into_iter().flatten().flatten().flat_map(|entry| fs::read_link(entry.path()));
        let mut session = database.session();
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for link in links {
            let path = link.display().to_string();
            let name = path.rsplit('/').next().and_then(|name| name.split(['.', '_']).next()?.parse::<u32>().ok());
            let sql = |node| format!("SELECT coalesce(pg_filenode_relation(0, {node})::regclass::text, 'no relation')");
            let what = name.filter(|_| path.contains("/base/")).map(|node| session.one::<String>(&sql(node)));
            let gone = if path.ends_with("(deleted)") { " (deleted)" } else { "" };
            *counts.entry(format!("{}{gone}", what.unwrap_or(path.clone()))).or_default() += 1;
        }
        counts.iter().map(|(what, count)| format!("{count} {what}\n")).collect()
    })
}
