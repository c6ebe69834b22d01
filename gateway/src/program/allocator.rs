//! The allocator of the process (with the feature `allocator`), and how it gives back what a storm of connects leaves.
//!
//! A request takes ten times the memory of the socket that it becomes. mimalloc keeps what is free for the
//! thread that used it, and gives pages back only when that thread allocates again: a node that is quiet
//! after a storm would hold on to all of it.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

#[cfg(feature = "allocator")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How often it is looked whether a storm is over.
const EVERY: Duration = Duration::from_secs(1);

/// Connects and leaves since memory was given back last that make it worth the while.
const WORTH: u64 = 256;

/// Rises whenever threads shall give back what they do not need.
static ROUND: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static SEEN: Cell<u32> = const { Cell::new(0) };
}

/// For each thread of the runtime, when it has nothing to do.
pub(crate) fn on_park() {
    let round = ROUND.load(Ordering::Relaxed);
    if SEEN.replace(round) != round {
        give_back();
    }
}

/// Gives back what this thread does not need.
fn give_back() {
    #[cfg(feature = "allocator")]
    #[allow(unsafe_code, reason = "the function has no conditions; the binding is foreign, and no safe one exists")]
    // SAFETY: it may be called at any time on any thread.
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
}

/// Has memory given back whenever `wanted` says so. Never returns.
pub(crate) async fn give_back_when(wanted: impl AsyncFn()) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    loop {
        wanted().await;
        ROUND.fetch_add(1, Ordering::Relaxed);
        give_back();
        // Threads that sleep give nothing back: something to do wakes them up, and then they have nothing again.
        let mut wakers = tokio::task::JoinSet::new();
        (0..threads).for_each(|_| _ = wakers.spawn(tokio::task::yield_now()));
        wakers.join_all().await;
    }
}

/// Has memory given back when many sockets have come or gone and hardly any do so any more. `moves` counts
/// both. Never returns.
pub(crate) async fn give_back_after_storms(moves: impl Fn() -> u64) {
    let (mut before, mut given_back) = (moves(), moves());
    loop {
        tokio::time::sleep(EVERY).await;
        let now = moves();
        let since = now.saturating_sub(given_back);
        if since >= WORTH && now.saturating_sub(before) * 10 <= since {
            ROUND.fetch_add(1, Ordering::Relaxed);
            given_back = now;
        }
        before = now;
    }
}
