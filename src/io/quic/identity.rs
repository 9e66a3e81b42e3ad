//! A site's identity: a self-signed certificate and its key in one file, known to the peer by its fingerprint.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rcgen::{CertificateParams, DnType, KeyPair};
use ring::{digest, hmac};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The only name in a site's certificate. Peers are told apart by fingerprint, never by name.
pub(super) const SERVER_NAME: &str = "lockstep";

/// Mode of an identity file: its owner alone may read the key.
const FILE_MODE: u32 = 0o600;

/// The SHA-256 of a certificate's DER encoding, written `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub fn of(certificate: &CertificateDer<'_>) -> Fingerprint {
        let digest = digest::digest(&digest::SHA256, certificate);
        Fingerprint(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A fingerprint that is not `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is `sha256:` and 64 hexadecimal digits, as `lockstep keygen` prints it, not {0:?}")]
pub struct BadFingerprint(String);

impl FromStr for Fingerprint {
    type Err = BadFingerprint;

    fn from_str(text: &str) -> Result<Fingerprint, BadFingerprint> {
        let bad = || BadFingerprint(text.to_owned());
        let digits = text.strip_prefix("sha256:").ok_or_else(bad)?.as_bytes();
        if digits.len() != 64 {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |c: u8| char::from(c).to_digit(16).ok_or_else(bad);
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Ok(Fingerprint(bytes))
    }
}

/// Fingerprints that one peer may be known by: the one it has, the one it is to have, and two of rotations that were begun and not
/// ended.
pub const FINGERPRINTS_MAX: usize = 4;

/// What a peer may be known by: from one fingerprint to [`FINGERPRINTS_MAX`], each once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprints {
    list: [Fingerprint; FINGERPRINTS_MAX],
    count: u8,
}

impl Fingerprints {
    pub fn one(fingerprint: Fingerprint) -> Fingerprints {
        Fingerprints { list: [fingerprint; FINGERPRINTS_MAX], count: 1 }
    }

    /// None if the list is empty, too long, or has one of them twice.
    pub fn of(list: &[Fingerprint]) -> Option<Fingerprints> {
        let (first, others) = list.split_first()?;
        let mut all = Fingerprints::one(*first);
        for fingerprint in others {
            if all.contain(fingerprint) || usize::from(all.count) == FINGERPRINTS_MAX {
                return None;
            }
            all.list[usize::from(all.count)] = *fingerprint;
            all.count += 1;
        }
        Some(all)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Fingerprint> {
        self.list[..usize::from(self.count)].iter()
    }

    pub fn contain(&self, fingerprint: &Fingerprint) -> bool {
        self.iter().any(|one| one == fingerprint)
    }
}

impl fmt::Display for Fingerprints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fingerprint) in self.iter().enumerate() {
            write!(f, "{}{fingerprint}", if index == 0 { "" } else { " or " })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why an identity could not be made, written or read.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot make an identity for site {site:?}: {source}")]
    Generate { site: String, source: rcgen::Error },
    #[error("identity file {path} exists; remove it first if its peers are to learn a new fingerprint")]
    Exists { path: PathBuf },
    #[error("cannot {action} identity file {path}: {source}")]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("identity file {path} has mode {mode:04o}, so others may use its key; run `chmod 600 {path}`")]
    Exposed { path: PathBuf, mode: u32 },
    #[error("identity file {path} holds no {what}: {reason}; make one with `lockstep keygen`")]
    Malformed { path: PathBuf, what: &'static str, reason: String },
}

/// A site's certificate and private key.
pub struct Identity {
    /// Both as PEM, the file's contents.
    text: String,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.fingerprint()).finish()
    }
}

impl Clone for Identity {
    fn clone(&self) -> Identity {
        Identity { text: self.text.clone(), certificate: self.certificate.clone(), key: self.key.clone_key() }
    }
}

impl Identity {
    /// A new key (ECDSA P-256) with a self-signed certificate that names the site. It does not expire: a peer trusts the
    /// fingerprint it was given, until it is given another.
    pub fn generate(site: &str) -> Result<Identity, IdentityError> {
        let failed = |source| IdentityError::Generate { site: site.to_owned(), source };
        let mut params = CertificateParams::new([SERVER_NAME.to_owned()]).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, site);
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Identity {
            text: certificate.pem() + &key.serialize_pem(),
            certificate: certificate.der().clone(),
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        })
    }

    /// Writes certificate and key, PEM, to a file that must not exist yet, with mode 0600; its folder is made if there is none.
    pub fn save(&self, path: &Path) -> Result<(), IdentityError> {
        let failed = |action| move |source| IdentityError::File { action, path: path.to_owned(), source };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(failed("make the folder of"))?;
        // It gets its name when it is whole, and not if there is one of that name.
        let mut written = path.as_os_str().to_owned();
        written.push(".new");
        let written = PathBuf::from(written);
        let _ = fs::remove_file(&written);
        let saved = self.write_to(&written).and_then(|()| fs::hard_link(&written, path));
        let _ = fs::remove_file(&written);
        match saved {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(IdentityError::Exists { path: path.to_owned() });
            }
            Err(error) => return Err(failed("write")(error)),
        }
        fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("flush the folder of"))
    }

    fn write_to(&self, path: &Path) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)?;
        file.write_all(self.text.as_bytes())?;
        file.sync_all()
    }

    /// Reads what [`Identity::save`] wrote; refuses a file that others may read.
    pub fn load(path: &Path) -> Result<Identity, IdentityError> {
        let failed = |source| IdentityError::File { action: "read", path: path.to_owned(), source };
        let mode = fs::metadata(path).map_err(failed)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Exposed { path: path.to_owned(), mode });
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        let malformed = |what| {
            move |error: rustls::pki_types::pem::Error| IdentityError::Malformed {
                path: path.to_owned(),
                what,
                reason: error.to_string(),
            }
        };
        let certificate =
            CertificateDer::from_pem_slice(text.as_bytes()).map_err(malformed("certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(malformed("private key"))?;
        Ok(Identity { text, certificate, key })
    }

    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    pub(super) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    pub(super) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    /// A secret for one purpose, the same whenever this identity is loaded.
    pub(super) fn derive(&self, purpose: &[u8]) -> [u8; 32] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.key.secret_der());
        hmac::sign(&key, purpose).as_ref().try_into().expect("HMAC-SHA-256 has 32 bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("site.pem");
        let made = Identity::generate("north").unwrap();
        // One that was interrupted leaves nothing that the next one minds.
        let unfinished = folder.path().join("site.pem.new");
        fs::write(&unfinished, "half").unwrap();
        made.save(&path).unwrap();
        assert!(!unfinished.exists());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        let loaded = Identity::load(&path).unwrap();
        assert_eq!(loaded.fingerprint(), made.fingerprint());
        assert_eq!(loaded.key(), made.key());
        assert_eq!(loaded.derive(b"x"), made.derive(b"x"));
        assert_ne!(made.derive(b"x"), made.derive(b"y"));
        assert!(matches!(made.save(&path), Err(IdentityError::Exists { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), made.text, "the refused save left the file alone");
    }

    #[test]
    fn files_that_are_no_identity_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str, mode| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let text = Identity::generate("north").unwrap().text;
        let half = text.find("-----BEGIN PRIVATE").unwrap();
        let exposed = Identity::load(&write("exposed", &text, 0o640)).unwrap_err();
        assert!(
            exposed.to_string().contains("0640") && exposed.to_string().contains("chmod 600"),
            "{exposed}"
        );
        for (name, text) in
            [("empty", ""), ("noise", "\0\u{1}ssh-ed25519"), ("key", &text[half..]), ("cert", &text[..half])]
        {
            let refused = Identity::load(&write(name, text, 0o600));
            assert!(matches!(refused, Err(IdentityError::Malformed { .. })), "{name}: {refused:?}");
        }
        assert!(matches!(Identity::load(&folder.path().join("none")), Err(IdentityError::File { .. })));
    }

    #[test]
    fn a_list_of_fingerprints_is_short_and_has_each_once() {
        let all: Vec<_> = (0..=FINGERPRINTS_MAX as u8).map(|byte| Fingerprint([byte; 32])).collect();
        assert_eq!(Fingerprints::of(&[]), None);
        assert_eq!(Fingerprints::of(&all), None, "too long");
        assert_eq!(Fingerprints::of(&[all[0], all[1], all[0]]), None, "one of them twice");
        let full = Fingerprints::of(&all[..FINGERPRINTS_MAX]).unwrap();
        assert!(full.iter().eq(&all[..FINGERPRINTS_MAX]));
        assert!(full.contain(&all[FINGERPRINTS_MAX - 1]) && !full.contain(&all[FINGERPRINTS_MAX]));
        assert_eq!(Fingerprints::of(&all[..1]), Some(Fingerprints::one(all[0])));
        assert_eq!(Fingerprints::of(&all[..2]).unwrap().to_string(), format!("{} or {}", all[0], all[1]));
    }

    #[test]
    fn fingerprints_are_read_as_they_are_written() {
        let fingerprint = Identity::generate("north").unwrap().fingerprint();
        let text = fingerprint.to_string();
        assert_eq!(text.parse(), Ok(fingerprint));
        assert_eq!(text.to_uppercase().replace("SHA", "sha").parse(), Ok(fingerprint));
        for bad in [
            "",
            "sha256:",
            &text[..70],
            &format!("{text}0"),
            &text.replace("sha256:", "sha512:"),
            &text.replace(&text[8..9], "g"),
        ] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }
}
