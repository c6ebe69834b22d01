//! Asking several servers the same question.

use std::time::Duration;

use tokio::{
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use crate::{BoxError, redis::connection::OPENING};

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
