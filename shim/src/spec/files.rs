//! Files of the bundle that a container has for itself: what `hull run` writes for /etc/hosts and its like. They go to the
//! guest with the request, and nobody on the host sees what becomes of them. And those that a pod has for its containers,
//! where no client made them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use hull_protocol::agent::api::agent::File as GuestFile;
use hull_protocol::agent::{FILE_MOUNT, FILE_SIZE_MAX, FILES_MAX, is_valid_id};
use oci_spec::runtime::Mount;

use super::{Spec, SpecError};

const SHM: &str = "/dev/shm";

/// What a pod has for its containers where the sandbox API is used: containerd then leaves it to the shim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFiles {
    /// /etc/resolv.conf.
    pub resolv_conf: Vec<u8>,
    /// /etc/hosts.
    pub hosts: Vec<u8>,
    /// /etc/hostname.
    pub hostname: Vec<u8>,
}

impl PodFiles {
    /// Mounts what the container has not from its client; the files are returned. Its /dev/shm becomes the pod's, as
    /// containerd writes it where it has one for the pod.
    pub fn give(&self, spec: &mut Spec) -> Vec<GuestFile> {
        let read_only = spec.root.as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or_default();
        let access = if read_only { "ro" } else { "rw" };
        let mut mounts = spec.mounts.take().unwrap_or_default();
        let bound = |destination: &str, mounts: &[Mount]| {
            mounts.iter().any(|mount| mount.destination() == Path::new(destination) && is_bind(mount))
        };
        if !bound(SHM, &mounts) {
            mounts.retain(|mount| mount.destination() != Path::new(SHM));
            mounts.push(own_mount(SHM, "bind", SHM, &["rbind", "rprivate", "rw"]));
        }
        let mut files = Vec::new();
        for (name, content) in
            [("resolv.conf", &self.resolv_conf), ("hosts", &self.hosts), ("hostname", &self.hostname)]
        {
            let destination = format!("/etc/{name}");
            if !mounts.iter().any(|mount| mount.destination() == Path::new(&destination)) {
                mounts.push(own_mount(&destination, FILE_MOUNT, name, &["rprivate", access]));
                files.push(GuestFile {
                    name: name.to_owned(),
                    content: content.clone(),
                    ..GuestFile::default()
                });
            }
        }
        spec.mounts = Some(mounts);
        files
    }
}

fn own_mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(PathBuf::from(destination));
    mount.set_typ(Some(kind.to_owned()));
    mount.set_source(Some(PathBuf::from(source)));
    mount.set_options(Some(options.iter().map(|&option| option.to_owned()).collect()));
    mount
}

/// Reads what bind mounts with a relative source name: a file in the bundle itself. The mounts become ones of those files,
/// which are beside those `given`.
pub fn take(spec: &mut Spec, bundle: &Path, given: Vec<GuestFile>) -> Result<Vec<GuestFile>, SpecError> {
    let mut files = given;
    let Some(mounts) = &mut spec.mounts else { return Ok(files) };
    for mount in mounts.iter_mut().filter(|mount| is_relative_bind(mount)) {
        let source = mount.source().as_deref().unwrap_or(Path::new("")).to_owned();
        let is_there = |name: &&str| is_valid_id(name) && bundle.join(name).is_file();
        let name = source.to_str().filter(is_there).ok_or_else(|| {
            SpecError::Unsupported(format!(
                "the bind mount at {} has the source {:?}, which is neither an absolute path nor a file in the bundle",
                mount.destination().display(),
                source.display()
            ))
        })?;
        if files.len() == FILES_MAX {
            return Err(SpecError::Unsupported(format!(
                "more than {FILES_MAX} files of the bundle are mounted"
            )));
        }
        files.push(GuestFile {
            name: name.to_owned(),
            content: read(&bundle.join(name))?,
            ..GuestFile::default()
        });
        let options = mount.options().clone().unwrap_or_default();
        let options = options.into_iter().filter(|option| option != "bind" && option != "rbind").collect();
        mount.set_typ(Some(FILE_MOUNT.to_owned()));
        mount.set_options(Some(options));
    }
    Ok(files)
}

fn is_bind(mount: &Mount) -> bool {
    let binds = |word: &str| word == "bind" || word == "rbind";
    mount.typ().as_deref().is_some_and(binds) || mount.options().iter().flatten().any(|option| binds(option))
}

fn is_relative_bind(mount: &Mount) -> bool {
    is_bind(mount) && mount.source().as_ref().is_some_and(|source| source.is_relative())
}

fn read(path: &Path) -> Result<Vec<u8>, SpecError> {
    let failed = |source| SpecError::Read { path: path.to_owned(), source };
    let mut content = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_SIZE_MAX as u64 + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() > FILE_SIZE_MAX {
        return Err(SpecError::Unsupported(format!(
            "{} is longer than {FILE_SIZE_MAX} bytes",
            path.display()
        )));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn files_of_the_bundle_are_read() {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::write(bundle.path().join("hosts"), "127.0.0.1 localhost\n").unwrap();
        std::fs::write(bundle.path().join("long"), vec![b'x'; FILE_SIZE_MAX + 1]).unwrap();
        let with = |source: &str| -> Spec {
            serde_json::from_value(json!({"ociVersion": "1.0.2", "mounts": [
                {"destination": "/data", "type": "bind", "source": "/srv"},
                {"destination": "/etc/hosts", "type": "bind", "source": source, "options": ["rbind", "ro"]}
            ]}))
            .unwrap()
        };
        let mut spec = with("hosts");
        let files = take(&mut spec, bundle.path(), Vec::new()).unwrap();
        assert_eq!((files[0].name.as_str(), &files[0].content[..]), ("hosts", &b"127.0.0.1 localhost\n"[..]));
        let mounts = serde_json::to_value(&spec.mounts).unwrap();
        assert_eq!(mounts[0]["type"], "bind");
        assert_eq!(
            mounts[1],
            json!({"destination": "/etc/hosts", "type": "hull-file", "source": "hosts", "options": ["ro"]})
        );
        for (source, part) in [
            ("../hosts", "a file in the bundle"),
            ("", "a file in the bundle"),
            ("none", "a file in the bundle"),
            ("long", "longer"),
        ] {
            let error = take(&mut with(source), bundle.path(), Vec::new()).unwrap_err().to_string();
            assert!(error.contains(part), "{source}: {error}");
        }
    }

    #[test]
    fn a_pod_gives_what_a_client_has_not() {
        let pod = PodFiles {
            resolv_conf: b"nameserver 192.0.2.1\n".into(),
            hosts: b"127.0.0.1 localhost\n".into(),
            hostname: b"web\n".into(),
        };
        let spec = |mounts: serde_json::Value, read_only: bool| -> Spec {
            let root = json!({"path": "rootfs", "readonly": read_only});
            serde_json::from_value(json!({"ociVersion": "1.0.2", "root": root, "mounts": mounts})).unwrap()
        };
        // As the engine has it by default, and a kubelet's own /etc/hosts.
        let mut of_kubelet = spec(
            json!([
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=65536k"]},
                {"destination": "/etc/hosts", "type": "bind", "source": "/var/lib/kubelet/hosts", "options": ["rbind"]}
            ]),
            true,
        );
        let names: Vec<_> = pod.give(&mut of_kubelet).into_iter().map(|file| file.name).collect();
        assert_eq!(names, ["resolv.conf", "hostname"]);
        let mounts = serde_json::to_value(&of_kubelet.mounts).unwrap();
        let destinations: Vec<_> =
            mounts.as_array().unwrap().iter().map(|mount| mount["destination"].as_str().unwrap()).collect();
        assert_eq!(destinations, ["/etc/hosts", "/dev/shm", "/etc/resolv.conf", "/etc/hostname"]);
        assert_eq!(mounts[1]["type"], "bind", "the translation makes the pod's of it");
        assert_eq!(mounts[2]["options"], json!(["rprivate", "ro"]));
        // What is the host's, or a volume, stays.
        let volume =
            json!([{"destination": "/dev/shm", "type": "bind", "source": "/srv/shm", "options": ["rbind"]}]);
        let mut with_volume = spec(volume, false);
        assert_eq!(pod.give(&mut with_volume).len(), 3);
        let mounts = serde_json::to_value(&with_volume.mounts).unwrap();
        assert_eq!(mounts[0]["source"], "/srv/shm");
        assert_eq!(mounts[1]["options"], json!(["rprivate", "rw"]));
    }
}
