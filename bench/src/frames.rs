//! RFC 6455, as much as a client of a well-behaved server needs.

use std::ops::Range;

pub(crate) const TEXT: u8 = 1;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// The server has to undo it whatever it is; that it is always the same only helps the generator.
const MASK: [u8; 4] = [0x5a, 0x17, 0xc3, 0x6e];

/// Appends a client's frame.
pub(crate) fn encode(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.push(0x80 | opcode);
    match payload.len() {
        length @ 0..=125 => out.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend((length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend((length as u64).to_be_bytes());
        }
    }
    out.extend(MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// The opcode of the server's frame that `bytes` begin with, and where its payload is; `None` if the
/// frame is not whole yet.
pub(crate) fn decode(bytes: &[u8]) -> Option<(u8, Range<usize>)> {
    let (start, length): (usize, usize) = match *bytes.get(1)? & 0x7f {
        126 => (4, u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?) as usize),
        127 => (10, usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?),
        length => (2, length as usize),
    };
    let end = start.checked_add(length)?;
    (bytes.len() >= end).then(|| (bytes[0] & 0x0f, start..end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_found_once_it_is_whole() {
        for length in [0, 5, 125, 126, 70_000] {
            let mut frame = Vec::new();
            encode(TEXT, &vec![b'x'; length], &mut frame);
            // As the server sends it: without the mask.
            let head = frame.len() - length;
            frame.drain(head - 4..head);
            frame[1] &= 0x7f;
            assert_eq!(decode(&frame[..frame.len() - 1]), None, "{length}");
            let (opcode, payload) = decode(&frame).unwrap();
            assert_eq!((opcode, payload.len(), payload.end), (TEXT, length, frame.len()));
        }
    }

    #[test]
    fn the_mask_is_applied() {
        let mut frame = Vec::new();
        encode(TEXT, b"hello", &mut frame);
        assert_eq!(frame[..2], [0x81, 0x85]);
        let payload: Vec<u8> =
            frame[6..].iter().zip(frame[2..6].iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        assert_eq!(payload, b"hello");
    }
}
