//! The Python side of interoperability tests.

mod peer;

use std::path::{Path, PathBuf};

pub use peer::{Kind, Peer, PeerError, Pending};

/// The interpreter that has `channels_redis` and Django: `GATEWAY_TEST_PYTHON`, else the workspace's
/// `.venv/bin/python`. Panics if there is none.
pub fn python() -> PathBuf {
    let path = match std::env::var_os("GATEWAY_TEST_PYTHON") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/python"),
    };
    assert!(
        path.is_file(),
        "{} is missing: run ./test.sh, or python3 -m venv .venv && .venv/bin/pip install -r testkit/requirements.txt",
        path.display()
    );
    path
}
