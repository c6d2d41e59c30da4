//! Are the programs and files there that a VM is made of? The shim's own search answers, configuration included.

use std::path::{Path, PathBuf};

use hull_shim::client::{SHIM_VARIABLE, Shim};
use hull_shim::config::Config;
use hull_shim::{ArtifactError, Found};

use super::Check;
use crate::error;

const INSTALL: &str = "install Hull completely: hull, containerd-shim-hull-v2, hull-vmm and hull-fsd side by side, the guest files in ../lib/hull";

/// One check for each, as the shim that `hull` would start finds them.
pub fn checks() -> Vec<Check> {
    match Shim::find() {
        Ok(shim) => {
            let found = Check::ok("shim", format!("{} (change with {SHIM_VARIABLE})", shim.display()));
            [found].into_iter().chain(around(&shim)).collect()
        }
        Err(error) => vec![Check::failed("shim", error::describe(&error), INSTALL)],
    }
}

/// What this shim would use.
pub fn around(shim: &Path) -> Vec<Check> {
    let config = match Config::load() {
        Ok(config) => config,
        Err(error) => {
            return vec![Check::failed(
                "configuration",
                error::describe(&error),
                "mend the file: until then no pod is started",
            )];
        }
    };
    let beside =
        shim.canonicalize().ok().and_then(|path| path.parent().map(Path::to_owned)).unwrap_or_default();
    let Found { vmm, broker, kernel, initramfs } = Found::around(&beside, &config.artifacts);
    [("monitor", vmm), ("file broker", broker), ("guest kernel", kernel), ("guest initramfs", initramfs)]
        .map(|(name, found)| check(name, found))
        .into()
}

fn check(name: &'static str, found: Result<PathBuf, ArtifactError>) -> Check {
    match found {
        Ok(path) => Check::ok(name, path.display().to_string()),
        Err(why) => Check::failed(name, why.to_string(), INSTALL),
    }
}
