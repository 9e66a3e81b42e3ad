//! A server's bytes as a strict NBD client takes them apart.

use std::collections::BTreeMap;

use lockstep::format::nbd::*;

/// The replies to one option: their kinds and data.
pub fn option_replies(mut bytes: &[u8], option: u32) -> Vec<(u32, Vec<u8>)> {
    let mut replies = Vec::new();
    while !bytes.is_empty() {
        let header = OptionReplyHeader::parse(bytes.first_chunk().expect("a header")).expect("a reply");
        assert_eq!(header.option, option);
        let (data, rest) = bytes[OPTION_REPLY_HEADER_BYTES..].split_at(header.length as usize);
        replies.push((header.kind, data.to_vec()));
        bytes = rest;
    }
    replies
}

/// A request as a client sees it completed: its error, and the data or extents that came.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Done {
    pub error: Option<NbdError>,
    pub data: BTreeMap<u64, Vec<u8>>,
    pub extents: Vec<(u32, u32)>,
    pub chunks: usize,
}

impl Done {
    pub fn ok() -> Done {
        Done::default()
    }

    pub fn failed(error: NbdError) -> Done {
        Done { error: Some(error), ..Done::default() }
    }

    /// The data in one stretch, from the lowest offset.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut next = self.data.keys().next().copied();
        for (&offset, data) in &self.data {
            assert_eq!(Some(offset), next, "chunks overlap or leave a gap");
            bytes.extend_from_slice(data);
            next = Some(offset + data.len() as u64);
        }
        bytes
    }
}

/// Takes a server's bytes apart as a strict client would. `reads` says how long simple READ replies are.
pub fn replies(mut bytes: &[u8], reads: &BTreeMap<u64, u32>) -> BTreeMap<u64, Done> {
    let mut open: BTreeMap<u64, Done> = BTreeMap::new();
    let mut done = BTreeMap::new();
    while !bytes.is_empty() {
        let (header, length) = ReplyHeader::parse(bytes).expect("a reply").expect("a whole header");
        bytes = &bytes[length..];
        match header {
            ReplyHeader::Simple { cookie, error } => {
                assert!(!open.contains_key(&cookie.0), "a simple reply inside a structured one");
                let mut reply = Done { error, ..Done::default() };
                if let Some(&length) = reads.get(&cookie.0)
                    && error.is_none()
                {
                    let (data, rest) = bytes.split_at(length as usize);
                    reply.data.insert(0, data.to_vec());
                    bytes = rest;
                }
                assert!(done.insert(cookie.0, reply).is_none(), "{cookie:?} is answered twice");
            }
            ReplyHeader::Chunk { cookie, kind, done: last, length } => {
                let (payload, rest) = bytes.split_at(length as usize);
                bytes = rest;
                let mut reply = open.remove(&cookie.0).unwrap_or_default();
                reply.chunks += 1;
                if kind == chunk::OFFSET_DATA {
                    let offset = u64::from_be_bytes(*payload.first_chunk().expect("an offset"));
                    assert!(payload.len() > 8, "a content chunk has at least one byte");
                    assert!(reply.data.insert(offset, payload[8..].to_vec()).is_none());
                } else {
                    match ChunkBody::parse(kind, payload).expect("a chunk") {
                        ChunkBody::None => {}
                        ChunkBody::Hole { .. } => panic!("no holes are sent"),
                        ChunkBody::BlockStatus { extents, .. } => reply.extents = extents,
                        ChunkBody::Error { error, message } => {
                            assert!(!message.is_empty());
                            reply.error = reply.error.or(Some(error));
                        }
                    }
                }
                if last {
                    assert!(done.insert(cookie.0, reply).is_none(), "{cookie:?} is answered twice");
                } else {
                    open.insert(cookie.0, reply);
                }
            }
        }
    }
    assert!(open.is_empty(), "{open:?} never got their last chunk");
    done
}
