//! Bind mounts: what of the host's files a container uses.

use std::path::{Path, PathBuf};

use hull_protocol::agent::VOLUME_MOUNT;
use oci_spec::runtime::Mount;

use super::SpecError;

/// A directory or a file of the host that the guest may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name among the pod's volumes.
    pub name: String,
    /// Where it is on the host.
    pub source: PathBuf,
    /// Who may change it.
    pub access: VolumeAccess,
}

/// Who may change a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeAccess {
    /// The host alone, which enforces it.
    ReadOnly,
    /// The guest too.
    ReadWrite,
}

/// Makes a volume of a bind mount, and of the mount one of that volume.
pub fn of_bind(mut mount: Mount, container: &str, volumes: &mut Vec<Volume>) -> Result<Mount, SpecError> {
    let source = mount.source().as_deref().unwrap_or(Path::new("")).to_owned();
    if !source.is_absolute() {
        return Err(SpecError::Unsupported(format!(
            "the bind mount at {} has the source {:?}, which is no absolute path",
            mount.destination().display(),
            source.display()
        )));
    }
    let mut options = mount.options().clone().unwrap_or_default();
    let read_only = options.iter().any(|option| option == "ro" || option == "rro");
    options.retain(|option| option != "bind" && option != "rbind");
    // Other containers of the pod have volumes too.
    let name = format!("{container}.{}", volumes.len());
    mount.set_typ(Some(VOLUME_MOUNT.to_owned()));
    mount.set_source(Some(PathBuf::from(&name)));
    mount.set_options(Some(options));
    let access = if read_only { VolumeAccess::ReadOnly } else { VolumeAccess::ReadWrite };
    volumes.push(Volume { name, source, access });
    Ok(mount)
}
