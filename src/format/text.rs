//! Short text of bounded length that lives in the value itself: volume names, the reason of a refusal.

use std::fmt;

/// UTF-8 without control characters, at most `N` bytes. What came from a peer may be shown on a terminal as it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Text<const N: usize> {
    length: u16,
    /// Zero beyond `length`.
    bytes: [u8; N],
}

/// Why bytes are not a [`Text`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    #[error("text of {found} bytes, expected at most {max}")]
    TooLong { max: usize, found: usize },
    #[error("text is valid UTF-8 only up to byte {valid_up_to}, expected all of it")]
    NotUtf8 { valid_up_to: usize },
    #[error("text has control character U+{found:04X}, expected none")]
    Control { found: u32 },
}

impl<const N: usize> Text<N> {
    pub const EMPTY: Text<N> = Text { length: 0, bytes: [0; N] };

    /// Control characters become spaces, and what does not fit is cut off between two characters.
    pub fn new(text: &str) -> Text<N> {
        let mut out = Text::EMPTY;
        out.append(text);
        out
    }

    /// The text in `bytes`, which must be whole.
    pub fn decode(bytes: &[u8]) -> Result<Text<N>, TextError> {
        if bytes.len() > N {
            return Err(TextError::TooLong { max: N, found: bytes.len() });
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|error| TextError::NotUtf8 { valid_up_to: error.valid_up_to() })?;
        match text.chars().find(|c| c.is_control()) {
            Some(control) => Err(TextError::Control { found: u32::from(control) }),
            None => Ok(Text::new(text)),
        }
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).expect("only whole characters are ever appended")
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    pub fn len(&self) -> usize {
        usize::from(self.length)
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn append(&mut self, text: &str) {
        const { assert!(N <= u16::MAX as usize) };
        for c in text.chars() {
            let c = if c.is_control() { ' ' } else { c };
            let start = self.len();
            if start + c.len_utf8() > N {
                return;
            }
            c.encode_utf8(&mut self.bytes[start..]);
            self.length += c.len_utf8() as u16;
        }
    }
}

/// `write!` into a text without allocating; what does not fit is cut off.
impl<const N: usize> fmt::Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.append(text);
        Ok(())
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Text<N> {
        Text::EMPTY
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(Text::<4>::new("abcde").as_str(), "abcd");
        assert_eq!(Text::<4>::new("abcé").as_str(), "abc");
        assert_eq!(Text::<5>::new("abcé").as_str(), "abcé");
        let mut text = Text::<8>::EMPTY;
        write!(text, "{}\nthree", 12).expect("a text takes what fits");
        assert_eq!(text.as_str(), "12 three");
    }

    #[test]
    fn text_from_outside_must_be_whole_and_printable() {
        assert_eq!(Text::<4>::decode(b"data").expect("four bytes fit").as_str(), "data");
        assert_eq!(Text::<3>::decode(b"data"), Err(TextError::TooLong { max: 3, found: 4 }));
        assert_eq!(Text::<4>::decode(b"a\xff"), Err(TextError::NotUtf8 { valid_up_to: 1 }));
        assert_eq!(Text::<4>::decode(b"a\x1b[m"), Err(TextError::Control { found: 0x1b }));
    }
}
