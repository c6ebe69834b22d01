//! RFC 6455 on the server's side: a decoder for what browsers send and frames that are encoded once.
//!
//! Ours and not a library's because of what a socket costs: an idle connection keeps no buffer at
//! all, and a frame for a thousand members is encoded and headed once and shared as bytes.

mod decoder;
mod frame;
pub(crate) mod handshake;
mod rewound;

pub(crate) use decoder::{Decoder, Message, ProtocolError};
pub(crate) use frame::WireFrame;
pub(crate) use rewound::Rewound;
