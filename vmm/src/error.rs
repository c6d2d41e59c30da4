//! Errors as one sentence, for the edge where they leave the process.

use std::error::Error;
use std::fmt::Write;

/// An error and all its causes, joined by colons.
pub fn chain(error: &dyn Error) -> String {
    let mut sentence = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        let _ = write!(sentence, ": {error}");
        cause = error.source();
    }
    sentence
}
