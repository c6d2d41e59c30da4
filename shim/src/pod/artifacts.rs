//! Finds the monitor, the guest kernel and the initramfs.

use std::path::{Path, PathBuf};

use crate::config::{
    ArtifactPaths, BROKER_VARIABLE, INITRAMFS_VARIABLE, KERNEL_VARIABLE, Named, VMM_VARIABLE,
};

const VMM_NAME: &str = "hull-vmm";
const BROKER_NAME: &str = "hull-fsd";
const KERNEL_NAME: &str = "vmlinux";
const INITRAMFS_NAME: &str = "initramfs.img";

/// What a VM is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifacts {
    /// The monitor's executable.
    pub vmm: PathBuf,
    /// The guest kernel, an ELF `vmlinux`.
    pub kernel: PathBuf,
    /// The initramfs with the agent.
    pub initramfs: PathBuf,
}

/// Each of them, or why it is not to be had: what a check of the installation tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The monitor's executable.
    pub vmm: Result<PathBuf, ArtifactError>,
    /// The file broker's executable.
    pub broker: Result<PathBuf, ArtifactError>,
    /// The guest kernel.
    pub kernel: Result<PathBuf, ArtifactError>,
    /// The initramfs with the agent.
    pub initramfs: Result<PathBuf, ArtifactError>,
}

impl Found {
    /// What a shim in the folder `beside` would use.
    pub fn around(beside: &Path, named: &ArtifactPaths) -> Self {
        let guest = [beside.join("../guest"), beside.join("../lib/hull"), PathBuf::from("/usr/lib/hull")];
        let vmm = find(named.vmm.as_ref(), VMM_NAME, VMM_VARIABLE, &[beside.to_owned()]);
        let broker = broker(vmm.as_deref().unwrap_or(&beside.join(VMM_NAME)), named);
        let kernel = find(named.kernel.as_ref(), KERNEL_NAME, KERNEL_VARIABLE, &guest);
        // Kernel and initramfs are built together: one that happens to lie elsewhere does not fit.
        let same_folder: Vec<PathBuf> = match kernel.as_ref().map(|kernel| kernel.parent()) {
            Ok(Some(folder)) if named.kernel.is_none() => vec![folder.to_owned()],
            _ => guest.to_vec(),
        };
        let initramfs = find(named.initramfs.as_ref(), INITRAMFS_NAME, INITRAMFS_VARIABLE, &same_folder);
        Self { vmm, broker, kernel, initramfs }
    }
}

/// An artifact that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArtifactError {
    /// Environment or configuration name something that is not there.
    #[error("{by} names {path}, which is no file", path = path.display())]
    Named {
        /// Variable or key.
        by: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// None of the places has it.
    #[error("no {name} in {places}: set {variable}, or install it there")]
    Missing {
        /// The file's name.
        name: &'static str,
        /// The directories that were searched.
        places: String,
        /// The environment variable that would name it.
        variable: &'static str,
    },
}

impl Artifacts {
    /// The file broker's executable, which only a pod with volumes needs: the named one, else the one beside the
    /// monitor.
    pub fn broker(&self, named: &ArtifactPaths) -> Result<PathBuf, ArtifactError> {
        broker(&self.vmm, named)
    }

    /// Takes what is named; looks for the rest around this executable, then in `/usr/lib/hull`.
    pub fn find(named: &ArtifactPaths) -> Result<Self, ArtifactError> {
        let beside = std::env::current_exe()
            .ok()
            .and_then(|exe| exe.parent().map(Path::to_owned))
            .unwrap_or_else(|| PathBuf::from("/usr/bin"));
        Self::find_around(&beside, named)
    }

    fn find_around(beside: &Path, named: &ArtifactPaths) -> Result<Self, ArtifactError> {
        let Found { vmm, kernel, initramfs, broker: _ } = Found::around(beside, named);
        Ok(Self { vmm: vmm?, kernel: kernel?, initramfs: initramfs? })
    }
}

/// The file broker lies beside the monitor.
fn broker(vmm: &Path, named: &ArtifactPaths) -> Result<PathBuf, ArtifactError> {
    let beside = vmm.parent().unwrap_or(Path::new("/")).to_owned();
    find(named.broker.as_ref(), BROKER_NAME, BROKER_VARIABLE, &[beside])
}

fn find(
    named: Option<&Named>,
    name: &'static str,
    variable: &'static str,
    places: &[PathBuf],
) -> Result<PathBuf, ArtifactError> {
    match named {
        Some(Named { path, .. }) if path.is_file() => Ok(path.clone()),
        Some(Named { path, by }) => Err(ArtifactError::Named { by, path: path.clone() }),
        None => places.iter().map(|place| place.join(name)).find(|path| path.is_file()).ok_or_else(|| {
            let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
            ArtifactError::Missing { name, places: places.join(", "), variable }
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn artifacts_lie_around_the_executable() {
        let root = tempfile::tempdir().unwrap();
        let beside = root.path().join("release");
        fs::create_dir_all(&beside).unwrap();
        fs::create_dir_all(root.path().join("guest")).unwrap();
        let error = Artifacts::find_around(&beside, &ArtifactPaths::default()).unwrap_err().to_string();
        assert!(error.contains("hull-vmm") && error.contains(VMM_VARIABLE), "{error}");
        fs::write(beside.join(VMM_NAME), "").unwrap();
        fs::write(root.path().join("guest").join(KERNEL_NAME), "").unwrap();
        let error = Artifacts::find_around(&beside, &ArtifactPaths::default()).unwrap_err().to_string();
        assert!(error.contains(INITRAMFS_NAME) && error.contains(INITRAMFS_VARIABLE), "{error}");
        fs::write(root.path().join("guest").join(INITRAMFS_NAME), "").unwrap();
        assert_eq!(
            Artifacts::find_around(&beside, &ArtifactPaths::default()).unwrap().vmm,
            beside.join(VMM_NAME)
        );
    }

    #[test]
    fn a_name_of_nothing_is_an_error() {
        let vmm = Some(Named { path: "/no/such/vmm".into(), by: VMM_VARIABLE });
        let named = ArtifactPaths { vmm, ..ArtifactPaths::default() };
        let error = Artifacts::find_around(Path::new("/"), &named).unwrap_err();
        assert_eq!(error.to_string(), "HULL_VMM names /no/such/vmm, which is no file");
    }
}
