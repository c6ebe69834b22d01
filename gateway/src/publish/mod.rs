//! What services publish: envelopes, and the bytes that they may take.

pub(crate) mod budget;
pub(crate) mod changes;
pub(crate) mod envelope;
