//! What is wrong with a configuration, told so that it can be put right without reading the manual.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file, from 1; none when the mistake has no place, like a missing section.
    pub line: Option<usize>,
    /// Section and key, like `group.ack`.
    pub key: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl Problem {
    pub(super) fn unreadable(source: &std::io::Error) -> Problem {
        Problem { line: None, key: String::new(), message: format!("cannot be read: {source}") }
    }
}

/// A configuration that was refused, with all that is wrong with it.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub struct ConfigError {
    pub file: PathBuf,
    pub problems: Vec<Problem>,
}

impl ConfigError {
    pub(super) fn new(file: &Path, problems: Vec<Problem>) -> ConfigError {
        assert!(!problems.is_empty(), "a configuration was refused without a reason");
        ConfigError { file: file.to_owned(), problems }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Problem { line, key, message }) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", self.file.display())?;
            if let Some(line) = line {
                write!(f, ":{line}")?;
            }
            match key.as_str() {
                "" => write!(f, ": {message}")?,
                key => write!(f, ": {key}: {message}")?,
            }
        }
        Ok(())
    }
}

/// Collects problems while a file is read.
pub(super) struct Problems<'a> {
    text: &'a str,
    list: Vec<Problem>,
}

impl<'a> Problems<'a> {
    pub fn new(text: &'a str) -> Problems<'a> {
        Problems { text, list: Vec::new() }
    }

    pub fn add(&mut self, key: impl Into<String>, at: Option<Range<usize>>, message: impl Into<String>) {
        let line = at.map(|span| line_of(self.text, span.start));
        self.list.push(Problem { line, key: key.into(), message: message.into() });
    }

    /// All that was found, in the file's order.
    pub fn finish(mut self) -> Vec<Problem> {
        self.list.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        self.list
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// The line (from 1) that holds the byte at `offset`.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count()
}
