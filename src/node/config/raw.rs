//! The file as written: every value optional and still text, so that one reading can report every mistake at once.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use toml::Spanned;

pub(super) type Text = Option<Spanned<String>>;
pub(super) type Number = Option<Spanned<i64>>;
pub(super) type Flag = Option<Spanned<bool>>;
pub(super) type Texts = Option<Spanned<OneOrMore>>;

/// A text, or a list of them.
#[derive(Debug)]
pub(super) struct OneOrMore(pub Vec<String>);

impl<'de> Deserialize<'de> for OneOrMore {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<OneOrMore, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = OneOrMore;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMore, E> {
                Ok(OneOrMore(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<OneOrMore, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = list.next_element()? {
                    texts.push(text);
                }
                Ok(OneOrMore(texts))
            }
        }
        from.deserialize_any(Texts)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct File {
    pub site: Option<Spanned<Site>>,
    pub group: Option<Spanned<Group>>,
    pub volume: Vec<Spanned<Volume>>,
    pub journal: Option<Spanned<Journal>>,
    pub differential: Option<Spanned<Differential>>,
    pub staging: Option<Spanned<Staging>>,
    pub metadata: Option<Spanned<Metadata>>,
    pub schedule: Vec<Spanned<Schedule>>,
    pub cache: Option<Spanned<Cache>>,
    pub peer: Option<Spanned<Peer>>,
    pub link: Option<Spanned<Link>>,
    pub third: Option<Spanned<Third>>,
    pub source: Vec<Spanned<Source>>,
    pub nbd: Option<Spanned<Nbd>>,
    pub reactors: Option<Spanned<Reactors>>,
    pub log: Option<Spanned<Log>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Site {
    pub name: Text,
    pub id: Number,
    pub role: Text,
    pub directory: Text,
    pub control: Text,
    pub on_role_change: Option<Spanned<Vec<String>>>,
    pub scrub_every: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Group {
    pub name: Text,
    pub ack: Text,
    pub on_peer_loss: Text,
    pub on_differential_full: Text,
    pub differential: Text,
    pub host_deadline: Text,
    pub latency_budget: Text,
    pub heartbeat_interval: Text,
    pub resync_p99_budget: Text,
    pub flush_interval: Text,
    pub flush_bytes: Text,
    pub destage_depth: Number,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Volume {
    pub name: Text,
    pub size: Text,
    pub room: Text,
    pub space: Text,
    pub path: Text,
    pub checksums: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Journal {
    pub path: Text,
    pub size: Text,
    pub volatile: Flag,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Staging {
    pub path: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Differential {
    pub path: Text,
    pub size: Text,
    pub space: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Metadata {
    pub path: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Schedule {
    pub name: Text,
    pub every: Text,
    pub keep: Number,
    pub volumes: Vec<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Cache {
    pub size: Text,
    pub warm_up: Flag,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Peer {
    pub name: Text,
    pub id: Number,
    pub address: Text,
    pub fingerprint: Texts,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Link {
    pub listen: Text,
    pub identity: Text,
    pub mtu: Number,
    pub congestion: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Third {
    pub name: Text,
    pub id: Number,
    pub listen: Text,
    pub fingerprint: Texts,
    pub mtu: Number,
    pub congestion: Text,
    pub bandwidth_max: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Source {
    pub name: Text,
    pub id: Number,
    pub address: Text,
    pub fingerprint: Texts,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Nbd {
    pub socket: Text,
    pub tcp: Text,
    pub allow_unauthenticated_tcp: Flag,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Reactors {
    pub cores: Option<Spanned<Vec<i64>>>,
    pub group: Number,
    pub link: Number,
    pub capture: Number,
    pub front: Number,
    pub idle: Text,
    pub spin: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Log {
    pub level: Text,
    pub format: Text,
}
