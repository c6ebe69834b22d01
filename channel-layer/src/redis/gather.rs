//! Taking from a queue what comes together.

use tokio::{sync::mpsc, task::yield_now};

/// Adds what else there is in a queue to a batch, up to so many. The first of several callers wakes whoever reads the
/// queue, and Tokio runs that task next: it would leave with one command, and the others would wait for its answer.
/// So in a crowd the others come first.
pub(super) async fn gather<T>(queue: &mut mpsc::Receiver<T>, batch: &mut Vec<T>, most: usize, crowded: bool) {
    if crowded && batch.len() < most {
        yield_now().await;
    }
    while batch.len() < most
        && let Ok(next) = queue.try_recv()
    {
        batch.push(next);
    }
}

#[cfg(test)]
mod tests {
    use tokio::{sync::oneshot, task::JoinSet};

    use super::*;

    const CALLERS: usize = 16;
    const CALLS: usize = 20;

    async fn call(queue: mpsc::Sender<oneshot::Sender<()>>) {
        for _ in 0..CALLS {
            let (reply, answer) = oneshot::channel();
            queue.send(reply).await.unwrap();
            answer.await.unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn callers_that_are_answered_together_go_together() {
        let (queue, mut calls) = mpsc::channel(CALLERS);
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            callers.spawn(call(queue.clone()));
        }
        drop(queue);
        let mut reader = JoinSet::new();
        reader.spawn(async move {
            let (mut batch, mut batches) = (Vec::new(), 0);
            while calls.recv_many(&mut batch, CALLERS).await > 0 {
                gather(&mut calls, &mut batch, CALLERS, batches > 0).await;
                batches += 1;
                batch.drain(..).for_each(|reply| reply.send(()).unwrap());
            }
            batches
        });
        callers.join_all().await;
        let batches = reader.join_all().await[0];
        // Not one that goes ahead and the others behind it, time after time.
        assert!(batches < CALLS * 3 / 2, "{batches}");
    }
}
