//! A test: thousands of containers in one real guest, and nothing that grows. `HULL_ROUNDS` says how many.

use std::path::Path;
use std::time::{Duration, Instant};

use containerd_shim_protos::protobuf::MessageField;
use hull_protocol::agent::api::agent::rootfs::Lower;
use hull_protocol::agent::api::agent::{
    ContainerRequest, CreateContainerRequest, CreateExecRequest, InfoRequest, InfoResponse, ProcessRequest,
    Rootfs, SharedFolder,
};
use hull_protocol::agent::{API_VERSION, VOLUMES_TAG};
use hull_protocol::fs::ExportAccess;
use hull_protocol::vmm::{FsCache, FsConfig, Request};
use serde_json::{Value, json};

use super::cgroup::Accounting;
use super::hotplug::tests::boot;
use super::{Broker, Export, PowerOff, Vm};
use crate::config::BROKER_VARIABLE;

/// Rounds unless the environment says otherwise.
const ROUNDS: u32 = 30;
/// Before anything is measured: allocators and caches fill once.
const WARM_UP: u32 = 10;
/// What the agent's memory may grow by, in KiB, however many rounds there are.
const GROWTH_MAX: u64 = 384;

fn spec() -> Value {
    let namespaces = ["pid", "mount", "ipc", "uts", "cgroup"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": "1.0.2", "root": {"path": "rootfs"}, "hostname": "round",
        "process": {
            "args": ["/true"], "cwd": "/", "user": {"uid": 0, "gid": 0},
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
        ],
        "linux": {
            "namespaces": namespaces,
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
            "resources": {
                "memory": {"limit": 32 << 20}, "pids": {"limit": 50}, "cpu": {"quota": 50_000, "period": 100_000},
                "devices": [{"allow": false, "access": "rwm"}],
            },
        },
    })
}

/// One container from its creation to its deletion, of `true`; or of `sleep`, with an exec in it.
async fn round(vm: &Vm, number: u32) {
    let id = format!("c{number}");
    let with_exec = number.is_multiple_of(8);
    let mut spec = spec();
    if with_exec {
        spec["process"]["args"] = json!(["/sleep", "1000"]);
    }
    let shared = SharedFolder { name: "root".into(), ..SharedFolder::default() };
    let request = CreateContainerRequest {
        container_id: id.clone(),
        spec: spec.to_string().into(),
        rootfs: MessageField::some(Rootfs { lower: Some(Lower::Shared(shared)), ..Rootfs::default() }),
        ..CreateContainerRequest::default()
    };
    vm.agent.create_container(&request).await.unwrap();
    let mut process = ProcessRequest { container_id: id.clone(), ..ProcessRequest::default() };
    vm.agent.start_process(&process).await.unwrap();
    if with_exec {
        spec["process"]["args"] = json!(["/true"]);
        let exec = CreateExecRequest {
            container_id: id.clone(),
            exec_id: "e".into(),
            process: spec["process"].to_string().into(),
            ..CreateExecRequest::default()
        };
        vm.agent.create_exec(&exec).await.unwrap();
        process.exec_id = "e".into();
        vm.agent.start_process(&process).await.unwrap();
    }
    assert_eq!(vm.agent.wait_process(&process).await.unwrap().code, 0, "{id}");
    let container = ContainerRequest { container_id: id, ..ContainerRequest::default() };
    vm.agent.delete_container(&container).await.unwrap();
}

async fn look(vm: &Vm) -> InfoResponse {
    let request = InfoRequest { api_version: API_VERSION, ..InfoRequest::default() };
    vm.agent.info(&request).await.unwrap()
}

fn say(rounds: u32, took: Duration, info: &InfoResponse) {
    println!(
        "{rounds} rounds, {} s: {} KiB resident, {} open files, {} threads; {} KiB available in the guest",
        took.as_secs(),
        info.agent_resident_bytes >> 10,
        info.agent_open_files,
        info.agent_threads,
        info.memory_available_bytes >> 10,
    );
}

#[test]
#[ignore = "needs a KVM that runs Linux, and the built programs: `make test` runs it in the test host"]
fn containers_come_and_go_in_a_real_guest() {
    let rounds = std::env::var("HULL_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let vm = boot(folder.path()).await;
        let program = std::env::var_os(BROKER_VARIABLE).unwrap();
        let (broker, files) = Broker::start(Path::new(&program), &Accounting::default()).await.unwrap();
        let config = FsConfig { tag: VOLUMES_TAG.into(), cache: FsCache::Auto };
        let slot = vm.monitor().plug(Request::AddFs(config), vec![files]).await.unwrap();
        vm.agent.bind_slot(slot).await.unwrap();
        let path = folder.path().join("root");
        std::fs::create_dir(&path).unwrap();
        for name in ["true", "sleep"] {
            std::fs::copy("/bin/busybox", path.join(name)).unwrap();
        }
        let root = std::fs::File::open(&path).unwrap().into();
        let access = ExportAccess::ReadWrite;
        broker.share(Export { name: "root".into(), path, access, root }).await.unwrap();

        for number in 0..WARM_UP {
            round(&vm, number).await;
        }
        let (begun, before) = (Instant::now(), look(&vm).await);
        say(0, Duration::ZERO, &before);
        for number in 0..rounds {
            round(&vm, number).await;
            if (number + 1).is_multiple_of(500) {
                say(number + 1, begun.elapsed(), &look(&vm).await);
            }
        }
        let after = look(&vm).await;
        say(rounds, begun.elapsed(), &after);
        assert_eq!(after.agent_open_files, before.agent_open_files);
        assert_eq!(after.agent_threads, 1);
        let grown = (after.agent_resident_bytes >> 10).saturating_sub(before.agent_resident_bytes >> 10);
        assert!(grown <= GROWTH_MAX, "{grown} KiB");
        broker.end().await;
        vm.stop(PowerOff::Orderly).await.unwrap();
    });
}
