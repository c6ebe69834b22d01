//! Many small requests made into few large ones: what waits while one batch is under way is the next batch.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A handle to a batching worker. `K` asks, `V` answers, `E` is shared by all that were in a failed batch.
pub(crate) struct Batcher<K, V, E> {
    requests: mpsc::Sender<Request<K, V, E>>,
}

struct Request<K, V, E> {
    key: K,
    answer: oneshot::Sender<Result<V, Arc<E>>>,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BatchError<E: std::error::Error + 'static> {
    /// The whole batch failed.
    #[error("{0}")]
    Failed(#[source] Arc<E>),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
}

impl<K, V, E> Batcher<K, V, E>
where
    K: Send + 'static,
    V: Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    /// Starts a worker that calls `work` with up to `max` keys; it answers with one value per key, in their order.
    /// It ends with `stop`.
    pub(crate) fn spawn<W, F>(tasks: &TaskTracker, stop: &CancellationToken, max: usize, work: W) -> Self
    where
        W: Fn(Vec<K>) -> F + Send + 'static,
        F: Future<Output = Result<Vec<V>, E>> + Send,
    {
        let (requests, mut incoming) = mpsc::channel::<Request<K, V, E>>(max * 2);
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            let mut waiting = Vec::with_capacity(max);
            while incoming.recv_many(&mut waiting, max).await > 0 {
                let (keys, answers): (Vec<K>, Vec<_>) =
                    waiting.drain(..).map(|request| (request.key, request.answer)).unzip();
                // Whoever has gone away in the meantime does not hear the answer; that is all right.
                match work(keys).await {
                    Ok(values) => {
                        values.into_iter().zip(answers).for_each(|(value, answer)| drop(answer.send(Ok(value))))
                    }
                    Err(error) => {
                        let error = Arc::new(error);
                        answers.into_iter().for_each(|answer| drop(answer.send(Err(Arc::clone(&error)))));
                    }
                }
            }
        }));
        Self { requests }
    }

    /// Asks, and waits for the batch that the question is part of.
    pub(crate) async fn load(&self, key: K) -> Result<V, BatchError<E>> {
        let (answer, result) = oneshot::channel();
        self.requests.send(Request { key, answer }).await.map_err(|_| BatchError::Stopped)?;
        result.await.map_err(|_| BatchError::Stopped)?.map_err(BatchError::Failed)
    }
}

impl<K, V, E> std::fmt::Debug for Batcher<K, V, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Batcher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn what_waits_together_is_asked_together() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let batcher: Batcher<u32, u32, std::io::Error> =
            Batcher::spawn(&TaskTracker::new(), &CancellationToken::new(), 100, move |keys| {
                counted.fetch_add(1, Ordering::Relaxed);
                async move { Ok(keys.into_iter().map(|key| key * 2).collect()) }
            });
        let answers = futures_util::future::join_all((0..50).map(|key| batcher.load(key))).await;
        assert!(answers.into_iter().enumerate().all(|(key, answer)| answer.unwrap() == key as u32 * 2));
        assert!(calls.load(Ordering::Relaxed) < 10);
    }

    #[tokio::test]
    async fn a_failed_batch_fails_all_its_questions() {
        let batcher: Batcher<u32, u32, std::io::Error> =
            Batcher::spawn(&TaskTracker::new(), &CancellationToken::new(), 100, |_| async {
                Err(std::io::Error::other("no"))
            });
        assert!(matches!(batcher.load(1).await, Err(BatchError::Failed(_))));
    }
}
