//! How many bytes a kind of work may take on this node, shared by all who do it.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Bytes to be had. Who comes first gets them first, however many somebody behind wants.
#[derive(Debug)]
pub(crate) struct Budget {
    free: Semaphore,
    whole: u32,
}

/// Bytes of a budget; free again when this is dropped.
pub(crate) type Share<'a> = SemaphorePermit<'a>;

impl Budget {
    pub(crate) fn new(bytes: u32) -> Self {
        Self { free: Semaphore::new(bytes as usize), whole: bytes }
    }

    /// Waits until so many bytes are free. Who wants more than there are gets all of them.
    pub(crate) async fn take(&self, bytes: usize) -> Option<Share<'_>> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.whole);
        // The semaphore is never closed, so there is always one in the end.
        self.free.acquire_many(bytes).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn who_wants_more_than_there_is_gets_all_and_the_others_wait() {
        let budget = Budget::new(100);
        let small = budget.take(1).await;
        assert!(budget.take(1_000).now_or_never().is_none());
        drop(small);
        let all = budget.take(usize::MAX).await;
        assert!(budget.take(1).now_or_never().is_none());
        drop(all);
        assert!(budget.take(100).now_or_never().is_some());
    }
}
