//! The table of what changes between a host's runtime-spec and the guest's.
//!
//! | property | in the guest |
//! |---|---|
//! | `process.apparmorProfile`, `process.selinuxLabel`, `linux.mountLabel` | stripped: those confine processes of the host's kernel |
//! | `hooks`: prestart, createRuntime, poststart, poststop | stripped for the guest, and run by the shim: [`crate::hooks`] |
//! | `hooks`: createContainer, startContainer | kept: they run in the guest, where their path must exist |
//! | `mounts` that bind host paths | volumes, but /dev/shm, which becomes a tmpfs, one for all containers of a pod; a relative source is a file of the bundle: [`super::files`] |
//! | `mounts` of file systems | kept where the guest's kernel has them, else refused |
//! | `linux.cgroupsPath` | `/` and the container's id; on the host, that of the pod: [`crate::cgroup`] |
//! | `linux.namespaces`: network | stripped: the shim joins the guest to it, and all containers of the pod are in the guest's own. Without one, refused: [`super::network`] |
//! | `linux.namespaces`: others of a container in this VM, by path | the pod's or that container's |
//! | `linux.namespaces`: others with a path | refused: they name a namespace of the host |
//! | `linux.devices` | block devices that a rule names come along, character devices of the kernel's own are kept: [`super::devices`]. Others that a rule names are refused, others left out |
//! | `linux.resources.devices` | rules about other block devices by number stripped: the guest's numbers are its own |
//! | `linux.resources`: cpuset, blockIO, network, rdma | stripped: they count the host's CPUs and devices |
//! | `linux.seccomp` | compiled: the guest gets the program |
//! | `linux.intelRdt`, `linux.netDevices`, `linux.memoryPolicy` | stripped: they configure the host's hardware |
//! | everything else | kept |

use std::path::{Path, PathBuf};

use hull_protocol::agent::api::agent::Namespaces;
use hull_protocol::agent::{FILE_MOUNT, SHARED_TMPFS_MOUNT};
use oci_spec::runtime::{Linux, LinuxResources, Mount};

use super::devices::{self, BlockDevice};
use super::namespaces::{self, Issued};
use super::schema::Process;
use super::volumes::{self, Volume};
use super::{Spec, SpecError};

const SHM: &str = "/dev/shm";
const GUEST_FILE_SYSTEMS: [&str; 8] =
    ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", FILE_MOUNT];

/// What the spec itself cannot say to the guest.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// What the container uses of the host's files.
    pub volumes: Vec<Volume>,
    /// The namespaces that it joins.
    pub namespaces: Namespaces,
    /// What it uses of the host's block devices.
    pub devices: Vec<BlockDevice>,
}

/// Translates a container's spec in place. `issued` are the numbers of the pod's containers, if it is in one.
pub fn container(spec: &mut Spec, id: &str, issued: Option<&Issued>) -> Result<Beside, SpecError> {
    process(spec.process.as_mut().ok_or(SpecError::Missing("process"))?)?;
    if let Some(root) = &mut spec.root {
        root.set_path(PathBuf::from("rootfs"));
    } else {
        return Err(SpecError::Missing("root"));
    }
    if let Some(hooks) = &mut spec.hooks {
        // Deprecated, and still what docker writes.
        #[allow(deprecated)]
        hooks.set_prestart(None);
        hooks.set_create_runtime(None).set_poststart(None).set_poststop(None);
    }
    let shm = if issued.is_some() { SHARED_TMPFS_MOUNT } else { "tmpfs" };
    let mounts = spec.mounts.take().unwrap_or_default();
    let mut volumes = Vec::new();
    let mounts: Vec<Mount> = mounts
        .into_iter()
        .map(|mount| translate_mount(mount, id, shm, &mut volumes))
        .collect::<Result<_, _>>()?;
    spec.mounts = Some(mounts);
    let linux = spec.linux.as_mut().ok_or(SpecError::Missing("linux"))?;
    let namespaces = namespaces::join(linux, issued)?;
    self::linux(linux, id);
    let devices = devices::take(linux)?;
    Ok(Beside { volumes, namespaces, devices })
}

/// Translates a process in place.
pub fn process(process: &mut Process) -> Result<(), SpecError> {
    process.drop_nulls();
    if !process.has_program() {
        return Err(SpecError::Missing("process.args: there is no program to run"));
    }
    let labels = ["apparmorProfile", "selinuxLabel"].map(|label| process.remove(label));
    if labels.contains(&true) {
        log::debug!("AppArmor profile and SELinux label are left out: the VM confines the container");
    }
    Ok(())
}

/// Translates limits in place.
pub fn resources(resources: &mut LinuxResources) {
    if let Some(cpu) = resources.cpu_mut()
        && (cpu.cpus().is_some() || cpu.mems().is_some())
    {
        log::info!("the cpuset is left out: it counts the host's CPUs and memory nodes");
        cpu.set_cpus(None);
        cpu.set_mems(None);
    }
    if resources.block_io().is_some() || resources.network().is_some() || resources.rdma().is_some() {
        log::info!("limits of block, network and RDMA devices are left out: they name the host's devices");
        resources.set_block_io(None);
        resources.set_network(None);
        resources.set_rdma(None);
    }
}

fn translate_mount(
    mut mount: Mount,
    id: &str,
    shm: &str,
    volumes: &mut Vec<Volume>,
) -> Result<Mount, SpecError> {
    let options = mount.options().as_deref().unwrap_or_default();
    let binds = options.iter().any(|option| option == "bind" || option == "rbind");
    let kind = mount.typ().as_deref().unwrap_or_default();
    let destination = mount.destination();
    if !binds && kind != "bind" && kind != "rbind" {
        return if GUEST_FILE_SYSTEMS.contains(&kind) {
            Ok(mount)
        } else {
            Err(SpecError::Unsupported(format!(
                "the mount of type {kind:?} at {} is not supported",
                destination.display()
            )))
        };
    }
    if destination == Path::new(SHM) {
        mount.set_typ(Some(shm.to_owned()));
        mount.set_source(Some(PathBuf::from("shm")));
        let options = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"];
        mount.set_options(Some(options.map(str::to_owned).into()));
        return Ok(mount);
    }
    volumes::of_bind(mount, id, volumes)
}

fn linux(linux: &mut Linux, id: &str) {
    linux.set_cgroups_path(Some(Path::new("/").join(id)));
    linux.set_mount_label(None);
    linux.set_intel_rdt(None);
    linux.set_net_devices(None);
    linux.set_memory_policy(None);
    if let Some(resources) = linux.resources_mut() {
        self::resources(resources);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::VolumeAccess;
    use super::*;

    fn base() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "root": {"path": "/host/rootfs", "readonly": true},
            "process": {
                "args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0},
                "apparmorProfile": "docker-default", "selinuxLabel": "x", "noNewPrivileges": true
            },
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "cgroupsPath": "system.slice:docker:abc",
                "namespaces": [{"type": "pid"}, {"type": "network", "path": "/var/run/netns/x"}, {"type": "mount"}],
                "resources": {"cpu": {"cpus": "3", "shares": 512}, "pids": {"limit": 10}},
                "maskedPaths": ["/proc/kcore"]
            }
        })
    }

    fn translated(spec: Value) -> Result<Value, SpecError> {
        in_pod(spec, None)
    }

    fn in_pod(spec: Value, issued: Option<&Issued>) -> Result<Value, SpecError> {
        let mut spec: Spec = serde_json::from_value(spec).unwrap();
        container(&mut spec, "web", issued)?;
        Ok(serde_json::to_value(&spec).unwrap())
    }

    #[test]
    fn what_belongs_to_the_host_is_left_out() {
        let spec = translated(base()).unwrap();
        assert_eq!(spec["linux"]["cgroupsPath"], "/web");
        assert_eq!(spec["linux"]["namespaces"], json!([{"type": "pid"}, {"type": "mount"}]));
        assert_eq!(spec["linux"]["resources"]["cpu"], json!({"shares": 512}));
        assert_eq!(spec["linux"]["resources"]["pids"]["limit"], 10);
        assert!(spec["process"].get("apparmorProfile").is_none());
        assert!(spec["process"].get("selinuxLabel").is_none());
        assert_eq!(spec["process"]["noNewPrivileges"], true, "security settings stay");
        assert_eq!(spec["linux"]["maskedPaths"], json!(["/proc/kcore"]));
        assert_eq!(spec["root"]["readonly"], true);
    }

    #[test]
    fn host_mounts_are_named() {
        let mut spec = base();
        spec["mounts"] = json!([
            {"destination": "/dev/shm", "type": "bind", "source": "/h/shm", "options": ["rbind"]}
        ]);
        let mounts = translated(spec.clone()).unwrap()["mounts"].clone();
        assert_eq!(mounts[0]["type"], "tmpfs");
        let mounts = in_pod(spec.clone(), Some(&Issued::default())).unwrap()["mounts"].clone();
        assert_eq!((&mounts[0]["type"], &mounts[0]["source"]), (&SHARED_TMPFS_MOUNT.into(), &"shm".into()));

        for mount in [
            json!({"destination": "/data", "type": "bind", "source": "relative"}),
            json!({"destination": "/data", "type": "bind"}),
        ] {
            spec["mounts"] = json!([mount]);
            let error = translated(spec.clone()).unwrap_err().to_string();
            assert!(error.contains("/data"), "{error}");
        }
        spec["mounts"] = json!([{"destination": "/n", "type": "nfs", "source": "host:/x"}]);
        assert!(translated(spec).unwrap_err().to_string().contains("nfs"));
    }

    #[test]
    fn bind_mounts_become_volumes() {
        let mut spec = base();
        spec["mounts"] = json!([
            {"destination": "/a", "source": "/srv/a", "options": ["rbind", "ro", "rprivate"]},
            {"destination": "/b", "type": "bind", "source": "/srv/b", "options": ["nosuid"]}
        ]);
        let mut parsed: Spec = serde_json::from_value(spec).unwrap();
        let volumes = container(&mut parsed, "web", None).unwrap().volumes;
        let volume =
            |name: &str, source: &str, access| Volume { name: name.into(), source: source.into(), access };
        let wanted = [
            volume("web.0", "/srv/a", VolumeAccess::ReadOnly),
            volume("web.1", "/srv/b", VolumeAccess::ReadWrite),
        ];
        assert_eq!(volumes, wanted);
        let mounts = serde_json::to_value(&parsed.mounts).unwrap();
        assert_eq!(
            mounts[0],
            json!({"destination": "/a", "type": "hull-volume", "source": "web.0", "options": ["ro", "rprivate"]})
        );
        assert_eq!(mounts[1]["source"], "web.1");
    }

    #[test]
    fn the_guest_gets_the_hooks_that_run_in_it() {
        let mut spec = base();
        spec["hooks"] = json!({
            "prestart": [{"path": "/bin/libnetwork"}],
            "createRuntime": [{"path": "/bin/nvidia"}],
            "poststop": [{"path": "/bin/cleanup"}],
            "createContainer": [{"path": "/bin/inside"}],
        });
        assert_eq!(translated(spec).unwrap()["hooks"], json!({"createContainer": [{"path": "/bin/inside"}]}));
    }

    #[test]
    fn no_program_is_an_error() {
        let mut spec = base();
        spec["process"]["args"] = json!([]);
        assert!(translated(spec).unwrap_err().to_string().contains("process.args"));
    }
}
