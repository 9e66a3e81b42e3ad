//! Keys that are replaced while the site runs: identities and fingerprints are read anew, and each link takes them.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::links::LinkSeen;
use super::{Control, Response};
use crate::base::SiteId;
use crate::io::quic::identity::{Fingerprint, Fingerprints, Identity};
use crate::io::quic::keys::{KeysError, KeysInUse, NewKeys};
use crate::node::config::Config;

/// Longest wait for a peer that was connected to take a new identity or to refuse it: some attempts of three seconds.
const TAKEN_MAX: Duration = Duration::from_secs(10);

/// Pause between looks whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How this site and the one at the other end of a link know each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysShown {
    /// The fingerprint of what this site shows.
    pub identity: String,
    /// It is new, and the other site has not taken it yet.
    pub unproven: bool,
    /// A newer one that the other site has refused.
    pub refused: Option<String>,
    /// What the other site may show.
    pub accepted: Vec<String>,
    /// What it has shown on the connection that is up.
    pub presented: Option<String>,
}

impl From<KeysInUse> for KeysShown {
    fn from(keys: KeysInUse) -> KeysShown {
        let KeysInUse { identity, unproven, refused, accepted, presented } = keys;
        let text = |fingerprint: Fingerprint| fingerprint.to_string();
        KeysShown {
            identity: text(identity),
            unproven,
            refused: refused.map(text),
            accepted: accepted.iter().copied().map(text).collect(),
            presented: presented.map(text),
        }
    }
}

/// What a site uses after it has read its keys anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysReloaded {
    /// Names of the other sites, and what is used with each.
    pub links: Vec<(String, KeysShown)>,
    /// The file has other changes as well, which count from the next start on.
    pub other_changes: bool,
}

/// A link, the other site's name, and what that is to be known by.
struct Place<'a> {
    name: &'a str,
    link: &'a LinkSeen,
    accepted: Fingerprints,
}

impl Control {
    pub(super) fn reload_keys(&self, disconnect: bool) -> Response {
        match self.try_to_reload_keys(disconnect) {
            Ok(reloaded) => Response::Keys(reloaded),
            Err(why) => {
                tracing::warn!("keys reload: {why}");
                Response::Failed(why)
            }
        }
    }

    fn try_to_reload_keys(&self, disconnect: bool) -> Result<KeysReloaded, String> {
        // One at a time.
        let mut in_force = self.keys_in_force.lock().unwrap_or_else(PoisonError::into_inner);
        let running = &self.config;
        let written = Config::load(&running.file).map_err(|error| error.to_string())?;
        let file = running.file.display();
        let who = |config: &Config| (config.site.id, config.site.name.clone(), config.group.name.clone());
        if who(&written) != who(running) {
            return Err(format!(
                "{file} is of another site or group than the one that runs; nothing is changed"
            ));
        }
        let places = self.places(&written)?;
        let Some(path) = identity_path(&written) else {
            return Err("this site has no other one to show an identity to".to_owned());
        };
        let identity = Identity::load(path).map_err(|error| error.to_string())?;
        let fingerprint = identity.fingerprint();
        let keys = |accepted| NewKeys { identity: identity.clone(), accepted, disconnect };
        let mut before = Vec::new();
        for Place { name, link, accepted } in &places {
            if accepted.contain(&fingerprint) {
                return Err(format!(
                    "{fingerprint} is this site's own identity, and cannot be {name}'s as well"
                ));
            }
            keys(*accepted).check().map_err(|error| error.to_string())?;
            let in_use = link.keys().map_err(|error| error.to_string())?;
            if let Some(presented) = in_use.presented
                && !accepted.contain(&presented)
                && !disconnect
            {
                return Err(still_in_use(name, presented, "nothing is changed"));
            }
            before.push(in_use);
        }
        let (mut taken, mut problems) = (Vec::new(), Vec::new());
        for (place, before) in places.iter().zip(before) {
            match take(place, keys(place.accepted)) {
                Ok(()) => taken.push((place, before)),
                Err(why) => problems.push(why),
            }
        }
        if taken.is_empty() {
            return Err(problems.join("; "));
        }
        *in_force = Some(written.clone());
        tracing::info!("the keys are loaded anew: this site is {fingerprint}");
        for (Place { name, link, accepted }, before) in taken {
            tracing::info!("{name} is accepted as {accepted}");
            let was_connected = before.presented.is_some_and(|presented| accepted.contain(&presented));
            if was_connected && before.identity != fingerprint {
                problems.extend(until_taken(name, link, fingerprint).err());
            }
        }
        if !problems.is_empty() {
            return Err(format!("the keys are loaded; {}", problems.join("; ")));
        }
        let mut links = Vec::new();
        for Place { name, link, .. } in &places {
            let unknown =
                |error| format!("the keys are loaded; what is in use with {name} cannot be told: {error}");
            let keys = link.keys().map_err(unknown)?;
            links.push(((*name).to_owned(), KeysShown::from(keys)));
        }
        Ok(KeysReloaded { links, other_changes: with_keys_of(running, &written) != written })
    }

    /// Every link that runs, with what the file says of the site at its other end.
    fn places(&self, written: &Config) -> Result<Vec<Place<'_>>, String> {
        let running = &self.config;
        let pair = running.replication.as_ref().map(|pair| (pair.peer.id, pair.peer.name.as_str()));
        let remotes = running.remotes().map(|remote| (remote.id, remote.name.as_str()));
        let links = self.links.peer.iter().chain(&self.links.remotes);
        let place = |((id, name), link)| match fingerprints_of(written, id) {
            Some(accepted) => Ok(Place { name, link, accepted }),
            None => Err(format!(
                "{} does not name {name} (id {}) any more; nothing is changed. Other sites count from the next start on",
                running.file.display(),
                id.0
            )),
        };
        pair.into_iter().chain(remotes).zip(links).map(place).collect()
    }

    /// The configuration that the site runs with: what it was started with, and the keys that were loaded last.
    pub fn config_in_force(&self) -> Config {
        let in_force = self.keys_in_force.lock().unwrap_or_else(PoisonError::into_inner);
        in_force.as_ref().map_or_else(|| self.config.clone(), |written| with_keys_of(&self.config, written))
    }
}

/// One link takes them, whatever becomes of the others.
fn take(Place { name, link, .. }: &Place<'_>, keys: NewKeys) -> Result<(), String> {
    let taken = link.take_keys(keys).map_err(|error| format!("the link with {name}: {error}"))?;
    taken.map_err(|error| match error {
        KeysError::PeerUses(presented) => {
            still_in_use(name, presented, "with it the keys stay what they were")
        }
        unusable => format!("the link with {name}: {unusable}"),
    })
}

fn still_in_use(name: &str, presented: Fingerprint, so: &str) -> String {
    format!(
        "{name} is connected as {presented}, which is not in its list any more; {so}. Let it take its new key first \
         (`lockstep keys reload` there), or cut it off with --disconnect"
    )
}

/// Waits until the other site has taken a new identity, or has refused it.
fn until_taken(name: &str, link: &LinkSeen, identity: Fingerprint) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let keys = link.keys().map_err(|error| error.to_string())?;
        if keys.refused == Some(identity) {
            return Err(format!(
                "{name} refuses this site's new identity {identity}, so {} stays in use with it; configure the new one there, too \
                 (`lockstep keys reload` there), then give the command here again",
                keys.identity
            ));
        }
        if keys.presented.is_some() && !keys.unproven {
            return Ok(());
        }
        if begun.elapsed() >= TAKEN_MAX {
            return Err(format!(
                "{name} has neither taken nor refused this site's new identity {identity} for {} s; `lockstep status` shows whether there is a \
                 connection",
                TAKEN_MAX.as_secs()
            ));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Of a site that has another one: where its identity is.
fn identity_path(config: &Config) -> Option<&std::path::Path> {
    let pair = config.replication.as_ref().map(|pair| pair.link.identity.as_path());
    pair.or_else(|| config.remotes().next().map(|remote| remote.link.identity.as_path()))
}

fn fingerprints_of(config: &Config, id: SiteId) -> Option<Fingerprints> {
    let pair = config.replication.iter().map(|pair| (pair.peer.id, pair.peer.fingerprints));
    let mut others = pair.chain(config.remotes().map(|remote| (remote.id, remote.fingerprints)));
    others.find(|(other, _)| *other == id).map(|(_, fingerprints)| fingerprints)
}

/// `config` with the identity and the fingerprints of `written`.
fn with_keys_of(config: &Config, written: &Config) -> Config {
    let mut config = config.clone();
    let identity = identity_path(written).map(std::path::Path::to_owned);
    if let Some(pair) = &mut config.replication {
        pair.peer.fingerprints = fingerprints_of(written, pair.peer.id).unwrap_or(pair.peer.fingerprints);
        pair.link.identity = identity.clone().unwrap_or(pair.link.identity.clone());
    }
    for remote in config.third.iter_mut().chain(&mut config.sources) {
        remote.fingerprints = fingerprints_of(written, remote.id).unwrap_or(remote.fingerprints);
        remote.link.identity = identity.clone().unwrap_or(remote.link.identity.clone());
    }
    config
}
