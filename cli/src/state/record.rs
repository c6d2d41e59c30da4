//! `container.json`: what `run` knows about a container and no other file in its bundle says.

use std::collections::BTreeMap;

use hull_shim::record::Record;
use serde::{Deserialize, Serialize};

use super::ContainerId;

/// The record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// The container's id.
    pub id: ContainerId,
    /// Its name.
    pub name: String,
    /// The image as the user wrote it.
    pub image: String,
    /// Digest of the image's configuration.
    pub image_id: String,
    /// When the container was created, RFC 3339 in UTC with nanoseconds: the order of text is the order of time.
    pub created: String,
    /// The first process's arguments.
    pub command: Vec<String>,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether its stdin is open.
    pub interactive: bool,
    /// Whether it runs in the background.
    pub detached: bool,
    /// Whether it is removed when it has stopped.
    pub auto_remove: bool,
    /// Labels, the image's and the user's.
    pub labels: BTreeMap<String, String>,
    /// What `stop` sends first.
    pub stop_signal: u32,
    /// Seconds that `stop` waits.
    pub stop_timeout: Option<u32>,
}

impl Record for ContainerRecord {
    const FILE: &'static str = "container.json";
}
