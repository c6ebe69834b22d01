//! What services publish: envelopes, and the bytes that they may take.

pub(crate) mod changes;
pub(crate) mod envelope;
pub(crate) mod ingest;
