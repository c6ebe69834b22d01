//! SQLite's files hold all messages, so only their owner may read them.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

/// Reading and writing for anybody but the owner.
const OTHERS: u32 = 0o077;

/// Makes the file if it is missing: SQLite takes an empty one for a new database, and gives the files beside it the
/// same mode. Its own would be everybody's to read.
pub(crate) fn create(database: &Path) {
    // Whatever speaks against it, SQLite meets it too, and says so.
    let _ = OpenOptions::new().write(true).create_new(true).mode(0o600).open(database);
}

/// Warns of files that others may read. They may have their reasons, so nothing is changed.
pub(crate) fn check(database: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = database.as_os_str().to_owned();
        name.push(suffix);
        let mode = fs::metadata(&name).map_or(0, |about| about.mode() & 0o777);
        if mode & OTHERS != 0 {
            let file = Path::new(&name).display();
            tracing::warn!("other users of this machine may read the database: chmod 600 {file} (it is {mode:o})");
        }
    }
}
