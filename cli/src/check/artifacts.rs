//! Are the programs and files there that a VM is made of? The same places are searched as when one is started.

use std::path::{Path, PathBuf};

use hull_shim::client::{SHIM_VARIABLE, Shim};

use super::Check;

const INSTALL: &str = "install Hull completely: hull, containerd-shim-hull-v2 and hull-vmm side by side, the guest files in ../lib/hull";

/// One check for each.
pub fn checks() -> Vec<Check> {
    let shim = match Shim::find() {
        Ok(path) => path,
        Err(error) => return vec![Check::failed("shim", crate::error::describe(&error), INSTALL)],
    };
    let beside =
        shim.canonicalize().ok().and_then(|path| path.parent().map(Path::to_owned)).unwrap_or_default();
    let guest = [beside.join("../guest"), beside.join("../lib/hull"), PathBuf::from("/usr/lib/hull")];
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let kernel = find("vmlinux", variable("HULL_KERNEL"), &guest);
    // The initramfs belongs to the kernel beside it.
    let same_folder = match (&kernel, variable("HULL_KERNEL")) {
        (Ok(kernel), None) => kernel.parent().map(|folder| vec![folder.to_owned()]).unwrap_or_default(),
        _ => guest.to_vec(),
    };
    let initramfs = find("initramfs.img", variable("HULL_INITRAMFS"), &same_folder);
    let vmm = find("hull-vmm", variable("HULL_VMM"), &[beside]);
    vec![
        Check::ok("shim", format!("{} (change with {SHIM_VARIABLE})", shim.display())),
        result("monitor", vmm),
        result("guest kernel", kernel),
        result("guest initramfs", initramfs),
    ]
}

fn find(name: &str, given: Option<PathBuf>, places: &[PathBuf]) -> Result<PathBuf, String> {
    match given {
        Some(path) if path.is_file() => Ok(path),
        Some(path) => Err(format!("{} does not exist", path.display())),
        None => places.iter().map(|place| place.join(name)).find(|path| path.is_file()).ok_or_else(|| {
            let places: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
            format!("no {name} in {}", places.join(", "))
        }),
    }
}

fn result(name: &'static str, found: Result<PathBuf, String>) -> Check {
    match found {
        Ok(path) => Check::ok(name, path.display().to_string()),
        Err(why) => Check::failed(name, why, INSTALL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_path_must_exist_and_the_first_place_wins() {
        let folder = tempfile::tempdir().unwrap();
        let places = [folder.path().join("none"), folder.path().to_owned()];
        std::fs::write(folder.path().join("vmlinux"), "").unwrap();
        assert_eq!(find("vmlinux", None, &places), Ok(folder.path().join("vmlinux")));
        assert!(find("initramfs.img", None, &places).unwrap_err().contains("initramfs.img"));
        assert!(find("vmlinux", Some("/no/such".into()), &places).unwrap_err().contains("/no/such"));
    }
}
