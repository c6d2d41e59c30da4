//! What comes and goes with a container while the VM runs: disks and shared folders.
//!
//! For a disk the monitor fills a slot, then the agent has the guest's driver take it; in the opposite order when it goes.

use hull_protocol::vmm::{DiskConfig, Request, Unplug};

use super::devices::DeviceError;
use super::{AgentError, Broker, BrokerError, Disk, Export, MonitorError, OpenRootfs, Vm};

/// A disk in a running VM.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a disk that nobody remembers stays in the VM"]
pub struct PluggedDisk {
    serial: String,
    slot: u8,
}

/// What a container has added to a running VM.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use = "what nobody remembers stays in the VM"]
pub struct Attachments {
    disks: Vec<PluggedDisk>,
    devices: Vec<String>,
    exports: Vec<String>,
}

/// What a further container needs, open.
#[derive(Debug, Default)]
pub struct Needs {
    /// Its root file system.
    pub rootfs: OpenRootfs,
    /// Its volumes.
    pub volumes: Vec<Export>,
    /// Its block devices.
    pub devices: Vec<Disk>,
}

/// Why something does not come or go.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// The broker refused.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The monitor refused.
    #[error("the monitor does not change its devices: {0}")]
    Monitor(#[from] MonitorError),
    /// The guest's driver did not do as asked.
    #[error("the guest does not change its devices: {0}")]
    Agent(#[from] AgentError),
    /// A block device of the host.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl Vm {
    /// Gives the VM what a further container needs. Nothing of it is left when it fails.
    pub async fn attach(&self, needs: Needs) -> Result<Attachments, PlugError> {
        let mut attached = Attachments::default();
        match self.attach_all(&mut attached, needs).await {
            Ok(()) => Ok(attached),
            Err(error) => {
                self.detach(attached).await;
                Err(error)
            }
        }
    }

    async fn attach_all(&self, attached: &mut Attachments, needs: Needs) -> Result<(), PlugError> {
        let Needs { rootfs, volumes, devices } = needs;
        for export in rootfs.export.into_iter().chain(volumes) {
            let name = export.name.clone();
            self.files()?.share(export).await?;
            attached.exports.push(name);
        }
        for disk in rootfs.disks {
            attached.disks.push(self.plug_disk(disk).await?);
        }
        for device in devices {
            attached.devices.push(self.plug_device(device).await?);
        }
        Ok(())
    }

    /// Takes back what a container needed, as far as it can be had; the failures are logged.
    pub async fn detach(&self, attached: Attachments) {
        let Attachments { disks, devices, exports } = attached;
        if self.ended().now().is_some() {
            return;
        }
        for disk in disks {
            if let Err(error) = self.unplug_disk(disk).await {
                log::warn!("{error}");
            }
        }
        for device in devices {
            if let Err(error) = self.unplug_device(&device).await {
                log::warn!("{error}");
            }
        }
        for export in exports {
            if let Err(error) = self.take_back(&export).await {
                log::warn!("the guest keeps {export}: {error}");
            }
        }
    }

    async fn take_back(&self, export: &str) -> Result<(), PlugError> {
        Ok(self.files()?.take_back(export).await?)
    }

    fn files(&self) -> Result<&Broker, PlugError> {
        Ok(self.broker().ok_or(BrokerError::Ended)?)
    }

    /// Gives the VM a further disk. When this returns, the guest finds it by its serial number. Nothing of it is left
    /// when it fails.
    pub(super) async fn plug_disk(&self, disk: Disk) -> Result<PluggedDisk, PlugError> {
        let Disk { config, fds } = disk.limited(self.disk_limits());
        let DiskConfig { serial, .. } = &config;
        let serial = serial.clone();
        let slot = self.monitor().plug(Request::AddDisk(config), fds).await?;
        if let Err(error) = self.agent.bind_slot(slot).await {
            if let Err(error) = self.take_away(&serial, Unplug::Forced).await {
                log::warn!("the disk {serial} cannot be taken back: {error}");
            }
            return Err(error.into());
        }
        Ok(PluggedDisk { serial, slot })
    }

    /// Takes a disk away. When this returns, its files are closed. A guest that does not let go of it in time loses it all
    /// the same, and that is then the error.
    pub(super) async fn unplug_disk(&self, disk: PluggedDisk) -> Result<(), PlugError> {
        let PluggedDisk { serial, slot } = disk;
        let let_go = self.agent.unbind_slot(slot).await;
        let how = if let_go.is_ok() { Unplug::Released } else { Unplug::Forced };
        self.take_away(&serial, how).await?;
        Ok(let_go?)
    }

    async fn take_away(&self, serial: &str, how: Unplug) -> Result<(), MonitorError> {
        self.monitor().request(Request::Unplug { name: format!("blk-{serial}"), how }, Vec::new()).await
    }
}

#[cfg(test)]
mod soak;

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::path::Path;

    use containerd_shim_protos::protobuf::MessageField;
    use hull_protocol::agent::api::agent::rootfs::Lower;
    use hull_protocol::agent::api::agent::{
        ContainerRequest, CreateContainerRequest, ErofsDisk, InfoRequest, ProcessRequest, Rootfs,
        SharedFolder,
    };
    use hull_protocol::agent::{API_VERSION, VOLUMES_TAG};
    use hull_protocol::fs::ExportAccess;
    use hull_protocol::vmm::{DiskAccess, DiskDiscard, DiskExtent, FsCache, FsConfig, RateLimits};

    use super::*;
    use crate::config::BROKER_VARIABLE;
    use crate::pod::cgroup::Accounting;
    use crate::pod::{Abandon, Booting, Journal, PowerOff, VmSpec};
    use crate::record::ShimRecord;
    use crate::spec::VmShape;

    pub(super) fn disk(serial: &str) -> Disk {
        disk_of(serial, 1 << 16)
    }

    pub(super) fn disk_of(serial: &str, length: usize) -> Disk {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![0; length]).unwrap();
        let extents = vec![DiskExtent { offset: 0, length: length.try_into().unwrap() }];
        let config = DiskConfig {
            serial: serial.into(),
            access: DiskAccess::ReadOnly,
            extents,
            discard: DiskDiscard::Off,
            limits: RateLimits::default(),
        };
        Disk { config, fds: vec![OwnedFd::from(file)] }
    }

    /// What an agent that does nothing yet may have in memory.
    const AGENT_RESIDENT_MAX: u64 = 3 << 20;

    /// Whether the guest has a disk: a container from it fails for what is on the disk, or because there is none.
    pub(super) async fn has_disk(vm: &Vm, serial: &str) -> bool {
        let erofs = ErofsDisk { serial: serial.into(), ..ErofsDisk::default() };
        let rootfs = Rootfs { lower: Some(Lower::Erofs(erofs)), ..Rootfs::default() };
        let spec = serde_json::json!({
            "ociVersion": "1.0.2", "root": {"path": "rootfs"},
            "process": {"args": ["none"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
        });
        let request = CreateContainerRequest {
            container_id: "probe".into(),
            spec: spec.to_string().into(),
            rootfs: MessageField::some(rootfs),
            ..CreateContainerRequest::default()
        };
        let error = vm.agent.create_container(&request).await.unwrap_err().to_string();
        if error.contains("no disk has the serial number") {
            return false;
        }
        assert!(error.contains("mount erofs /dev/vd"), "{error}");
        true
    }

    /// A VM with one disk and no shared files. Its sockets and its console are in the folder.
    pub async fn boot(folder: &Path) -> Vm {
        boot_with(folder, None).await
    }

    /// The same, and where there are exports, with them.
    pub(super) async fn boot_with(folder: &Path, exports: Option<Vec<Export>>) -> Vm {
        let spec = VmSpec {
            size: VmShape { vcpus: 1, memory_mib: 256 },
            room: VmShape { vcpus: 4, memory_mib: 256 + 256 },
            disks: vec![disk("first")],
            exports,
            console: folder.join("console"),
            stream_socket: folder.join("streams"),
            namespace: "test".into(),
            network: crate::spec::NetworkChoice::Own,
            hostname: "hotplug".into(),
            sysctls: std::collections::HashMap::new(),
            ports: crate::pod::Ports::Own,
            cgroup: None,
        };
        let (_wanted, abandoned) = Abandon::new();
        let config = crate::config::Config::load().unwrap();
        let journal = Journal::new(folder.to_owned(), ShimRecord::default());
        let booting = Booting::prepare(spec, &config, journal, &abandoned).await.unwrap();
        booting.boot(&abandoned).await.unwrap()
    }

    /// Runs the file broker's program out of a shared folder, and answers its status: it ends at once, with 1, as it has no
    /// socket. That far it was read from the host.
    pub(super) async fn run_from(vm: &Vm, folder: &str) -> Result<u32, AgentError> {
        let shared = SharedFolder { name: folder.into(), ..SharedFolder::default() };
        let rootfs = Rootfs { lower: Some(Lower::Shared(shared)), ..Rootfs::default() };
        let spec = serde_json::json!({
            "ociVersion": "1.0.2", "root": {"path": "rootfs"},
            "mounts": [{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}],
            "process": {"args": ["/program"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
        });
        let request = CreateContainerRequest {
            container_id: folder.into(),
            spec: spec.to_string().into(),
            rootfs: MessageField::some(rootfs),
            ..CreateContainerRequest::default()
        };
        vm.agent.create_container(&request).await?;
        let process = ProcessRequest { container_id: folder.into(), ..ProcessRequest::default() };
        vm.agent.start_process(&process).await?;
        let status = vm.agent.wait_process(&process).await?;
        let container = ContainerRequest { container_id: folder.into(), ..ContainerRequest::default() };
        vm.agent.delete_container(&container).await?;
        Ok(status.code)
    }

    #[test]
    #[ignore = "needs a KVM that runs Linux, and the built programs: `make test` runs it in the test host"]
    fn shared_files_come_and_go_in_a_real_guest() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let vm = boot(folder.path()).await;
            let program = std::env::var_os(BROKER_VARIABLE).unwrap();
            let (broker, files) = Broker::start(Path::new(&program), &Accounting::default()).await.unwrap();
            // The device, into a guest that had none.
            let config = FsConfig { tag: VOLUMES_TAG.into(), cache: FsCache::Auto };
            let slot = vm.monitor().plug(Request::AddFs(config), vec![files]).await.unwrap();
            vm.agent.bind_slot(slot).await.unwrap();
            // Folders, into the device.
            for round in 0..5 {
                let name = format!("folder-{round}");
                let path = folder.path().join(&name);
                std::fs::create_dir(&path).unwrap();
                std::fs::copy(&program, path.join("program")).unwrap();
                let root = OwnedFd::from(std::fs::File::open(&path).unwrap());
                let access = ExportAccess::ReadWrite;
                broker.share(Export { name: name.clone(), path, access, root }).await.unwrap();
                assert_eq!(run_from(&vm, &name).await.unwrap(), 1, "round {round}");
                broker.take_back(&name).await.unwrap();
                let error = run_from(&vm, &name).await.unwrap_err();
                assert!(matches!(error, AgentError::Refused { .. }), "round {round}: {error}");
            }
            // And the device out of the guest, though it is mounted: what the guest then wants of it is refused.
            vm.agent.unbind_slot(slot).await.unwrap();
            let unplug = Request::Unplug { name: format!("fs-{VOLUMES_TAG}"), how: Unplug::Released };
            vm.monitor().request(unplug, Vec::new()).await.unwrap();
            broker.end().await;
            let error = run_from(&vm, "folder-0").await.unwrap_err();
            assert!(matches!(error, AgentError::Refused { .. }), "{error}");
            assert!(has_disk(&vm, "first").await);
            vm.stop(PowerOff::Orderly).await.unwrap();
        });
    }

    #[test]
    #[ignore = "needs a KVM that runs Linux, and the built programs: `make test` runs it in the test host"]
    fn a_disk_comes_and_goes_in_a_real_guest() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let vm = boot(folder.path()).await;
            let info = InfoRequest { api_version: API_VERSION, ..InfoRequest::default() };
            let resident = vm.agent.info(&info).await.unwrap().agent_resident_bytes;
            println!("the idle agent has {} KiB in memory", resident >> 10);
            assert!((1..=AGENT_RESIDENT_MAX).contains(&resident), "{resident} bytes");
            assert!(has_disk(&vm, "first").await);
            for (count, running) in [(1, 1), (3, 3), (2, 2), (4, 4)] {
                vm.agent.online_cpus(count).await.unwrap();
                assert_eq!(vm.agent.info(&info).await.unwrap().online_cpus, running, "{count} asked for");
            }
            for count in [0, 5, 33] {
                let error = vm.agent.online_cpus(count).await.unwrap_err();
                assert!(matches!(error, AgentError::Refused { .. }), "{count}: {error}");
            }
            for round in 0..25 {
                assert!(!has_disk(&vm, "further").await, "round {round}");
                let first = vm.plug_disk(disk("further")).await.unwrap();
                let second = vm.plug_disk(disk("another")).await.unwrap();
                assert!(has_disk(&vm, "further").await, "round {round}");
                assert!(has_disk(&vm, "another").await, "round {round}");
                vm.unplug_disk(first).await.unwrap();
                assert!(!has_disk(&vm, "further").await, "round {round}");
                vm.unplug_disk(second).await.unwrap();
            }
            // An empty slot, one out of range, one whose driver holds on and is bound already.
            for slot in [31, 32, 0] {
                let error = vm.agent.bind_slot(slot).await.unwrap_err();
                assert!(matches!(error, AgentError::Refused { .. }), "{error}");
            }
            assert!(vm.agent.unbind_slot(31).await.is_err());
            let gone = PluggedDisk { serial: "never".into(), slot: 31 };
            assert!(vm.unplug_disk(gone).await.is_err());
            assert!(has_disk(&vm, "first").await);
            vm.stop(PowerOff::Orderly).await.unwrap();
        });
    }
}
