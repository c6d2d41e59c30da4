//! Settings of the whole guest: host name, clock, entropy, kernel parameters; and what the guest is.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};

use hull_protocol::agent::API_VERSION;
use hull_protocol::agent::api::agent as api;
use nix::errno::Errno;

use crate::environment::Environment;
use crate::memory;
use crate::spec::Sysctl;
use crate::sys;

/// The most entropy that is taken at once, in bytes.
const ENTROPY_MAX: usize = 512;
/// The longest host name (sethostname(2)).
const HOSTNAME_MAX: usize = 64;

/// Why the pod could not be configured.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// A value that cannot be right.
    #[error("pod {field}: {reason}")]
    Invalid {
        /// Which setting.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The kernel refused.
    #[error("cannot set the pod's {what}: {}", source.desc())]
    System {
        /// Which setting.
        what: String,
        /// Why.
        source: Errno,
    },
}

/// Describes the guest.
pub fn info(environment: &Environment) -> api::InfoResponse {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let entries =
        |path| std::fs::read_dir(path).map_or(0, |all| u32::try_from(all.count()).unwrap_or(u32::MAX));
    let bytes = |path, field: &str| memory::bytes(&read(path), field).unwrap_or_default();
    api::InfoResponse {
        api_version: API_VERSION,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_release: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        online_cpus: std::thread::available_parallelism()
            .map_or(1, |count| u32::try_from(count.get()).unwrap_or(1)),
        memory_total_bytes: bytes("/proc/meminfo", "MemTotal:"),
        memory_available_bytes: bytes("/proc/meminfo", "MemAvailable:"),
        memory_containers_bytes: environment.cgroups.memory().map_or(0, |(_, most)| most),
        agent_open_files: entries("/proc/self/fd"),
        agent_threads: entries("/proc/self/task"),
        agent_resident_bytes: bytes("/proc/self/status", "VmRSS:"),
        ..api::InfoResponse::default()
    }
}

/// The host name and the kernel parameters that a request asks for, all of which is checked.
pub fn check(request: &api::ConfigurePodRequest) -> Result<(CString, Vec<Sysctl>), PodError> {
    let invalid = |field, reason: String| PodError::Invalid { field, reason };
    if request.hostname.len() > HOSTNAME_MAX {
        return Err(invalid("hostname", format!("longer than {HOSTNAME_MAX} bytes")));
    }
    let hostname = CString::new(request.hostname.as_str())
        .map_err(|_| invalid("hostname", "contains a NUL byte".to_owned()))?;
    if request.entropy.len() > ENTROPY_MAX {
        return Err(invalid("entropy", format!("more than {ENTROPY_MAX} bytes")));
    }
    if request.realtime_nanos < 0 {
        return Err(invalid("realtime_nanos", "negative".to_owned()));
    }
    let sysctls = request
        .sysctls
        .iter()
        .map(|(name, value)| {
            Sysctl::of_pod(name, value).map_err(|error| invalid("sysctls", error.to_string()))
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok((hostname, sysctls))
}

/// Applies the settings; everything is checked before anything is changed.
pub fn configure(environment: &Environment, request: &api::ConfigurePodRequest) -> Result<(), PodError> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |source| PodError::System { what, source }
    };
    let (hostname, sysctls) = check(request)?;
    if request.realtime_nanos > 0 {
        set_clock(request.realtime_nanos).map_err(failed("clock"))?;
    }
    if !request.entropy.is_empty() {
        add_entropy(&request.entropy).map_err(failed("entropy"))?;
    }
    if !hostname.is_empty() {
        sys::process::set_hostname(&hostname).map_err(failed("host name"))?;
    }
    for sysctl in sysctls {
        sys::path::open_at(environment.proc.as_fd(), &sysctl.path, libc::O_WRONLY)
            .and_then(|file| sys::path::write_control(file.as_fd(), &sysctl.value))
            .map_err(failed(&format!("kernel parameter {}", sysctl.path.to_string_lossy())))?;
    }
    Ok(())
}

fn set_clock(nanos: i64) -> nix::Result<()> {
    let time = libc::timespec { tv_sec: nanos / 1_000_000_000, tv_nsec: nanos % 1_000_000_000 };
    // SAFETY: the structure outlives the call.
    Errno::result(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) }).map(drop)
}

/// Mixes `bytes` into the kernel's pool and credits them (RNDADDENTROPY), then reseeds the generators (RNDRESEEDCRNG): the host is the
/// source of trust for a guest that may be a clone.
fn add_entropy(bytes: &[u8]) -> nix::Result<()> {
    const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
    const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
    #[repr(C)]
    struct Pool {
        bits: libc::c_int,
        size: libc::c_int,
        bytes: [u8; ENTROPY_MAX],
    }
    let length = bytes.len().min(ENTROPY_MAX);
    let size = libc::c_int::try_from(length).map_err(|_| Errno::EINVAL)?;
    let mut pool = Pool { bits: size * 8, size, bytes: [0; ENTROPY_MAX] };
    pool.bytes[..length].copy_from_slice(&bytes[..length]);
    let device = sys::path::open(c"/dev/random", libc::O_WRONLY)?;
    // SAFETY: RNDADDENTROPY reads `size` bytes after the two numbers, which are there; RNDRESEEDCRNG has no argument.
    unsafe {
        Errno::result(libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const pool))?;
        Errno::result(libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG))?;
    }
    Ok(())
}
