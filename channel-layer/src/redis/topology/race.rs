//! Asking several servers the same question.

use std::time::Duration;

use tokio::{
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use crate::{BoxError, redis::access::OPENING};

/// How long one may be silent before the next is asked as well.
const HEAD_START: Duration = Duration::from_millis(250);

/// An answer, and how good it is.
pub(super) enum Found<T> {
    /// Nothing better can come.
    Good(T),
    /// To be used if nobody has a good one; the one of the highest rank wins.
    Doubtful(u64, T),
}

/// Asks one after another, the next as soon as the last has failed or has been silent for a while,
/// and returns the first good answer; within 2 seconds. One that hangs delays nobody for long. If none
/// is good and none doubtful, all the reasons.
pub(super) async fn race<T, F>(candidates: impl IntoIterator<Item = F>) -> Result<T, Vec<BoxError>>
where
    T: Send + 'static,
    F: Future<Output = Result<Found<T>, BoxError>> + Send + 'static,
{
    let deadline = Instant::now() + OPENING;
    let mut candidates = candidates.into_iter();
    let mut asked = JoinSet::new();
    let mut errors = Vec::new();
    let mut doubtful: Option<(u64, T)> = None;
    let mut all_asked = false;
    loop {
        match candidates.next() {
            Some(candidate) => drop(asked.spawn(candidate)),
            None => all_asked = true,
        }
        let next = match (all_asked, &doubtful) {
            (false, _) => timeout(HEAD_START, asked.join_next()).await,
            // What we have may be all there is.
            (true, Some(_)) => timeout(HEAD_START, asked.join_next()).await,
            (true, None) => timeout_at(deadline, asked.join_next()).await,
        };
        match next {
            Ok(Some(Ok(Ok(Found::Good(answer))))) => return Ok(answer),
            Ok(Some(Ok(Ok(Found::Doubtful(rank, answer))))) => {
                if doubtful.as_ref().is_none_or(|(best, _)| rank > *best) {
                    doubtful = Some((rank, answer));
                }
            }
            Ok(Some(Ok(Err(error)))) => errors.push(error),
            Ok(Some(Err(error))) => errors.push(error.into()),
            Ok(None) | Err(_) if all_asked => {
                if next.is_err() && doubtful.is_none() {
                    errors.push(format!("{} did not answer in time", asked.len()).into());
                }
                return doubtful.map(|(_, answer)| answer).ok_or(errors);
            }
            Ok(None) | Err(_) if Instant::now() > deadline => all_asked = true,
            Ok(None) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy)]
    enum Server {
        Hangs,
        Fails,
        Doubts(u64),
        Knows(u64),
    }

    async fn ask(servers: &[Server]) -> (Result<u64, usize>, Duration) {
        let began = Instant::now();
        let questions = servers.iter().copied().map(|server| async move {
            match server {
                Server::Hangs => std::future::pending().await,
                Server::Fails => Err("no".into()),
                Server::Doubts(answer) => Ok(Found::Doubtful(answer, answer)),
                Server::Knows(answer) => Ok(Found::Good(answer)),
            }
        });
        (race(questions).await.map_err(|errors| errors.len()), began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_good_answer_wins_and_nobody_who_hangs_delays_it_for_long() {
        use Server::{Doubts, Fails, Hangs, Knows};
        let soon = Duration::from_millis(600);
        for (servers, wanted) in [
            (&[Knows(1), Knows(2)][..], 1),
            (&[Fails, Knows(2)], 2),
            (&[Hangs, Hangs, Knows(3)], 3),
            (&[Doubts(9), Knows(2)], 2),
            (&[Doubts(4), Doubts(9), Doubts(5), Fails], 9),
            (&[Hangs, Doubts(7)], 7),
        ] {
            let (result, after) = ask(servers).await;
            assert!(result == Ok(wanted) && after < soon, "{result:?} after {after:?}, not {wanted}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_within_two_seconds_with_every_reason() {
        use Server::{Fails, Hangs};
        for (servers, errors) in [(&[][..], 0), (&[Fails, Fails], 2), (&[Fails, Hangs], 2), (&[Hangs; 100], 1)] {
            let (result, after) = ask(servers).await;
            assert_eq!(result, Err(errors));
            assert!(after < OPENING + HEAD_START * 2, "{after:?}");
        }
    }
}
