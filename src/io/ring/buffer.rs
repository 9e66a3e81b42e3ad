//! Heap buffers that travel into a ring with an operation and come back with its completion.

/// Bytes that were received and not yet consumed, or are to be sent, inside a buffer of fixed capacity. Recycled by its
/// owner: nothing allocates after start.
#[derive(Debug)]
pub struct OwnedBuf {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl OwnedBuf {
    pub fn new(capacity: usize) -> OwnedBuf {
        OwnedBuf { bytes: vec![0; capacity].into_boxed_slice(), start: 0, end: 0 }
    }

    /// What was received, or is still to be sent.
    pub fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Room behind the filled part.
    pub fn spare_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.end..]
    }

    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// The first `count` bytes of the spare part are now filled.
    #[track_caller]
    pub fn commit(&mut self, count: usize) {
        assert!(count <= self.bytes.len() - self.end, "{count} bytes do not fit");
        self.end += count;
    }

    /// The first `count` filled bytes were taken. An emptied buffer starts over at its beginning.
    #[track_caller]
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start, "{count} bytes are not there");
        self.start += count;
        if self.start == self.end {
            self.clear();
        }
    }

    pub fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
    }

    /// Copies as much as fits and returns how much that was.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.bytes.len() - self.end);
        self.spare_mut()[..count].copy_from_slice(&bytes[..count]);
        self.end += count;
        count
    }

    /// Moves what is filled to the beginning, so that all room is behind it.
    pub fn compact(&mut self) {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
    }
}
