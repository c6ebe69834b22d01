//! The suite that every layer passes.
