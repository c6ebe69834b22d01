//! Frames on their way in: header checks before any allocation, unmasking, fragments, UTF-8.

use super::frame::{BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT};

/// More fragments than any real client makes of one message; it bounds a flood of empty ones.
const MAX_FRAGMENTS: u32 = 4096;

/// One thing a client said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// A whole text message, valid UTF-8.
    Text(String),
    /// A whole binary message.
    Binary(Vec<u8>),
    /// A ping that wants its payload (at most 125 bytes) back.
    Ping(Vec<u8>),
    /// An answer to a ping of ours, or an unsolicited one.
    Pong,
    /// A piece of a message that is not complete yet: a frame like all others, to who counts them.
    Piece,
    /// The client's close frame: its code and reason, if it gave them.
    Close(Option<(u16, String)>),
}

/// Why a connection cannot go on. `close_reason` in `consumers/connection.rs` has their codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProtocolError {
    /// A frame that RFC 6455 does not allow: 1002.
    #[error("{0}")]
    Violation(&'static str),
    /// Text, or a close reason, that is not UTF-8: 1007.
    #[error("text is not UTF-8")]
    NotUtf8,
    /// A frame or message over the limit: 1009, told from the header, before its bytes are read.
    #[error("frame or message over the limit")]
    TooLarge,
    /// One message in thousands of fragments: 1008.
    #[error("too many fragments")]
    TooManyFragments,
}

/// Turns the bytes of a client into messages. Holds memory only while a frame or a fragmented
/// message is incomplete.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// Bytes not yet decoded; `start` is where they begin.
    buffer: Vec<u8>,
    start: usize,
    /// The message that earlier fragments began.
    partial: Option<Box<Partial>>,
    limit: usize,
}

#[derive(Debug)]
struct Partial {
    text: bool,
    payload: Vec<u8>,
    /// How much of a text is known to be valid UTF-8.
    checked: usize,
    fragments: u32,
}

struct Header {
    fin: bool,
    opcode: u8,
    mask: [u8; 4],
    payload_at: usize,
    len: usize,
}

impl Decoder {
    /// A decoder that refuses frames and messages of more than `limit` bytes of payload; 0 is no limit.
    pub(crate) fn new(limit: usize) -> Self {
        let limit = if limit == 0 { usize::MAX } else { limit };
        Self { buffer: Vec::new(), start: 0, partial: None, limit }
    }

    /// Takes bytes as they were read from the socket.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// What the next frame is or completes, or `None` when more bytes are needed. After an error the stream has
    /// no meaning any more.
    pub(crate) fn next_message(&mut self) -> Result<Option<Message>, ProtocolError> {
        let Some(header) = self.header()? else {
            self.release();
            return Ok(None);
        };
        let from = self.start + header.payload_at;
        let until = from + header.len;
        if self.buffer.len() < until {
            // One allocation for the rest of a large frame instead of several doublings.
            self.buffer.reserve(until - self.buffer.len());
            return Ok(None);
        }
        unmask(&mut self.buffer[from..until], header.mask);
        self.start = until;
        let message = match header.opcode {
            PING => Message::Ping(self.buffer[from..until].to_vec()),
            PONG => Message::Pong,
            CLOSE => close(&self.buffer[from..until])?,
            _ => self.data(&header, from, until)?.unwrap_or(Message::Piece),
        };
        self.release();
        Ok(Some(message))
    }

    /// Gives the buffer back once everything in it has been decoded.
    fn release(&mut self) {
        if self.start == self.buffer.len() {
            self.buffer = Vec::new();
            self.start = 0;
        }
    }

    fn header(&self) -> Result<Option<Header>, ProtocolError> {
        let bytes = &self.buffer[self.start..];
        let &[first, second, ref rest @ ..] = bytes else {
            return Ok(None);
        };
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
        if first & 0x70 != 0 {
            return Err(ProtocolError::Violation("reserved bits are set"));
        }
        if second & 0x80 == 0 {
            return Err(ProtocolError::Violation("client frames must be masked"));
        }
        let short = second & 0x7f;
        match opcode {
            CONTINUATION | TEXT | BINARY => {}
            CLOSE | PING | PONG if !fin => {
                return Err(ProtocolError::Violation("a control frame is fragmented"));
            }
            CLOSE | PING | PONG if short > 125 => {
                return Err(ProtocolError::Violation("a control frame is too long"));
            }
            CLOSE | PING | PONG => {}
            _ => return Err(ProtocolError::Violation("reserved opcode")),
        }
        let (len, length_bytes) = match (short, rest) {
            (126, [a, b, ..]) => (u64::from(u16::from_be_bytes([*a, *b])), 2),
            (127, [a, b, c, d, e, f, g, h, ..]) => (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), 8),
            (126 | 127, _) => return Ok(None),
            (len, _) => (u64::from(len), 0),
        };
        if len > i64::MAX as u64 {
            return Err(ProtocolError::Violation("a length with its highest bit set"));
        }
        // Control frames do not count: they are 125 bytes at most, and a limit may be smaller.
        if opcode & 0x8 == 0 {
            let before = self.partial.as_ref().map_or(0, |partial| partial.payload.len());
            if len > self.limit.saturating_sub(before) as u64 {
                return Err(ProtocolError::TooLarge);
            }
        }
        let Some(&mask) = rest.get(length_bytes..).and_then(|rest| rest.first_chunk::<4>()) else {
            return Ok(None);
        };
        Ok(Some(Header { fin, opcode, mask, payload_at: 2 + length_bytes + 4, len: len as usize }))
    }

    fn data(&mut self, header: &Header, from: usize, until: usize) -> Result<Option<Message>, ProtocolError> {
        let payload = &self.buffer[from..until];
        if header.opcode == CONTINUATION {
            let Some(partial) = &mut self.partial else {
                return Err(ProtocolError::Violation("a continuation of nothing"));
            };
            partial.fragments += 1;
            if partial.fragments > MAX_FRAGMENTS {
                return Err(ProtocolError::TooManyFragments);
            }
            partial.payload.extend_from_slice(payload);
            partial.check_text(header.fin)?;
            if !header.fin {
                return Ok(None);
            }
            let Some(partial) = self.partial.take() else { return Ok(None) };
            return if partial.text {
                text(partial.payload).map(Some)
            } else {
                Ok(Some(Message::Binary(partial.payload)))
            };
        }
        if self.partial.is_some() {
            return Err(ProtocolError::Violation("a new message inside a fragmented one"));
        }
        let is_text = header.opcode == TEXT;
        if !header.fin {
            let mut partial = Partial { text: is_text, payload: payload.to_vec(), checked: 0, fragments: 1 };
            partial.check_text(false)?;
            self.partial = Some(Box::new(partial));
            return Ok(None);
        }
        if is_text { text(payload.to_vec()).map(Some) } else { Ok(Some(Message::Binary(payload.to_vec()))) }
    }
}

impl Partial {
    /// Checks what has come since the last call, so that bad text ends at its fragment and not at the end.
    fn check_text(&mut self, last: bool) -> Result<(), ProtocolError> {
        if !self.text {
            return Ok(());
        }
        match std::str::from_utf8(&self.payload[self.checked..]) {
            Ok(_) => self.checked = self.payload.len(),
            // Cut inside a character: the next fragment may complete it.
            Err(error) if error.error_len().is_none() && !last => self.checked += error.valid_up_to(),
            Err(_) => return Err(ProtocolError::NotUtf8),
        }
        Ok(())
    }
}

fn text(payload: Vec<u8>) -> Result<Message, ProtocolError> {
    String::from_utf8(payload).map(Message::Text).map_err(|_| ProtocolError::NotUtf8)
}

fn close(payload: &[u8]) -> Result<Message, ProtocolError> {
    match payload {
        [] => Ok(Message::Close(None)),
        [_] => Err(ProtocolError::Violation("a close code of one byte")),
        [a, b, reason @ ..] => {
            let code = u16::from_be_bytes([*a, *b]);
            let allowed = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
            if !allowed {
                return Err(ProtocolError::Violation("a close code that must not be sent"));
            }
            let reason = std::str::from_utf8(reason).map_err(|_| ProtocolError::NotUtf8)?;
            Ok(Message::Close(Some((code, reason.to_owned()))))
        }
    }
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from(u32::from_ne_bytes(mask)) * 0x1_0000_0001;
    let (chunks, rest) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [1, 2, 3, 4];
        let mut frame = vec![first];
        match payload.len() {
            len @ 0..=125 => frame.push(0x80 | len as u8),
            len @ 126..=0xffff => {
                frame.push(0x80 | 126);
                frame.extend((len as u16).to_be_bytes());
            }
            len => {
                frame.push(0x80 | 127);
                frame.extend((len as u64).to_be_bytes());
            }
        }
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    fn close_code(error: ProtocolError) -> u16 {
        match error {
            ProtocolError::Violation(_) => 1002,
            ProtocolError::NotUtf8 => 1007,
            ProtocolError::TooManyFragments => 1008,
            ProtocolError::TooLarge => 1009,
        }
    }

    fn decode_all(decoder: &mut Decoder) -> Result<Vec<Message>, ProtocolError> {
        let mut messages = Vec::new();
        while let Some(message) = decoder.next_message()? {
            messages.push(message);
        }
        Ok(messages)
    }

    #[test]
    fn fragments_with_a_ping_between_make_one_message() {
        let mut decoder = Decoder::new(100);
        decoder.feed(&[masked(0x01, b"he"), masked(0x89, b"?"), masked(0x80, b"llo")].concat());
        let heard = vec![Message::Piece, Message::Ping(b"?".to_vec()), Message::Text("hello".into())];
        assert_eq!(decode_all(&mut decoder), Ok(heard));
        assert_eq!(decoder.buffer.capacity(), 0, "an idle decoder holds no memory");
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_from_its_header() {
        let mut decoder = Decoder::new(65_536);
        decoder.feed(&[0x81, 0xff, 0, 0, 0, 0, 0, 1, 0, 1]);
        assert_eq!(decoder.next_message(), Err(ProtocolError::TooLarge));
        let mut decoder = Decoder::new(10);
        decoder.feed(&[masked(0x01, b"12345"), masked(0x80, b"678901")].concat());
        assert_eq!(decode_all(&mut decoder), Err(ProtocolError::TooLarge));
        let mut decoder = Decoder::new(0);
        decoder.feed(&[0x81, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(decoder.next_message().map_err(close_code), Err(1002));
    }

    #[test]
    fn a_flood_of_empty_fragments_ends() {
        let mut decoder = Decoder::new(100);
        decoder.feed(&masked(0x01, b""));
        for _ in 0..MAX_FRAGMENTS {
            decoder.feed(&masked(0x00, b""));
        }
        assert_eq!(decode_all(&mut decoder), Err(ProtocolError::TooManyFragments));
    }

    #[test]
    fn bad_frames_have_their_codes() {
        let cases: [(Vec<u8>, u16); 10] = [
            (masked(0xc1, b""), 1002),
            (vec![0x81, 0x00], 1002),
            (masked(0x83, b""), 1002),
            (masked(0x09, b""), 1002),
            (masked(0x89, &[0; 126]), 1002),
            (masked(0x80, b"x"), 1002),
            (masked(0x88, b"x"), 1002),
            (masked(0x88, &1005u16.to_be_bytes()), 1002),
            (masked(0x81, b"\xff"), 1007),
            ([masked(0x01, b"ok\xf0\x9f"), masked(0x00, b"x")].concat(), 1007),
        ];
        for (bytes, code) in cases {
            let mut decoder = Decoder::new(1000);
            decoder.feed(&bytes);
            assert_eq!(decode_all(&mut decoder).map_err(close_code), Err(code), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_cut_of_the_bytes_gives_the_same_messages(
            payloads in proptest::collection::vec("\\PC{0,200}", 1..5),
            cut in 1usize..50,
        ) {
            let bytes: Vec<u8> = payloads.iter().flat_map(|text| masked(0x81, text.as_bytes())).collect();
            let mut decoder = Decoder::new(0);
            let mut messages = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.feed(piece);
                messages.extend(decode_all(&mut decoder).unwrap());
            }
            prop_assert_eq!(messages, payloads.into_iter().map(Message::Text).collect::<Vec<_>>());
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::new(1000);
            decoder.feed(&bytes);
            let _ = decode_all(&mut decoder);
        }
    }
}
