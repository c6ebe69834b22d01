//! Handing events over to a relay's sink.

use crate::{Delivery, RelaySink};

/// Gives a batch to a sink and empties it. A panic in the sink must not end the reader, and with it
/// every other connection.
pub(super) fn hand_over(sink: &dyn RelaySink, batch: &mut Vec<Delivery>) {
    let call = std::panic::AssertUnwindSafe(|| sink.deliver(batch));
    if std::panic::catch_unwind(call).is_err() {
        tracing::error!("a relay's sink panicked; its events of this moment are lost");
    }
    batch.clear();
}
