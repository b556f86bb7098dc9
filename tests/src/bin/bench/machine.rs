//! The machine and the software of a measurement.

use std::fs;
use std::process::Command;

use tidings_tests::Database;

/// Cores, memory and kernel.
pub fn describe() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let model = value("/proc/cpuinfo", "model name").unwrap_or_default();
    let memory = value("/proc/meminfo", "MemTotal").unwrap_or_default();
    let kilobytes: f64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let gibibytes = kilobytes / 1024.0 / 1024.0;
    format!("{cores} cores ({model}) shared by all, {gibibytes:.0} GiB of memory, Linux {}", kernel.trim())
}

/// The database and what is measured in it.
pub fn versions(database: &Database<'_>) -> Vec<String> {
    let mut session = database.session();
    let mut version = |sql| session.one::<String>(sql);
    vec![
        format!("PostgreSQL {}", version("SELECT split_part(current_setting('server_version'), ' ', 1)")),
        format!("Tidings {}", version("SELECT extversion::text FROM pg_extension WHERE extname = 'tidings'")),
    ]
}

/// Of an installed Debian package.
pub fn debian_version(package: &str) -> Option<String> {
    let output = Command::new("dpkg-query").args(["-W", "-f", "${Version}", package]).output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !version.is_empty()).then_some(version)
}

/// The day, in UTC.
pub fn today(database: &Database<'_>) -> String {
    database.session().one("SELECT (now() AT TIME ZONE 'UTC')::date::text")
}

/// The commit that is measured, and whether its files were changed; `None` outside of a clone.
pub fn commit() -> Option<String> {
    let git = |args: &[&str]| {
        let output = Command::new("git").current_dir(env!("CARGO_MANIFEST_DIR")).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=10", "HEAD"])?;
    // A run writes its own figures into the page.
    let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/docs"])?;
    Some(if changed.is_empty() { commit } else { format!("{commit} with changes") })
}

/// The value after a name in a file of lines `name: value`.
fn value(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'))?;
    Some(line.trim().to_owned())
}
