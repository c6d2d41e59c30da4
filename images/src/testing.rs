//! For tests only: small images, and a registry that can misbehave.

pub(crate) mod image;
pub(crate) mod registry;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use crate::credentials::CredentialFiles;
use crate::progress::{Progress, ProgressEvent};
use crate::pull::PullOptions;
use crate::registry::RetryPolicy;

/// Options that neither wait nor look at the user's credentials.
pub(crate) fn options() -> PullOptions {
    PullOptions {
        credential_files: CredentialFiles::only([]),
        retry: RetryPolicy {
            attempts: 3,
            first_wait: Duration::from_millis(1),
            longest_wait: Duration::from_millis(20),
        },
        platform: "linux/amd64".parse().unwrap(),
        ..PullOptions::default()
    }
}

/// Remembers all events.
#[derive(Default)]
pub(crate) struct Recorder(Mutex<Vec<ProgressEvent>>);

impl Recorder {
    pub(crate) fn events(&self) -> Vec<ProgressEvent> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn retries(&self) -> usize {
        self.events().iter().filter(|e| matches!(e, ProgressEvent::Retrying { .. })).count()
    }
}

impl Progress for Recorder {
    fn event(&self, event: ProgressEvent) {
        self.0.lock().unwrap().push(event);
    }
}

/// All files below a store but its lock, sorted.
pub(crate) fn files_of(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else if entry.file_name() != "lock" {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}
