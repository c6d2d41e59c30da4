//! `hull check --overhead`: what a pod takes of the host beside the memory of its containers, measured on one that is booted for it.
//!
//! The pod is a sandbox, which runs nothing: all that it takes is overhead, but for the guest's memory that containers could have.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hull_shim::ProcStat;
use hull_shim::client::messages::CreateTaskRequest;
use hull_shim::client::{Process, Reach, Shim, TaskClient};
use hull_shim::config::Config;
use hull_shim::metrics::PodMetrics;
use hull_shim::record::{CgroupRecord, Record, ShimRecord, annotation};
use hull_shim::size;
use serde::Serialize;
use serde_json::json;

use crate::engine;
use crate::error::CliError;

/// What the recommendation is rounded up to, in MiB.
const STEP_MIB: u64 = 8;
/// A GiB, in MiB.
const GIB_MIB: u64 = 1 << 10;
/// What is added for what grows with the use of a pod (the kernel's tables for the VM, buffers), as a part of what was measured.
const MARGIN: u64 = 4;
/// The file broker's name, as the kernel cuts it.
const BROKER: &str = "hull-fsd";
/// The parent's process id among the fields of `/proc/PID/stat` (proc_pid_stat(5)).
const PARENT: usize = 4;

/// What a pod takes, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Overhead {
    shim: Memory,
    /// Without the guest's memory.
    monitor: Memory,
    broker: Memory,
    /// What the kernel has for monitor and broker; none where no cgroup counts it.
    kernel: Option<u64>,
    guest: Guest,
    /// What a RuntimeClass should say in `podFixed.memory`, in MiB, for pods whose memory limits are small.
    pod_fixed_mib: u64,
    /// What it should say more for each GiB of them, in MiB.
    pod_fixed_mib_per_gib: u64,
    /// `vm.overhead_mib`.
    configured_mib: u64,
}

/// Memory of a process.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Memory {
    /// Its own, and its part of what is shared.
    pss: u64,
    /// Its own.
    private: u64,
}

/// Memory of a guest in which nothing runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Guest {
    ram: u64,
    /// What containers can have of it.
    available: u64,
}

/// Boots a pod, looks at it and ends it.
pub fn measure(state: &Path) -> Result<Overhead, CliError> {
    let id = format!("check-{}", std::process::id());
    let bundle = state.join(&id);
    fs::create_dir_all(&bundle).map_err(CliError::io(format!("cannot make {}", bundle.display())))?;
    let shim = Shim {
        binary: Shim::find()?,
        namespace: engine::NAMESPACE.to_owned(),
        id,
        bundle: bundle.clone(),
        callback_address: state.join("hull.sock").to_string_lossy().into_owned(),
    };
    let measured = engine::runtime()?.block_on(of_pod(&shim));
    // The pod has ended; where that failed, this ends it.
    let cleaned = if measured.is_err() { shim.delete().map(drop) } else { Ok(()) };
    let removed = fs::remove_dir_all(&bundle);
    let overhead = measured?;
    cleaned?;
    removed.map_err(CliError::io(format!("cannot remove {}", bundle.display())))?;
    Ok(overhead)
}

async fn of_pod(shim: &Shim) -> Result<Overhead, CliError> {
    let config = json!({
        "ociVersion": "1.0.2",
        "annotations": {annotation::CRI_CONTAINER_TYPE: "sandbox"},
        "linux": {"namespaces": [{"type": "network"}], "cgroupsPath": format!("/hull/{}", shim.id)},
    });
    fs::write(shim.bundle.join("config.json"), config.to_string())
        .map_err(CliError::io("cannot write the pod's config.json"))?;
    let client = TaskClient::connect(&shim.start()?).await?;
    let mut request = CreateTaskRequest::new();
    request.id.clone_from(&shim.id);
    request.bundle = shim.bundle.display().to_string();
    let sandbox = Process::init(&shim.id);
    client.create(&request).await?;
    client.start(sandbox).await?;
    let figures = client.pod_metrics().await?;
    let overhead = of_figures(&shim.bundle, &figures);
    client.kill(sandbox, 9, Reach::Process).await?;
    client.wait(sandbox).await?;
    client.delete(sandbox).await?;
    client.shutdown(&shim.id).await?;
    overhead
}

fn of_figures(bundle: &Path, figures: &PodMetrics) -> Result<Overhead, CliError> {
    let record = ShimRecord::read(bundle)?.unwrap_or_default();
    let monitor = record.vmm_pid.unwrap_or_default();
    let read =
        |what, result: io::Result<Memory>| result.map_err(CliError::io(format!("cannot measure the {what}")));
    let (shim, monitor) = (read("shim", of_process(record.shim_pid))?, read("monitor", of_process(monitor))?);
    let broker = read("file broker", broker_of(record.shim_pid).map_or(Ok(Memory::default()), of_process))?;
    let (Some(vm), Some(guest)) = (&figures.vm, figures.guest) else {
        return Err(CliError::Kvm("the VM does not answer how much memory it has".to_owned()));
    };
    let guest = Guest { ram: vm.ram_bytes, available: guest.available_bytes };
    let kernel = record.cgroup.as_ref().and_then(kernel_memory);
    let configured_mib = Config::load().map_or(0, |config| u64::from(config.vm.overhead_mib));
    let host = [shim.pss, monitor.pss, broker.pss, kernel.unwrap_or_default()].iter().sum();
    let pod_fixed_mib = recommended(host, configured_mib);
    let pod_fixed_mib_per_gib = size::share_mib(GIB_MIB);
    Ok(Overhead {
        shim,
        monitor,
        broker,
        kernel,
        guest,
        pod_fixed_mib,
        pod_fixed_mib_per_gib,
        configured_mib,
    })
}

/// A VM is larger than its pod's limit by `configured` MiB and what grows with the limit, all of which a guest may touch; the rest is the host's.
fn recommended(host_bytes: u64, configured_mib: u64) -> u64 {
    let host_mib = (host_bytes + host_bytes / MARGIN).div_ceil(1 << 20);
    (configured_mib + host_mib).next_multiple_of(STEP_MIB)
}

impl Overhead {
    /// For a person.
    pub fn lines(&self) -> Vec<String> {
        let size = mib;
        let of = |name: &str, memory: Memory| {
            format!("{name:<28}{:>10}, {:>10} of it its own", size(memory.pss), size(memory.private))
        };
        let kernel = self.kernel.map_or_else(|| "not counted on this host".to_owned(), size);
        let taken = self.guest.ram.saturating_sub(self.guest.available);
        vec![
            of("shim", self.shim),
            of("monitor, without the guest", self.monitor),
            of("file broker", self.broker),
            format!("{:<28}{kernel:>10}", "the kernel's for them"),
            format!(
                "{:<28}{:>10} of {} (vm.overhead_mib allows {} MiB)",
                "guest kernel and agent",
                size(taken),
                size(self.guest.ram),
                self.configured_mib
            ),
            format!(
                "RuntimeClass: overhead.podFixed.memory: {}Mi, and {}Mi for each GiB of its pods' memory limits",
                self.pod_fixed_mib, self.pod_fixed_mib_per_gib
            ),
        ]
    }
}

/// In tenths of a MiB.
fn mib(bytes: u64) -> String {
    let tenths = (bytes * 10).div_ceil(1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

/// What a process has in memory; of a monitor, without the guest's.
fn of_process(pid: u32) -> io::Result<Memory> {
    Ok(in_maps(&fs::read_to_string(format!("/proc/{pid}/smaps"))?))
}

/// The guest's memory is what is left out of core dumps (`dd`), and nothing else is.
fn in_maps(smaps: &str) -> Memory {
    let (mut all, mut this) = (Memory::default(), Memory::default());
    for line in smaps.lines() {
        let (key, rest) = line.split_once(':').unwrap_or_default();
        let kib =
            || rest.trim().strip_suffix(" kB").and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default();
        match key {
            "Pss" => this.pss = kib() * 1024,
            "Private_Clean" | "Private_Dirty" => this.private += kib() * 1024,
            "VmFlags" => {
                if !rest.split_whitespace().any(|flag| flag == "dd") {
                    all.pss += this.pss;
                    all.private += this.private;
                }
                this = Memory::default();
            }
            _ => {}
        }
    }
    all
}

/// The file broker is a child of the shim.
fn broker_of(shim: u32) -> Option<u32> {
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|&pid| {
        let parent = ProcStat::read(pid).ok().and_then(|stat| stat.field(PARENT));
        let name = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        parent == Some(shim.into()) && name().trim_end() == BROKER
    })
}

/// The kernel's own memory for a cgroup: `kernel` of version 2 (Linux 5.18), or version 1's counter.
fn kernel_memory(cgroup: &CgroupRecord) -> Option<u64> {
    cgroup.directories().find_map(|directory: PathBuf| {
        let of_1 = fs::read_to_string(directory.join("memory.kmem.usage_in_bytes"));
        if let Some(bytes) = of_1.ok().and_then(|text| text.trim().parse().ok()) {
            return Some(bytes);
        }
        let stat = fs::read_to_string(directory.join("memory.stat")).ok()?;
        stat.lines().find_map(|line| line.strip_prefix("kernel ")?.trim().parse().ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_left_out() {
        let smaps = "7f0000000000-7f0020000000 rw-p 00000000 00:00 0\nSize: 524288 kB\nPss: 60000 kB\n\
                     Private_Clean: 0 kB\nPrivate_Dirty: 60000 kB\nVmFlags: rd wr mr mw me ac dd nr\n\
                     5500-5600 r-xp 0 08:01 7 /usr/bin/hull-vmm\nPss: 300 kB\nPrivate_Clean: 10 kB\n\
                     Private_Dirty: 0 kB\nVmFlags: rd ex mr mw me\n\
                     5600-5700 rw-p 0 00:00 0 [heap]\nPss: 40 kB\nPrivate_Clean: 0 kB\n\
                     Private_Dirty: 40 kB\nVmFlags: rd wr\n";
        assert_eq!(in_maps(smaps), Memory { pss: 340 * 1024, private: 50 * 1024 });
    }

    #[test]
    fn the_recommendation_has_room_for_a_guest_that_touches_all_it_has() {
        assert_eq!(recommended(0, 128), 128);
        assert_eq!(recommended(10 << 20, 128), 144);
        assert_eq!(recommended(1, 128), 136);
    }
}
