//! Frames out of a byte stream that arrives in pieces of any size.

use crate::format::wire::{
    FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES, Frame, FrameHeader, WireError, decode_body, decode_header,
};

/// Collects one frame's header and body at a time; payload bytes never pass through it, so they are copied once, by the
/// caller, from the stream to where they stay.
///
/// ```text
/// loop {
///     while reader.payload_left() > 0 { copy some of the input to the update's pages; reader.take_payload(copied); }
///     match reader.feed(&mut input)? { Some(frame) => handle it, None => wait for more input }
/// }
/// ```
#[derive(Clone)]
pub struct FrameReader {
    buffer: [u8; FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX],
    filled: usize,
    header: Option<FrameHeader>,
    payload_left: usize,
    failed: Option<WireError>,
}

impl FrameReader {
    pub fn new() -> FrameReader {
        FrameReader {
            buffer: [0; FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX],
            filled: 0,
            header: None,
            payload_left: 0,
            failed: None,
        }
    }

    /// Consumes bytes from the front of `input` up to the end of a frame's body, and gives that frame; `None` when the
    /// input ended before. After a frame with payload, [`FrameReader::payload_left`] bytes of it come first.
    ///
    /// An error is final: the stream has lost its framing, and every later call returns the same error.
    /// Panics while payload is left.
    pub fn feed<'a>(&'a mut self, input: &mut &[u8]) -> Result<Option<Frame<'a>>, WireError> {
        assert!(self.payload_left == 0, "{} bytes of payload come before the next frame", self.payload_left);
        if let Some(error) = self.failed {
            return Err(error);
        }
        match self.advance(input) {
            Ok(None) => Ok(None),
            Ok(Some(header)) => {
                let body = &self.buffer[FRAME_HEADER_BYTES..self.filled];
                self.filled = 0;
                self.header = None;
                let frame = decode_body(&header, body).inspect_err(|error| self.failed = Some(*error))?;
                self.payload_left = header.payload_bytes as usize;
                Ok(Some(frame))
            }
            Err(error) => {
                self.failed = Some(error);
                Err(error)
            }
        }
    }

    /// The header of the frame whose body is now complete in the buffer.
    fn advance(&mut self, input: &mut &[u8]) -> Result<Option<FrameHeader>, WireError> {
        let header = match self.header {
            Some(header) => header,
            None => {
                if !self.fill(input, FRAME_HEADER_BYTES) {
                    return Ok(None);
                }
                let (headers, _) = self.buffer.as_chunks::<FRAME_HEADER_BYTES>();
                *self.header.insert(decode_header(&headers[0])?)
            }
        };
        let complete = self.fill(input, FRAME_HEADER_BYTES + usize::from(header.body_bytes));
        Ok(complete.then_some(header))
    }

    /// Whether the buffer now holds `upto` bytes of the frame.
    fn fill(&mut self, input: &mut &[u8], upto: usize) -> bool {
        let taken = input.len().min(upto - self.filled);
        let (head, rest) = input.split_at(taken);
        self.buffer[self.filled..self.filled + taken].copy_from_slice(head);
        self.filled += taken;
        *input = rest;
        self.filled == upto
    }

    /// Bytes of the last frame's payload that the caller has yet to take from the stream.
    pub fn payload_left(&self) -> usize {
        self.payload_left
    }

    /// The caller took `bytes` of payload from the stream. Panics if that is more than was left.
    pub fn take_payload(&mut self, bytes: usize) {
        assert!(bytes <= self.payload_left, "{bytes} bytes taken of {} left", self.payload_left);
        self.payload_left -= bytes;
    }

    /// Whether the stream could end here without cutting a frame.
    pub fn at_boundary(&self) -> bool {
        self.filled == 0 && self.payload_left == 0 && self.failed.is_none()
    }
}

impl Default for FrameReader {
    fn default() -> FrameReader {
        FrameReader::new()
    }
}
