//! A day of devices that come and go, one of each kind a minute, in a real guest that works meanwhile: `cargo xtask soak --only
//! plug`, and a hundredth of it in `make test`. `HULL_SOAK` says how much, in percent. Prints what it counted.

#[allow(dead_code, reason = "others use the rest")]
#[path = "../../../../tests/src/counters.rs"]
mod counters;

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use containerd_shim_protos::protobuf::MessageField;
use hull_protocol::agent::api::agent::rootfs::Lower;
use hull_protocol::agent::api::agent::{
    ContainerRequest, CreateContainerRequest, ProcessRequest, Rootfs, SharedFolder,
};
use hull_protocol::fs::ExportAccess;
use hull_protocol::vmm::{DiskAccess, NetworkBackend, NetworkConfig, NetworkLimits};

use super::tests::{boot_with, disk, disk_of, has_disk, run_from};
use super::*;
use crate::config::BROKER_VARIABLE;
use crate::network::bare_tap;
use crate::pod::PowerOff;
use counters::Counters;

/// A round a minute, for a day.
const ROUNDS: usize = 24 * 60;
/// What a process's memory may grow by after the first tenth, in KiB.
const SLACK: u64 = 512;
/// How many programs of the guest's load may run at the moment, each with its shared file open: far fewer than rounds.
const PROGRAMS: usize = 3;
/// How often it is looked for the least that a process holds.
const SAMPLES: usize = 10;

/// What the guest does all the time: it writes to a disk, reads what it has written from the disk and compares; and says by
/// a shared file how often it has. Its kernel's log goes to another, with the weight of each line.
const LOAD: &str = r#"
for disk in /sys/block/vd*; do
  [ "$(cat $disk/serial)" != load ] || numbers=$(tr : " " <$disk/dev)
done
mknod /dev/load b $numbers || exit 2
round=0
dmesg -c >/dev/null
while [ ! -e /stop ]; do
  head -c 65536 /dev/urandom >/dev/data
  dd if=/dev/data of=/dev/load bs=65536 conv=fsync 2>/dev/null || exit 3
  blockdev --flushbufs /dev/load || exit 4
  dd if=/dev/load bs=65536 count=1 2>/dev/null | cmp - /dev/data || exit 5
  round=$((round + 1))
  echo $round >/rounds
  dmesg -r -c >>/log || exit 6
  usleep 200000
done
"#;

/// The least that a process holds within a moment: while the guest has shared files open, the monitor holds files of the host.
async fn at_rest(pid: u32) -> Counters {
    let mut least = Counters::of(pid);
    for _ in 0..SAMPLES {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = Counters::of(pid);
        least.descriptors = least.descriptors.min(now.descriptors);
        least.threads = least.threads.min(now.threads);
        least.written_kib = least.written_kib.min(now.written_kib);
    }
    least
}

fn container(name: &str) -> ContainerRequest {
    ContainerRequest { container_id: name.into(), ..ContainerRequest::default() }
}

fn process(name: &str) -> ProcessRequest {
    ProcessRequest { container_id: name.into(), ..ProcessRequest::default() }
}

/// Starts [`LOAD`] in a container whose root is a shared folder with busybox in it.
async fn work(vm: &Vm) {
    let capabilities = ["CAP_MKNOD", "CAP_SYS_ADMIN", "CAP_SYSLOG", "CAP_DAC_OVERRIDE"];
    let spec = serde_json::json!({
        "ociVersion": "1.0.2", "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs"},
            {"destination": "/proc", "type": "proc", "source": "proc"},
        ],
        "process": {
            "args": ["/bin/sh", "-c", LOAD], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"],
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
        },
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "pid"}],
            "resources": {"devices": [{"allow": true, "access": "rwm"}]},
        },
    });
    let shared = SharedFolder { name: "work".into(), ..SharedFolder::default() };
    let rootfs = Rootfs { lower: Some(Lower::Shared(shared)), ..Rootfs::default() };
    let request = CreateContainerRequest {
        container_id: "work".into(),
        spec: spec.to_string().into(),
        rootfs: MessageField::some(rootfs),
        ..CreateContainerRequest::default()
    };
    vm.agent.create_container(&request).await.unwrap();
    vm.agent.start_process(&process("work")).await.unwrap();
}

/// A folder with one program in it, to be shared.
fn folder(path: &Path, program: &Path, name: &str) -> Export {
    fs::create_dir_all(path.join(name).parent().unwrap()).unwrap();
    fs::copy(program, path.join(name)).unwrap();
    let root = OwnedFd::from(fs::File::open(path).unwrap());
    let export = path.file_name().unwrap().to_string_lossy().into_owned();
    Export { name: export, path: path.to_owned(), access: ExportAccess::ReadWrite, root }
}

fn writable(mut disk: Disk) -> Disk {
    disk.config.access = DiskAccess::ReadWrite;
    disk
}

/// An interface; the kernel serves every other one, where it can.
fn interface(round: usize) -> (Request, Vec<OwnedFd>) {
    let kernels = fs::File::options().read(true).write(true).open("/dev/vhost-net").ok();
    let kernels = kernels.filter(|_| round % 2 == 1);
    let backend = if kernels.is_some() { NetworkBackend::Vhost } else { NetworkBackend::Userspace };
    let config = NetworkConfig {
        name: "further".into(),
        mac: [2, 0, 0, 0, 0, 9],
        mtu: 1500,
        limits: NetworkLimits::default(),
        backend,
    };
    let fds = [Some(bare_tap()), kernels.map(OwnedFd::from)];
    (Request::AddNetwork(config), fds.into_iter().flatten().collect())
}

/// A disk, an interface and a share come, and go in another order each time.
async fn round(vm: &Vm, share: impl Fn() -> Export, number: usize) {
    let (request, fds) = interface(number);
    let further = vm.plug_disk(disk("further")).await.unwrap();
    let slot = vm.monitor().plug(request, fds).await.unwrap();
    vm.agent.bind_slot(slot).await.unwrap();
    vm.files().unwrap().share(share()).await.unwrap();
    if number.is_multiple_of(20) {
        assert!(has_disk(vm, "further").await, "round {number}");
        assert_eq!(run_from(vm, "share").await.unwrap(), 1, "round {number}");
    }
    let mut further = Some(further);
    for what in 0..3 {
        match (what + number) % 3 {
            0 => vm.unplug_disk(further.take().unwrap()).await.unwrap(),
            1 => {
                vm.agent.unbind_slot(slot).await.unwrap();
                let request = Request::Unplug { name: "net-further".into(), how: Unplug::Released };
                vm.monitor().request(request, Vec::new()).await.unwrap();
            }
            _ => vm.files().unwrap().take_back("share").await.unwrap(),
        }
    }
}

/// Whether a line weighs as much as a warning (4) or more. That the clocks of an emulated, busy host are read slowly is not
/// its devices' doing; that a disk has no file system is what [`has_disk`] looks for.
fn is_a_complaint(line: &str) -> bool {
    let weight = line.strip_prefix('<').and_then(|rest| rest.split_once('>')?.0.parse::<u8>().ok());
    let expected = ["clocksource: ", "cannot find valid erofs superblock"];
    weight.is_some_and(|weight| weight & 7 <= 4) && !expected.iter().any(|words| line.contains(words))
}

#[test]
#[ignore = "needs a KVM that runs Linux, and the built programs: `make test` runs a part of it in the test host"]
fn a_day_of_devices_in_a_real_guest() {
    let percent: usize = std::env::var("HULL_SOAK").map_or(100, |percent| percent.parse().unwrap());
    let all = (ROUNDS * percent / 100).max(10);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let place = tempfile::tempdir().unwrap();
        let program = std::env::var_os(BROKER_VARIABLE).unwrap();
        let at_work = place.path().join("work");
        let root = folder(&at_work, Path::new("/bin/busybox"), "bin/sh");
        for name in ["cat", "tr", "mknod", "dmesg", "head", "dd", "blockdev", "cmp", "usleep"] {
            std::os::unix::fs::symlink("sh", at_work.join("bin").join(name)).unwrap();
        }
        let vm = boot_with(place.path(), Some(vec![root])).await;
        let load = vm.plug_disk(writable(disk_of("load", 1 << 20))).await.unwrap();
        work(&vm).await;
        let share = || folder(&place.path().join("share"), Path::new(&program), "program");
        let done = |file: &str| fs::read_to_string(at_work.join(file)).unwrap_or_default();

        let begun = Instant::now();
        let named = [("monitor", vm.monitor().pid()), ("shim", std::process::id())];
        let mut first = None;
        for number in 1..=all {
            round(&vm, share, number).await;
            if !number.is_multiple_of(all / 10) {
                continue;
            }
            let [(_, monitor), (_, shim)] = named;
            let now = [at_rest(monitor).await, at_rest(shim).await];
            let (took, work) = (begun.elapsed().as_secs(), done("rounds"));
            println!("after {number} in {took} s, {} rounds of I/O: {named:?} {now:?}", work.trim());
            let first = first.get_or_insert(now);
            for (first, now) in first.iter().zip(&now) {
                assert!(now.descriptors <= first.descriptors + PROGRAMS, "{first:?} {now:?}");
                assert!(now.threads <= first.threads, "{first:?} {now:?}");
                assert!(now.written_kib <= first.written_kib + SLACK, "{first:?} {now:?}");
            }
        }
        assert!(done("rounds").trim().parse::<usize>().unwrap() > 0);
        fs::write(at_work.join("stop"), "").unwrap();
        assert_eq!(vm.agent.wait_process(&process("work")).await.unwrap().code, 0);
        vm.agent.delete_container(&container("work")).await.unwrap();
        // The kernel announces each disk.
        let log = done("log");
        let complaints: Vec<&str> = log.lines().filter(|line| is_a_complaint(line)).collect();
        println!(
            "the guest's kernel said {} lines, {} of them complaints",
            log.lines().count(),
            complaints.len()
        );
        assert!(log.lines().count() >= all && complaints.is_empty(), "{complaints:#?}");
        vm.unplug_disk(load).await.unwrap();
        vm.stop(PowerOff::Orderly).await.unwrap();
    });
}
