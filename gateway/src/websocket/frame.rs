//! Frames on their way out: header and payload in one shared buffer.

use std::cell::RefCell;

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;

pub(super) const CONTINUATION: u8 = 0x0;
pub(super) const TEXT: u8 = 0x1;
pub(super) const BINARY: u8 = 0x2;
pub(super) const CLOSE: u8 = 0x8;
pub(super) const PING: u8 = 0x9;
pub(super) const PONG: u8 = 0xa;

/// The most that a thread keeps for writing.
const KEPT: usize = 64 * 1024;

/// A complete, unmasked WebSocket frame, or several. Cloning shares the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WireFrame(Bytes);

impl WireFrame {
    /// A text frame.
    pub(crate) fn text(payload: &str) -> Self {
        Self::encode(TEXT, payload.as_bytes())
    }

    /// A text frame of JSON.
    pub(crate) fn json(value: &impl Serialize) -> serde_json::Result<Self> {
        thread_local! {
            static TEXT_OUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        // Written where there is room already, so that what is kept is allocated once and in its size.
        let mut text = TEXT_OUT.take();
        text.clear();
        let frame = serde_json::to_writer(&mut text, value).map(|()| Self::encode(TEXT, &text));
        if text.capacity() <= KEPT {
            TEXT_OUT.set(text);
        }
        frame
    }

    /// A binary frame.
    pub(crate) fn binary(payload: &[u8]) -> Self {
        Self::encode(BINARY, payload)
    }

    /// A ping without payload; it allocates nothing.
    pub(crate) fn ping() -> Self {
        Self(Bytes::from_static(&[0x80 | PING, 0]))
    }

    /// The pong that answers a ping with this payload (at most 125 bytes, which the decoder has checked).
    pub(crate) fn pong(payload: &[u8]) -> Self {
        Self::encode(PONG, payload)
    }

    /// A close frame. The reason is cut to the 123 bytes that fit into a control frame.
    pub(crate) fn close(code: u16, reason: &str) -> Self {
        let end = reason.floor_char_boundary(123);
        let mut payload = Vec::with_capacity(2 + end);
        payload.extend_from_slice(&code.to_be_bytes());
        payload.extend_from_slice(&reason.as_bytes()[..end]);
        Self::encode(CLOSE, &payload)
    }

    /// A close frame without a code, the answer to a client that gave none.
    pub(crate) fn close_empty() -> Self {
        Self(Bytes::from_static(&[0x80 | CLOSE, 0]))
    }

    /// Several frames in one piece, to be written one after another.
    pub(crate) fn join(frames: &[&Self]) -> Self {
        let mut joined = BytesMut::with_capacity(frames.iter().map(|frame| frame.len()).sum());
        frames.iter().for_each(|frame| joined.put_slice(frame.as_bytes()));
        Self(joined.freeze())
    }

    fn encode(opcode: u8, payload: &[u8]) -> Self {
        let mut frame = BytesMut::with_capacity(payload.len() + 10);
        frame.put_u8(0x80 | opcode);
        match payload.len() {
            len @ 0..=125 => frame.put_u8(len as u8),
            len @ 126..=0xffff => {
                frame.put_u8(126);
                frame.put_u16(len as u16);
            }
            len => {
                frame.put_u8(127);
                frame.put_u64(len as u64);
            }
        }
        frame.put_slice(payload);
        Self(frame.freeze())
    }

    /// Header and payload, as they go to the socket.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_the_shortest_form() {
        for (len, header) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let frame = WireFrame::text(&"x".repeat(len));
            assert_eq!(frame.len(), header + len);
            assert_eq!(frame.as_bytes()[0], 0x81);
        }
    }

    #[test]
    fn a_close_reason_is_cut_at_a_character() {
        let frame = WireFrame::close(4008, &"é".repeat(100));
        assert_eq!(frame.len(), 2 + 2 + 122);
        assert!(std::str::from_utf8(&frame.as_bytes()[4..]).is_ok());
    }
}
