//! Many writes, many connects, in few statements.

pub(crate) mod admission;
pub(crate) mod batch;
pub(crate) mod store;
pub(crate) mod writer;
