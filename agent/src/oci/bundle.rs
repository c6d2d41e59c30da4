//! A bundle: its config.json, and what of it belongs to this side rather than to the container's.
//!
//! In a VM the shim does this on the host: files to bind become volumes, a seccomp profile becomes a filter.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use hull_protocol::agent::VOLUME_MOUNT;
use serde::Deserialize;
use serde_json::Value;

use super::OciError;
use crate::spec::{ContainerSpec, Origin, SeccompFilter, Statements};

/// No config.json is longer.
const CONFIG_MAX: u64 = 16 << 20;

/// A parsed bundle.
#[derive(Debug)]
pub struct Bundle {
    /// Absolute.
    pub path: PathBuf,
    pub rootfs: PathBuf,
    /// The config.json that the container code takes.
    pub config: Vec<u8>,
    pub spec: ContainerSpec,
    /// The compiled seccomp profile and its flags.
    pub filter: Option<(Vec<u8>, u32)>,
    /// Namespaces that exist.
    pub joined: Vec<Joined>,
    /// What volume `n` is a copy of.
    pub volumes: Vec<Volume>,
    /// Below the root of the hierarchy.
    pub cgroup: PathBuf,
    pub annotations: BTreeMap<String, String>,
    pub hooks: Hooks,
}

/// A namespace that exists, for the container to be in.
#[derive(Debug)]
pub struct Joined {
    pub kind: Kind,
    pub namespace: OwnedFd,
}

/// Which namespaces can be joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Network,
    Ipc,
    Uts,
    Pid,
}

/// A file or directory to bind.
#[derive(Debug)]
pub struct Volume {
    pub source: PathBuf,
    pub recursive: bool,
}

/// The hooks that run on this side.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    pub prestart: Vec<Hook>,
    pub create_runtime: Vec<Hook>,
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
}

#[derive(Debug, Deserialize)]
pub struct Hook {
    pub path: String,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub env: Vec<String>,
    pub timeout: Option<i64>,
}

impl Bundle {
    /// Reads and checks `<path>/config.json`.
    pub fn read(path: &Path, id: &str) -> Result<Self, OciError> {
        let path = path.canonicalize().map_err(OciError::file("find the bundle", path))?;
        let file = path.join("config.json");
        let invalid = |reason: String| OciError::Bundle { path: file.clone(), reason };
        let length = std::fs::metadata(&file).map_err(OciError::file("read", &file))?.len();
        if length > CONFIG_MAX {
            return Err(invalid(format!("longer than {CONFIG_MAX} bytes")));
        }
        let text = std::fs::read(&file).map_err(OciError::file("read", &file))?;
        let mut json: Value = serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
        let root = json["root"]["path"].as_str().unwrap_or_default();
        if root.is_empty() {
            return Err(invalid("root.path is missing".to_owned()));
        }
        let rootfs = path.join(root);
        let rootfs = rootfs.canonicalize().map_err(OciError::file("find the root file system", &rootfs))?;
        let cgroup = cgroup_path(json["linux"]["cgroupsPath"].as_str().unwrap_or_default(), id)
            .ok_or_else(|| invalid("linux.cgroupsPath is not a path".to_owned()))?;
        let parsed = |error: serde_json::Error| invalid(error.to_string());
        let annotations = taken(&json["annotations"]).map_err(parsed)?;
        let hooks = taken(&json["hooks"]).map_err(parsed)?;
        let filter = match &json["linux"]["seccomp"] {
            Value::Null => None,
            profile => {
                let profile = hull_seccomp::Profile::from_json(profile.to_string().as_bytes())?;
                let (filter, _) = hull_seccomp::compile(&profile)?;
                Some((filter.to_bytes(), filter.flags))
            }
        };
        let joined = joined_namespaces(&mut json["linux"]["namespaces"])?;
        let volumes = bound_files(&mut json["mounts"], &path);
        let config = json.to_string().into_bytes();
        let seccomp =
            filter.as_ref().map(|(program, flags)| SeccompFilter::from_bytes(program, *flags)).transpose()?;
        let (mut spec, _) = ContainerSpec::from_json(&config, seccomp, &Statements::default())?;
        for Joined { kind, .. } in &joined {
            // Not a new one: the one that its maker is in by then, or that it is born into.
            *match kind {
                Kind::Network => &mut spec.namespaces.network,
                Kind::Ipc => &mut spec.namespaces.ipc,
                Kind::Uts => &mut spec.namespaces.uts,
                Kind::Pid => &mut spec.namespaces.pid,
            } = Origin::Guest;
        }
        Ok(Self { path, rootfs, config, spec, filter, volumes, joined, cgroup, annotations, hooks })
    }
}

/// Opens the namespaces that have a path, and takes the paths away.
fn joined_namespaces(list: &mut Value) -> Result<Vec<Joined>, OciError> {
    let mut joined = Vec::new();
    for namespace in list.as_array_mut().into_iter().flatten() {
        let path = PathBuf::from(namespace["path"].as_str().unwrap_or_default());
        let kind = match namespace["type"].as_str().unwrap_or_default() {
            "network" => Kind::Network,
            "ipc" => Kind::Ipc,
            "uts" => Kind::Uts,
            "pid" => Kind::Pid,
            // The specification's parser says what it thinks of a path here.
            _ => continue,
        };
        if path.as_os_str().is_empty() {
            continue;
        }
        let opened = std::fs::File::open(&path).map_err(OciError::file("open the namespace", &path))?;
        namespace["path"] = Value::from("");
        joined.push(Joined { kind, namespace: opened.into() });
    }
    Ok(joined)
}

/// The hooks of a saved config.json.
pub fn hooks(config: &[u8]) -> Result<Hooks, OciError> {
    let parse = || taken::<Hooks>(&serde_json::from_slice::<Value>(config)?["hooks"]);
    parse().map_err(|error| OciError::Bundle { path: "config.json".into(), reason: error.to_string() })
}

fn taken<T: Default + serde::de::DeserializeOwned>(value: &Value) -> Result<T, serde_json::Error> {
    if value.is_null() { Ok(T::default()) } else { T::deserialize(value) }
}

/// Makes a volume of every bind mount, numbered in order.
fn bound_files(mounts: &mut Value, bundle: &Path) -> Vec<Volume> {
    let mut volumes = Vec::new();
    for mount in mounts.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        let options = mount.get("options").and_then(Value::as_array).cloned().unwrap_or_default();
        let has = |name: &str| options.iter().any(|option| option == name);
        let recursive = has("rbind");
        if !(recursive || has("bind") || mount.get("type").is_some_and(|kind| kind == "bind")) {
            continue;
        }
        let source = bundle.join(mount.get("source").and_then(Value::as_str).unwrap_or_default());
        mount.insert("type".to_owned(), VOLUME_MOUNT.into());
        mount.insert("source".to_owned(), volumes.len().to_string().into());
        volumes.push(Volume { source, recursive });
    }
    volumes
}

/// `linux.cgroupsPath`, a path or systemd's `slice:prefix:name`, below the root of the hierarchy.
fn cgroup_path(path: &str, id: &str) -> Option<PathBuf> {
    let path = match path.split(':').collect::<Vec<_>>().as_slice() {
        [""] => id.to_owned(),
        [path] => (*path).to_owned(),
        [slice, prefix, name] => {
            let slice = if slice.is_empty() { "system.slice" } else { slice };
            let unit =
                if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
            slice_path(slice)?.join(unit).to_str()?.to_owned()
        }
        _ => return None,
    };
    let mut below = PathBuf::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            return None;
        }
        below.push(part);
    }
    below.file_name().is_some().then_some(below)
}

/// systemd.slice(5): `a-b.slice` is in `a.slice`.
fn slice_path(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(".slice")?;
    let mut path = PathBuf::new();
    if name == "-" {
        return Some(path);
    }
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() || part.contains('/') {
            return None;
        }
        prefix.push_str(part);
        path.push(format!("{prefix}.slice"));
        prefix.push('-');
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_paths_in_both_forms() {
        for (path, expected) in [
            ("", Some("c1")),
            ("/docker/abc", Some("docker/abc")),
            ("a//./b", Some("a/b")),
            ("../up", None),
            ("/a/../../b", None),
            ("/", None),
            ("user-1000.slice:podman:abc", Some("user.slice/user-1000.slice/podman-abc.scope")),
            (":cri:x", Some("system.slice/cri-x.scope")),
            ("-.slice::x", Some("x.scope")),
            ("nonsense:a:b", None),
            ("a:b", None),
        ] {
            assert_eq!(cgroup_path(path, "c1"), expected.map(PathBuf::from), "{path}");
        }
    }

    #[test]
    fn bind_mounts_become_volumes() {
        let mut mounts = serde_json::json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/a", "type": "bind", "source": "/src", "options": ["ro", "bind"]},
            {"destination": "/b", "source": "rel", "options": ["rbind", "rprivate"]}]);
        let volumes = bound_files(&mut mounts, Path::new("/bundle"));
        assert_eq!(volumes[0].source, Path::new("/src"));
        assert_eq!(volumes[1].source, Path::new("/bundle/rel"));
        assert_eq!((volumes[0].recursive, volumes[1].recursive), (false, true));
        assert_eq!(mounts[0]["type"], "proc");
        assert_eq!(
            mounts[1],
            serde_json::json!({"destination": "/a", "type": "hull-volume", "source": "0", "options": ["ro", "bind"]})
        );
        assert_eq!(mounts[2]["options"], serde_json::json!(["rbind", "rprivate"]));
    }
}
