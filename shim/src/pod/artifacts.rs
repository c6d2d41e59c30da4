//! Finds the monitor, the guest kernel and the initramfs.

use std::path::{Path, PathBuf};

/// Environment variable that names the monitor's executable.
pub const VMM_VARIABLE: &str = "HULL_VMM";
/// Environment variable that names the guest kernel.
pub const KERNEL_VARIABLE: &str = "HULL_KERNEL";
/// Environment variable that names the initramfs.
pub const INITRAMFS_VARIABLE: &str = "HULL_INITRAMFS";

/// Environment variable that names the file broker's executable.
pub const BROKER_VARIABLE: &str = "HULL_FSD";

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

/// An artifact that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArtifactError {
    /// The variable names something that is not there.
    #[error("{variable} names {path}, which is no file", path = path.display())]
    Variable {
        /// The environment variable.
        variable: &'static str,
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
    /// The file broker's executable, which only a pod with volumes needs: beside the monitor's.
    pub fn broker(&self) -> Result<PathBuf, ArtifactError> {
        let variable = std::env::var_os(BROKER_VARIABLE).filter(|value| !value.is_empty());
        let path = match &variable {
            Some(path) => PathBuf::from(path),
            None => self.vmm.with_file_name(BROKER_NAME),
        };
        match (path.is_file(), variable) {
            (true, _) => Ok(path),
            (false, Some(_)) => Err(ArtifactError::Variable { variable: BROKER_VARIABLE, path }),
            (false, None) => Err(ArtifactError::Missing {
                name: BROKER_NAME,
                places: path.parent().unwrap_or(Path::new("/")).display().to_string(),
                variable: BROKER_VARIABLE,
            }),
        }
    }

    /// Looks where the environment says, else around this executable, else in `/usr/lib/hull`.
    pub fn find() -> Result<Self, ArtifactError> {
        let beside = std::env::current_exe()
            .ok()
            .and_then(|exe| exe.parent().map(Path::to_owned))
            .unwrap_or_else(|| PathBuf::from("/usr/bin"));
        Self::find_around(&beside, |variable| {
            std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
        })
    }

    fn find_around(
        beside: &Path,
        variable: impl Fn(&'static str) -> Option<PathBuf>,
    ) -> Result<Self, ArtifactError> {
        let guest = [beside.join("../guest"), beside.join("../lib/hull"), PathBuf::from("/usr/lib/hull")];
        let find = |name: &'static str, key: &'static str, places: &[PathBuf]| match variable(key) {
            Some(path) if path.is_file() => Ok(path),
            Some(path) => Err(ArtifactError::Variable { variable: key, path }),
            None => {
                places.iter().map(|place| place.join(name)).find(|path| path.is_file()).ok_or_else(|| {
                    let places: Vec<String> =
                        places.iter().map(|place| place.display().to_string()).collect();
                    ArtifactError::Missing { name, places: places.join(", "), variable: key }
                })
            }
        };
        let vmm = find(VMM_NAME, VMM_VARIABLE, &[beside.to_owned()])?;
        let kernel = find(KERNEL_NAME, KERNEL_VARIABLE, &guest)?;
        // Kernel and initramfs are built together: one that happens to lie elsewhere does not fit.
        let same_folder: Vec<PathBuf> = match kernel.parent() {
            Some(folder) if variable(KERNEL_VARIABLE).is_none() => vec![folder.to_owned()],
            _ => guest.to_vec(),
        };
        let initramfs = find(INITRAMFS_NAME, INITRAMFS_VARIABLE, &same_folder)?;
        Ok(Self { vmm, kernel, initramfs })
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
        let error = Artifacts::find_around(&beside, |_| None).unwrap_err().to_string();
        assert!(error.contains("hull-vmm") && error.contains(VMM_VARIABLE), "{error}");
        fs::write(beside.join(VMM_NAME), "").unwrap();
        fs::write(root.path().join("guest").join(KERNEL_NAME), "").unwrap();
        let error = Artifacts::find_around(&beside, |_| None).unwrap_err().to_string();
        assert!(error.contains(INITRAMFS_NAME) && error.contains(INITRAMFS_VARIABLE), "{error}");
        fs::write(root.path().join("guest").join(INITRAMFS_NAME), "").unwrap();
        assert_eq!(Artifacts::find_around(&beside, |_| None).unwrap().vmm, beside.join(VMM_NAME));
    }

    #[test]
    fn a_variable_that_names_nothing_is_an_error() {
        let error = Artifacts::find_around(Path::new("/"), |variable| {
            (variable == VMM_VARIABLE).then(|| PathBuf::from("/no/such/vmm"))
        })
        .unwrap_err();
        assert_eq!(error.to_string(), "HULL_VMM names /no/such/vmm, which is no file");
    }
}
