//! NBD URIs (`doc/uri.md` of the reference implementation), without TLS.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The port IANA gave to NBD.
const PORT: u16 = 10809;

/// Where an export is: `nbd+unix:///EXPORT?socket=PATH` or `nbd://HOST[:PORT]/EXPORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    pub address: NbdAddress,
    /// Empty for the server's default export.
    pub export: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdAddress {
    Unix(PathBuf),
    Tcp { host: String, port: u16 },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{uri} is no NBD address: {why}; write nbd+unix:///EXPORT?socket=PATH or nbd://HOST:PORT/EXPORT")]
pub struct UriError {
    uri: String,
    why: &'static str,
}

impl NbdUri {
    pub fn unix(socket: impl Into<PathBuf>, export: impl Into<String>) -> NbdUri {
        NbdUri { address: NbdAddress::Unix(socket.into()), export: export.into() }
    }
}

impl FromStr for NbdUri {
    type Err = UriError;

    fn from_str(uri: &str) -> Result<NbdUri, UriError> {
        parse(uri).map_err(|why| UriError { uri: uri.into(), why })
    }
}

fn parse(uri: &str) -> Result<NbdUri, &'static str> {
    let (scheme, rest) = uri.split_once("://").ok_or("it has no scheme")?;
    let (rest, query) = rest.split_once('?').map_or((rest, ""), |(rest, query)| (rest, query));
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    let export = decode(export)?;
    match scheme {
        "nbd+unix" => {
            let socket = query.split('&').find_map(|part| part.strip_prefix("socket="));
            let socket = decode(socket.ok_or("it names no socket")?)?;
            if !authority.is_empty() {
                return Err("a Unix socket has no host");
            }
            Ok(NbdUri::unix(socket, export))
        }
        "nbd" => {
            let (host, port) = match authority.rsplit_once(':') {
                Some((host, port)) if !port.ends_with(']') => {
                    (host, port.parse().map_err(|_| "its port is no port")?)
                }
                _ => (authority, PORT),
            };
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            if host.is_empty() {
                return Err("it names no host");
            }
            Ok(NbdUri { address: NbdAddress::Tcp { host: host.into(), port }, export })
        }
        "nbds" | "nbds+unix" => Err("TLS is not supported"),
        _ => Err("its scheme is not nbd or nbd+unix"),
    }
}

fn decode(text: &str) -> Result<String, &'static str> {
    const WRONG: &str = "a % is not followed by two hexadecimal digits";
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok()).ok_or(WRONG)?;
            bytes.push(u8::from_str_radix(digits, 16).map_err(|_| WRONG)?);
            rest = &rest[2..];
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8")
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            NbdAddress::Unix(path) => {
                write!(f, "nbd+unix:///{}?socket={}", Encoded(&self.export), Encoded(&path.to_string_lossy()))
            }
            NbdAddress::Tcp { host, port } if host.contains(':') => {
                write!(f, "nbd://[{host}]:{port}/{}", Encoded(&self.export))
            }
            NbdAddress::Tcp { host, port } => write!(f, "nbd://{host}:{port}/{}", Encoded(&self.export)),
        }
    }
}

struct Encoded<'a>(&'a str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
                write!(f, "{}", char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_are_read_and_written() {
        for (text, expected) in [
            ("nbd+unix:///disk?socket=/run/a%20b.sock", NbdUri::unix("/run/a b.sock", "disk")),
            ("nbd+unix://?socket=x", NbdUri::unix("x", "")),
            ("nbd+unix:///a/b?socket=x&extra=1", NbdUri::unix("x", "a/b")),
        ] {
            let uri: NbdUri = text.parse().unwrap();
            assert_eq!(uri, expected);
            assert_eq!(uri.to_string().parse::<NbdUri>().unwrap(), expected);
        }
        for (text, host, port, export) in [
            ("nbd://localhost", "localhost", 10809, ""),
            ("nbd://10.0.0.1:99/disk%2F1", "10.0.0.1", 99, "disk/1"),
            ("nbd://[::1]:99/d", "::1", 99, "d"),
            ("nbd://[::1]/d", "::1", 10809, "d"),
        ] {
            let uri: NbdUri = text.parse().unwrap();
            let address = NbdAddress::Tcp { host: host.into(), port };
            assert_eq!(uri, NbdUri { address, export: export.into() });
            assert_eq!(uri.to_string().parse::<NbdUri>().unwrap(), uri);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_a_reason() {
        for text in [
            "/run/nbd.sock",
            "http://a/b",
            "nbd+unix:///disk",
            "nbd+unix://host/disk?socket=x",
            "nbd://:1/x",
            "nbd://a:x/y",
            "nbd://a/%zz",
            "nbds://a/b",
        ] {
            let error = text.parse::<NbdUri>().unwrap_err().to_string();
            assert!(error.starts_with(text) && error.contains("write nbd+unix:///"), "{error}");
        }
    }
}
