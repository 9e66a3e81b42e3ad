//! Standard output of commands. Whoever reads it may have seen enough (`| head`), which is no error: the command does what it was to do,
//! and says no more.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::process;

use super::exit;

/// `println!`, for a reader that may go.
macro_rules! say {
    ($($words:tt)*) => { $crate::cli::say::write(format_args!("{}\n", format_args!($($words)*))) };
}

/// `print!`, for a reader that may go.
macro_rules! say_as_is {
    ($($words:tt)*) => { $crate::cli::say::write(format_args!($($words)*)) };
}

pub fn write(words: Arguments<'_>) {
    let mut out = io::stdout().lock();
    match out.write_fmt(words).and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        Err(error) => {
            eprintln!("standard output: {error}");
            process::exit(i32::from(exit::FAILED));
        }
    }
}
