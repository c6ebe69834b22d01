//! The settings of the layer in memory.

use std::time::Duration;

use super::{MemoryLayer, state::Limits};
use crate::{ChannelPattern, capacity::Capacity};

/// Makes a [`MemoryLayer`] with limits of one's own.
///
/// ```
/// use std::time::Duration;
/// use channel_layer::MemoryLayer;
///
/// let layer = MemoryLayer::builder().capacity(10).expiry(Duration::from_secs(5)).channel_capacity("jobs.*", 1000).build();
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct MemoryBuilder(Limits);

impl MemoryBuilder {
    pub(super) fn new() -> Self {
        Self(Limits {
            capacity: Capacity::new(100),
            expiry: Duration::from_secs(60),
            group_expiry: Duration::from_secs(86_400),
        })
    }

    /// How many unread events a channel holds, at least 1. Default: 100.
    pub fn capacity(mut self, events: usize) -> Self {
        self.0.capacity.set_default(events);
        self
    }

    /// How many unread events the channels of a pattern hold, at least 1. The first pattern that matches
    /// a channel's full name counts, in the order of these calls; text is a shell pattern. Default: none.
    pub fn channel_capacity(mut self, pattern: impl Into<ChannelPattern>, events: usize) -> Self {
        self.0.capacity.add(pattern.into(), events);
        self
    }

    /// How long an unread event is kept. Default: 60 seconds.
    pub fn expiry(mut self, expiry: Duration) -> Self {
        self.0.expiry = expiry;
        self
    }

    /// How long a membership lasts after the last `group_add`. Default: one day.
    pub fn group_expiry(mut self, group_expiry: Duration) -> Self {
        self.0.group_expiry = group_expiry;
        self
    }

    /// Makes the layer.
    pub fn build(self) -> MemoryLayer {
        MemoryLayer::with_limits(self.0)
    }
}
