//! The other sites of a group: a peer, a third, or what a third pulls from.

use super::*;
use crate::io::quic::identity::FINGERPRINTS_MAX;

/// What a configuration says of them.
pub(super) struct Others {
    pub replication: Option<Replication>,
    pub third: Option<Remote>,
    pub sources: Vec<Remote>,
}

impl Reader<'_> {
    pub(super) fn others(
        &mut self,
        peer: Option<Spanned<raw::Peer>>,
        link: Option<Spanned<raw::Link>>,
        third: Option<Spanned<raw::Third>>,
        sources: Vec<Spanned<raw::Source>>,
        site: Option<&Site>,
        directory: &Path,
    ) -> Option<Others> {
        if site.is_some_and(|site| site.role == Role::Third) {
            for (key, at) in
                [("peer", peer.as_ref().map(Spanned::span)), ("third", third.as_ref().map(Spanned::span))]
            {
                if at.is_some() {
                    let message =
                        "a third has no such section; name the sites that it pulls from as [[source]]";
                    self.problems.add(key, at, message);
                }
            }
            let sources = self.sources(sources, section(link), site, directory)?;
            return Some(Others { replication: None, third: None, sources });
        }
        if let Some(source) = sources.first() {
            let message = "only a site with the role \"third\" pulls from others; remove this section";
            self.problems.add("source", Some(source.span()), message);
        }
        let replication = self.replication(peer, link, site, directory)?;
        let third = match third {
            None => None,
            Some(written) => Some(self.third(section(Some(written)), replication.as_ref(), site)?),
        };
        Some(Others { replication, third, sources: Vec::new() })
    }

    /// The third dials, so this site knows it by its fingerprint alone.
    fn third(
        &mut self,
        Section { at, keys }: Section<raw::Third>,
        pair: Option<&Replication>,
        site: Option<&Site>,
    ) -> Option<Remote> {
        let name = self.other_name("third.name", keys.name, &at, "the third site's name", site);
        let id_at = keys.id.as_ref().map(Spanned::span);
        let id = self.other_id("third.id", keys.id, &at, site);
        let Some(pair) = pair else {
            let message = "a third needs a pair to pull from; add [peer] and [link]";
            self.problems.add("third", at, message);
            return None;
        };
        if id == Some(pair.peer.id) {
            let message = format!("{} is the peer's id; each site needs its own", pair.peer.id.0);
            self.problems.add("third.id", id_at, message);
        }
        let remedy = "the UDP address where the third reaches this site, like \"10.0.0.1:7401\"";
        let listen_at = keys.listen.as_ref().map(Spanned::span);
        let listen = self.address("third.listen", keys.listen, &at, remedy);
        if listen == Some(pair.link.listen) {
            let message = format!("{} is link.listen; each link has an address of its own", pair.link.listen);
            self.problems.add("third.listen", listen_at, message);
        }
        let fingerprints = self.fingerprints("third.fingerprint", keys.fingerprint, &at);
        let mtu = self.mtu("third.mtu", keys.mtu);
        let congestion = self.congestion("third.congestion", keys.congestion, Congestion::Shared);
        let range = limits::THIRD_BANDWIDTH_MIN..=limits::THIRD_BANDWIDTH_MAX;
        let bandwidth_max = match keys.bandwidth_max {
            None => Some(None),
            written => self.size("third.bandwidth_max", written, None, &at, range).map(Some),
        };
        let link = Link {
            listen: listen?,
            identity: pair.link.identity.clone(),
            mtu: mtu?,
            congestion: congestion?,
        };
        Some(Remote {
            name: name?,
            id: id?,
            address: None,
            fingerprints: fingerprints?,
            link,
            bandwidth_max: bandwidth_max?,
        })
    }

    fn sources(
        &mut self,
        written: Vec<Spanned<raw::Source>>,
        Section { at, keys }: Section<raw::Link>,
        site: Option<&Site>,
        directory: &Path,
    ) -> Option<Vec<Remote>> {
        if written.is_empty() || written.len() > SOURCES_MAX {
            let message = format!(
                "a third has one or two [[source]] sections, the sites that it pulls from in order of preference; there are {}",
                written.len()
            );
            self.problems.add("source", written.get(SOURCES_MAX).map(Spanned::span), message);
            return None;
        }
        if keys.listen.is_some() {
            let message = "a third dials, and needs no address of its own; remove this";
            self.problems.add("link.listen", at, message);
        }
        let identity = self.path("link.identity", keys.identity, directory, "identity.pem");
        let mtu = self.mtu("link.mtu", keys.mtu);
        let congestion = self.congestion("link.congestion", keys.congestion, Congestion::Shared);
        let mut sources: Vec<Remote> = Vec::new();
        let mut whole = true;
        for entry in written {
            let at = Some(entry.span());
            let keys = entry.into_inner();
            let name = self.other_name("source.name", keys.name, &at, "that site's name", site);
            let id_at = keys.id.as_ref().map(Spanned::span);
            let id = self.other_id("source.id", keys.id, &at, site);
            if sources.iter().any(|source| Some(source.id) == id) {
                let message = "is the id of another source; each site needs its own";
                self.problems.add("source.id", id_at, message);
            }
            let remedy = "that site's third.listen, like \"10.0.0.1:7401\"";
            let address = self.address("source.address", keys.address, &at, remedy);
            let fingerprints = self.fingerprints("source.fingerprint", keys.fingerprint, &at);
            let (Some(name), Some(id), Some(address), Some(fingerprints), Some(mtu), Some(congestion)) =
                (name, id, address, fingerprints, mtu, congestion)
            else {
                whole = false;
                continue;
            };
            let any = if address.is_ipv4() {
                SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
            } else {
                SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
            };
            let link = Link { listen: any, identity: identity.clone(), mtu, congestion };
            sources.push(Remote {
                name,
                id,
                address: Some(address),
                fingerprints,
                link,
                bandwidth_max: None,
            });
        }
        whole.then_some(sources)
    }

    /// Commands and messages know a site by its name.
    fn other_name(
        &mut self,
        key: &str,
        written: raw::Text,
        at: &Span,
        remedy: &str,
        site: Option<&Site>,
    ) -> Option<String> {
        let name_at = written.as_ref().map(Spanned::span);
        let name = self.name(key, written, at, remedy)?;
        if site.is_some_and(|site| site.name == name) {
            let message = format!("\"{name}\" is this site's own name; write {remedy}");
            self.problems.add(key, name_at, message);
        }
        Some(name)
    }

    fn other_id(
        &mut self,
        key: &str,
        written: raw::Number,
        at: &Span,
        site: Option<&Site>,
    ) -> Option<SiteId> {
        let id_at = written.as_ref().map(Spanned::span);
        let id = self.id(key, written, at)?;
        if site.is_some_and(|site| site.id == id) {
            let message = format!("{} is this site's own id; the sites need different ones", id.0);
            self.problems.add(key, id_at, message);
        }
        Some(id)
    }

    fn mtu(&mut self, key: &str, written: raw::Number) -> Option<Option<u16>> {
        let Some(written) = written else { return Some(None) };
        let mtu = self.number(key, Some(written), 0, limits::MTU_MIN..=limits::MTU_MAX)?;
        Some(Some(mtu as u16))
    }

    fn congestion(&mut self, key: &str, written: raw::Text, default: Congestion) -> Option<Congestion> {
        let kinds = [("dedicated", Congestion::Dedicated), ("shared", Congestion::Shared)];
        written.map_or(Some(default), |written| self.choice(key, &written, &kinds))
    }

    /// Outer `None`: there were problems; inner: no peer is configured.
    fn replication(
        &mut self,
        peer: Option<Spanned<raw::Peer>>,
        link: Option<Spanned<raw::Link>>,
        site: Option<&Site>,
        directory: &Path,
    ) -> Option<Option<Replication>> {
        if peer.is_none() {
            if let Some(link) = link {
                let message =
                    "there is no [peer] to link to; add that section, or remove [link] for a site of its own";
                self.problems.add("link", Some(link.span()), message);
            }
            if site.is_some_and(|site| site.role == Role::Secondary) {
                let message = "a secondary needs a [peer]: the primary that it follows";
                self.problems.add("peer", None, message);
            }
            return Some(None);
        }
        let Section { at, keys } = section(peer);
        let name = self.other_name("peer.name", keys.name, &at, "the other site's name", site);
        let id = self.other_id("peer.id", keys.id, &at, site);
        let remedy = "the other site's link.listen, like \"10.0.0.2:7400\"";
        let address_at = keys.address.as_ref().map(Spanned::span);
        let address = self.address("peer.address", keys.address, &at, remedy);
        let fingerprints = self.fingerprints("peer.fingerprint", keys.fingerprint, &at);
        let Section { at, keys } = section(link);
        let listen = self.address(
            "link.listen",
            keys.listen,
            &at,
            "the UDP address of this end, like \"10.0.0.1:7400\"",
        );
        if let Some(address) = address.filter(|address| Some(*address) == listen) {
            let message = format!("{address} is this site's own link.listen; write {remedy}");
            self.problems.add("peer.address", address_at, message);
        }
        let identity = self.path("link.identity", keys.identity, directory, "identity.pem");
        let mtu = self.mtu("link.mtu", keys.mtu);
        let congestion = self.congestion("link.congestion", keys.congestion, Congestion::Dedicated);
        Some(Some(Replication {
            peer: Peer { name: name?, id: id?, address: address?, fingerprints: fingerprints? },
            link: Link { listen: listen?, identity, mtu: mtu?, congestion: congestion? },
        }))
    }

    fn fingerprints(&mut self, key: &str, written: raw::Texts, at: &Span) -> Option<Fingerprints> {
        let remedy = "what `lockstep keygen` printed on the other site";
        let written = self.required(key, written, at, remedy)?;
        let at = Some(written.span());
        let mut list = Vec::new();
        for text in &written.get_ref().0 {
            match text.parse() {
                Ok(fingerprint) => list.push(fingerprint),
                Err(error) => {
                    self.problems.add(key, at, format!("{error}; write {remedy}"));
                    return None;
                }
            }
        }
        let fingerprints = Fingerprints::of(&list);
        if fingerprints.is_none() {
            let message = format!(
                "is a list of {}; write one, or up to {FINGERPRINTS_MAX} that are not the same while that site's key is replaced",
                list.len()
            );
            self.problems.add(key, at, message);
        }
        fingerprints
    }
}
