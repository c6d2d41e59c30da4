//! `hull check --containerd`: would the containerd that runs here find Hull, and do its CRI plugin's settings fit?

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hull_shim::RUNTIME;
use hull_shim::client::SHIM_NAME;
use toml::{Table, Value};

use super::{Check, artifacts};

const START: &str = "start it, and run this again as the user that it runs as";
const INSTALL: &str = "lay containerd-shim-hull-v2, hull-vmm and hull-fsd into a folder of containerd's PATH, or beside containerd";
const ADD: &str = "compare containerd's configuration with deploy/containerd.toml, of containerd 2 with deploy/containerd-2.toml";

/// Who makes the pods of a runtime: containerd itself, which is what it does unless told otherwise, or the shim.
const PODSANDBOX: &str = "podsandbox";
const BY_THE_SHIM: &str = "shim";

/// A containerd that runs.
#[derive(Debug, PartialEq, Eq)]
struct Daemon {
    pid: u32,
    program: PathBuf,
    /// As it was started, without the program.
    arguments: Vec<OsString>,
    path: OsString,
}

/// The checks of every containerd that runs on this host.
pub fn checks() -> Vec<Check> {
    let daemons = running();
    if daemons.is_empty() {
        return vec![Check::failed("containerd", "none runs that could be looked into", START)];
    }
    daemons.iter().flat_map(of_daemon).collect()
}

/// Those of our own user, in our own mount namespace: only their paths mean to us what they mean to them, and only their
/// programs are ours to run.
fn running() -> Vec<Daemon> {
    let own_namespace = fs::read_link("/proc/self/ns/mnt").ok();
    let own_user = nix::unistd::geteuid().as_raw();
    let processes = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let place = PathBuf::from(format!("/proc/{pid}"));
        let program = fs::read_link(place.join("exe")).ok()?;
        let ours = program.file_name()? == "containerd"
            && fs::metadata(&place).ok()?.uid() == own_user
            && fs::read_link(place.join("ns/mnt")).ok() == own_namespace;
        let words = |name: &str| fs::read(place.join(name)).ok().map(|bytes| split(&bytes));
        ours.then_some(())?;
        let path = words("environ")?.into_iter().find_map(|word| {
            let bytes = word.into_vec();
            bytes.strip_prefix(b"PATH=").map(|path| OsString::from_vec(path.to_vec()))
        });
        let arguments = words("cmdline")?.into_iter().skip(1).collect();
        Some(Daemon { pid, program, arguments, path: path.unwrap_or_default() })
    })
    .collect()
}

fn split(bytes: &[u8]) -> Vec<OsString> {
    let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| OsString::from_vec(word.to_vec())).collect()
}

fn of_daemon(daemon: &Daemon) -> Vec<Check> {
    let mut checks =
        vec![Check::ok("containerd", format!("{}, process {}", daemon.program.display(), daemon.pid))];
    match daemon.shim() {
        Some(shim) => {
            checks.push(version(&shim));
            checks.extend(artifacts::around(&shim));
        }
        None => checks.push(Check::failed(
            "containerd's shim",
            format!("no {SHIM_NAME} in {}", daemon.path.display()),
            INSTALL,
        )),
    }
    checks.extend(daemon.configuration().map_or_else(
        |why| vec![Check::failed("containerd's configuration", why, "look into containerd's log")],
        |table| runtimes(&table),
    ));
    checks
}

impl Daemon {
    /// Where it would find the shim: in its path, else beside itself.
    fn shim(&self) -> Option<PathBuf> {
        let beside = self.program.parent().map(Path::to_owned);
        std::env::split_paths(&self.path)
            .chain(beside)
            .map(|folder| folder.join(SHIM_NAME))
            .find(|path| path.is_file())
    }

    /// Its configuration, drop-ins and defaults included, as it says itself.
    fn configuration(&self) -> Result<Table, String> {
        let mut command = Command::new(&self.program);
        if let Some(file) = self.config_file() {
            command.arg("--config").arg(file);
        }
        command.args(["config", "dump"]).env("PATH", &self.path).stdin(Stdio::null());
        let output = command.output().map_err(|error| format!("{}: {error}", self.program.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("containerd config dump: {}", said.lines().last().unwrap_or("it failed")));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        text.parse().map_err(|error| format!("containerd config dump: {error}"))
    }

    fn config_file(&self) -> Option<OsString> {
        let mut arguments = self.arguments.iter();
        while let Some(argument) = arguments.next() {
            if argument == "--config" || argument == "-c" {
                return arguments.next().cloned();
            }
            if let Some(file) = argument.to_str().and_then(|argument| argument.strip_prefix("--config=")) {
                return Some(file.into());
            }
        }
        None
    }
}

/// Is it of the same build as we are?
fn version(shim: &Path) -> Check {
    const NAME: &str = "containerd's shim";
    let ours = format!("{SHIM_NAME} {}", env!("CARGO_PKG_VERSION"));
    match Command::new(shim).arg("-v").stdin(Stdio::null()).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            let found = format!("{}: {said}", shim.display());
            if said == ours { Check::ok(NAME, found) } else { Check::failed(NAME, found, INSTALL) }
        }
        Err(error) => Check::failed(NAME, format!("{}: {error}", shim.display()), INSTALL),
    }
}

/// What the CRI plugin knows of Hull. Without it Kubernetes' pods do not get here; ctr, nerdctl and docker do.
fn runtimes(configuration: &Table) -> Vec<Check> {
    const NAME: &str = "containerd's CRI plugin";
    let plugins = configuration.get("plugins").and_then(Value::as_table);
    // io.containerd.grpc.v1.cri up to containerd 1.7, io.containerd.cri.v1.runtime since.
    let tables =
        plugins.into_iter().flatten().filter_map(|(_, plugin)| plugin.get("containerd")?.get("runtimes"));
    let all: Vec<(&String, &Value)> = tables.filter_map(Value::as_table).flatten().collect();
    let hull: Vec<_> = all
        .iter()
        .filter(|(_, runtime)| runtime.get("runtime_type").and_then(Value::as_str) == Some(RUNTIME))
        .collect();
    if hull.is_empty() {
        let detail = "knows no runtime of Hull's: Kubernetes' pods need deploy/containerd.toml (containerd 2: containerd-2.toml), others do not";
        return vec![Check::ok(NAME, detail)];
    }
    let checks = hull.into_iter().map(|(handler, runtime)| {
        let privileged = runtime.get("privileged_without_host_devices").and_then(Value::as_bool);
        let sandboxer = runtime.get("sandboxer").and_then(Value::as_str).unwrap_or_default();
        if !matches!(sandboxer, "" | PODSANDBOX | BY_THE_SHIM) {
            let detail = format!(
                "handler {handler:?} is Hull, and its pods are made by another: sandboxer is {sandboxer:?}, \
                 neither {PODSANDBOX:?} nor {BY_THE_SHIM:?}"
            );
            Check::failed(NAME, detail, ADD)
        } else if privileged == Some(true) {
            let how = if sandboxer == BY_THE_SHIM { ", and makes its pods (the sandbox API)" } else { "" };
            Check::ok(NAME, format!("handler {handler:?} is Hull{how}"))
        } else {
            let detail = format!(
                "handler {handler:?} gives privileged containers the host's devices, which Hull refuses: \
                 privileged_without_host_devices is not set"
            );
            Check::failed(NAME, detail, ADD)
        }
    });
    checks.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon(program: &Path, arguments: &[&str], path: &str) -> Daemon {
        let arguments = arguments.iter().map(OsString::from).collect();
        Daemon { pid: 1, program: program.to_owned(), arguments, path: path.into() }
    }

    #[test]
    fn the_shim_is_looked_for_as_containerd_does() {
        let root = tempfile::tempdir().unwrap();
        let (bin, other) = (root.path().join("bin"), root.path().join("other"));
        fs::create_dir(&bin).unwrap();
        fs::create_dir(&other).unwrap();
        let containerd = daemon(&bin.join("containerd"), &[], &format!("/no/such:{}", other.display()));
        assert_eq!(containerd.shim(), None);
        fs::write(bin.join(SHIM_NAME), "").unwrap();
        assert_eq!(containerd.shim(), Some(bin.join(SHIM_NAME)));
        fs::write(other.join(SHIM_NAME), "").unwrap();
        assert_eq!(containerd.shim(), Some(other.join(SHIM_NAME)));
    }

    #[test]
    fn its_configuration_is_named_in_three_ways() {
        for arguments in [&["--config", "/c"][..], &["-l", "debug", "-c", "/c"], &["--config=/c"]] {
            assert_eq!(
                daemon(Path::new("/c"), arguments, "").config_file(),
                Some("/c".into()),
                "{arguments:?}"
            );
        }
        assert_eq!(daemon(Path::new("/c"), &["--log-level", "debug"], "").config_file(), None);
    }

    #[test]
    fn the_plugins_settings_of_every_version_are_understood() {
        let shipped = include_str!("../../../deploy/containerd.toml");
        let newer = include_str!("../../../deploy/containerd-2.toml");
        for text in [shipped, newer] {
            let [check] = runtimes(&text.parse().unwrap()).try_into().unwrap();
            assert!(check.ok && check.detail.contains("\"hull\""), "{check:?}");
        }
        let host_devices = shipped.replace("privileged_without_host_devices = true", "");
        let [check] = runtimes(&host_devices.parse().unwrap()).try_into().unwrap();
        assert!(!check.ok && check.detail.contains("privileged_without_host_devices"), "{check:?}");
        for (sandboxer, ok, part) in [
            ("podsandbox", true, "is Hull"),
            ("shim", true, "the sandbox API"),
            ("other", false, "\"other\", neither"),
        ] {
            let text = newer.replace("# sandboxer = \"shim\"", &format!("sandboxer = \"{sandboxer}\""));
            let [check] = runtimes(&text.parse().unwrap()).try_into().unwrap();
            assert!(check.ok == ok && check.detail.contains(part), "{check:?}");
        }
        for text in ["", "version = 3\n[plugins.x]\ncontainerd = 3"] {
            let [check] = runtimes(&text.parse().unwrap()).try_into().unwrap();
            assert!(check.ok && check.detail.contains("deploy/containerd.toml"), "{check:?}");
        }
    }
}
