//! The list of what must be undone, kept while something is built and run backwards when it is torn down.

use std::io;
use std::pin::Pin;

type Step = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// Undo steps in the order their set-up steps were taken. Dropping it undoes nothing.
#[derive(Default)]
pub struct Undo {
    steps: Vec<(&'static str, Step)>,
}

/// The first undo step that failed; the others were run all the same.
#[derive(Debug, thiserror::Error)]
#[error("cannot clean up {what}: {source}")]
pub struct UndoError {
    what: &'static str,
    source: io::Error,
}

impl Undo {
    /// Registers how to undo `what`, a noun phrase for the error message.
    pub fn push(&mut self, what: &'static str, step: impl Future<Output = io::Result<()>> + Send + 'static) {
        self.steps.push((what, Box::pin(step)));
    }

    /// Runs every step, the latest first, and reports the first error.
    pub async fn run(self) -> Result<(), UndoError> {
        let mut first = Ok(());
        for (what, step) in self.steps.into_iter().rev() {
            if let Err(source) = step.await {
                log::warn!("cannot clean up {what}: {source}");
                if first.is_ok() {
                    first = Err(UndoError { what, source });
                }
            }
        }
        first
    }
}

/// Removes a file; that it is not there any more is as good.
pub fn remove_file(path: &std::path::Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn steps_run_backwards_and_all() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut undo = Undo::default();
        for (what, result) in [("a", Ok(())), ("b", Err("b")), ("c", Err("c"))] {
            let seen = Arc::clone(&seen);
            undo.push(what, async move {
                seen.lock().unwrap().push(what);
                result.map_err(io::Error::other)
            });
        }
        assert_eq!(undo.run().await.unwrap_err().to_string(), "cannot clean up c: c");
        assert_eq!(*seen.lock().unwrap(), ["c", "b", "a"]);
    }
}
