//! Keys that change while a link is in use: what it is told, and what it tells.

use std::sync::Arc;

use crossbeam_queue::ArrayQueue;

use super::identity::{Fingerprint, Fingerprints, Identity};
use super::tls::Credentials;

/// What a link is to use from here on.
#[derive(Clone, Debug)]
pub struct NewKeys {
    /// What this site shows its peer.
    pub identity: Identity,
    /// What the peer may be known by.
    pub accepted: Fingerprints,
    /// Whether a connection is ended whose peer has shown what is no longer accepted. Without, keys that would end one are refused.
    pub disconnect: bool,
}

impl NewKeys {
    /// Whether a link can use them at all. Errs if the key does not fit its certificate.
    pub fn check(&self) -> Result<(), KeysError> {
        let credentials = Credentials::new(&self.identity, self.accepted, Arc::new(ArrayQueue::new(1)));
        credentials.client().and(Ok(())).and_then(|()| credentials.server().and(Ok(()))).map_err(|error| {
            KeysError::Unusable { identity: self.identity.fingerprint(), reason: error.to_string() }
        })
    }
}

/// Why a link does not take keys; it goes on with those it has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    #[error("the peer is connected as {0}, which is not in the list any more")]
    PeerUses(Fingerprint),
    #[error("the identity {identity} is unusable: {reason}; make one with `lockstep keygen`")]
    Unusable { identity: Fingerprint, reason: String },
}

/// What a link uses now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeysInUse {
    pub identity: Fingerprint,
    /// The identity is new, and the peer has neither taken nor refused it yet.
    pub unproven: bool,
    /// A newer identity of this site, which the peer has refused: the one before stayed in use.
    pub refused: Option<Fingerprint>,
    pub accepted: Fingerprints,
    /// What the peer has shown on the connection that is up.
    pub presented: Option<Fingerprint>,
}

/// What the control plane asks a link.
#[derive(Debug)]
pub enum LinkQuestion {
    Keys,
    Take(Box<NewKeys>),
}

#[derive(Debug)]
pub enum LinkAnswer {
    Keys(KeysInUse),
    Taken(Result<(), KeysError>),
}
