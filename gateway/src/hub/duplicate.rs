//! One event that reaches one socket on two ways: as a member of a group through this node, and under
//! its own channel name.
//!
//! On the core layer a message names all its readers. When Django has put a socket's channel into a
//! group that the socket hears through its node anyway, one message names both, and the relay is given
//! both with the same event. On pub/sub no event is ever for a group and a channel.

use std::sync::Arc;

use channel_layer::{ChannelName, Delivery, Event, GroupName};

/// An event for one socket, with the group the very same event has come for.
pub(super) struct Duplicate {
    pub(super) group: GroupName,
    pub(super) channel: ChannelName,
    pub(super) event: Arc<Event>,
}

/// Takes the duplicates out of a batch: nearly always none, which one look at each delivery tells. The
/// deliveries of one event stand side by side.
pub(super) fn take(batch: &mut Vec<Delivery>) -> Vec<Duplicate> {
    let mut duplicates: Vec<Duplicate> = Vec::new();
    if !batch.iter().any(|delivery| matches!(delivery, Delivery::Channel { .. })) {
        return duplicates;
    }
    for same in batch.chunk_by(is_same_event) {
        let group = same.iter().find_map(|delivery| match delivery {
            Delivery::Group { group, .. } => Some(group),
            _ => None,
        });
        let Some(group) = group else { continue };
        duplicates.extend(same.iter().filter_map(|delivery| match delivery {
            Delivery::Channel { channel, event } => {
                Some(Duplicate { group: group.clone(), channel: channel.clone(), event: Arc::clone(event) })
            }
            _ => None,
        }));
    }
    if !duplicates.is_empty() {
        let mut left = duplicates.iter().peekable();
        // Both are in the batch's order.
        batch.retain(|delivery| match (delivery, left.peek()) {
            (Delivery::Channel { channel, event }, Some(duplicate))
                if Arc::ptr_eq(event, &duplicate.event) && *channel == duplicate.channel =>
            {
                left.next();
                false
            }
            _ => true,
        });
    }
    duplicates
}

fn is_same_event(one: &Delivery, other: &Delivery) -> bool {
    match (event(one), event(other)) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        _ => false,
    }
}

fn event(delivery: &Delivery) -> Option<&Arc<Event>> {
    match delivery {
        Delivery::Group { event, .. } | Delivery::Channel { event, .. } => Some(event),
        Delivery::Disconnected | Delivery::Reconnected(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, event: &Arc<Event>) -> Delivery {
        Delivery::Group { group: GroupName::parse(name).unwrap(), event: Arc::clone(event) }
    }

    fn channel(name: &str, event: &Arc<Event>) -> Delivery {
        Delivery::Channel { channel: ChannelName::parse(name).unwrap(), event: Arc::clone(event) }
    }

    #[test]
    fn only_what_has_come_both_ways_with_one_event_is_taken() {
        let events: Vec<Arc<Event>> = (0..4).map(|_| Arc::new(Event::new("x"))).collect();
        let mut batch = vec![
            channel("a!1", &events[0]),
            channel("a!2", &events[1]),
            group("g", &events[1]),
            channel("a!1", &events[1]),
            Delivery::Disconnected,
            group("g", &events[2]),
            channel("a!1", &events[3]),
        ];
        let duplicates = take(&mut batch);
        let taken: Vec<_> =
            duplicates.iter().map(|duplicate| (duplicate.group.as_str(), duplicate.channel.as_str())).collect();
        assert_eq!(taken, [("g", "a!2"), ("g", "a!1")]);
        assert_eq!(batch.len(), 5);
        let mut batch = vec![group("g", &events[0]), group("h", &events[1])];
        assert!(take(&mut batch).is_empty() && batch.len() == 2);
    }
}
