//! Boots a kernel and an initramfs in `hull-vmm`, shows the console, the reason of the end and the counters:
//!
//! `boot HULL_VMM KERNEL INITRAMFS [VCPUS [MEMORY_MIB [KERNEL_ARGS]]]`
//!
//! `HULL_BOOT_DISK` names a file that becomes a writable disk; `HULL_BOOT_HOTPLUG_MIB` plugs so much memory once it runs;
//! `HULL_BOOT_STATS_AFTER` shows counters after so many seconds.
//!
//! A development tool: it does what a shim does, without further devices except for entropy and a balloon.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use hull_protocol::vmm::{
    CONTROL_FD, Channel, CpuTemplate, DiskAccess, DiskConfig, DiskDiscard, DiskExtent, JailConfig,
    MachineConfig, Message, RateLimits, Request, VERSION,
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [monitor, kernel, initramfs, rest @ ..] = &arguments[..] else {
        return Err("usage: boot HULL_VMM KERNEL INITRAMFS [VCPUS [MEMORY_MIB [KERNEL_ARGS]]]".into());
    };
    let config = MachineConfig {
        vcpus: rest.first().map_or(Ok(1), |vcpus| vcpus.parse())?,
        online_vcpus: None,
        cpu: CpuTemplate::Host,
        memory_mib: rest.get(1).map_or(Ok(256), |mib| mib.parse())?,
        kernel_args: rest.get(2).cloned().unwrap_or_default(),
        console_limit_bytes: 1 << 20,
    };

    let (ours, theirs) = Channel::pair()?;
    let theirs = OwnedFd::from(theirs);
    let begin = Instant::now();
    let mut child = spawn(monitor, &theirs)?;
    drop(theirs);

    let kvm = File::options().read(true).write(true).open("/dev/kvm")?;
    let (kernel, initramfs) = (File::open(kernel)?, File::open(initramfs)?);
    ask(&ours, &Request::Hello { version: VERSION }, &[])?;
    let stdout = io::stdout();
    ask(&ours, &Request::Jail(JailConfig::Unprivileged), &[])?;
    let fds = [kvm.as_fd(), kernel.as_fd(), initramfs.as_fd(), stdout.as_fd()];
    ask(&ours, &Request::Machine(config), &fds)?;
    ask(&ours, &Request::AddEntropy, &[])?;
    ask(&ours, &Request::AddBalloon, &[])?;
    if let Some(path) = std::env::var_os("HULL_BOOT_DISK") {
        let disk = File::options().read(true).write(true).open(path)?;
        ask(&ours, &Request::AddDisk(whole(&disk)?), &[disk.as_fd()])?;
    }
    let hotplug = std::env::var("HULL_BOOT_HOTPLUG_MIB").ok().map(|mib| mib.parse()).transpose()?;
    if let Some(mib) = hotplug {
        ask(&ours, &Request::AddHotplugMemory { mib }, &[])?;
    }
    ask(&ours, &Request::Boot, &[])?;
    if let Some(mib) = hotplug {
        ask(&ours, &Request::SetHotplugMemory { mib }, &[])?;
    }
    eprintln!("boot: running after {:?}", begin.elapsed());
    if let Some(seconds) = std::env::var_os("HULL_BOOT_STATS_AFTER") {
        std::thread::sleep(Duration::from_secs_f64(seconds.to_string_lossy().parse()?));
        eprintln!("boot: {:?}", ask(&ours, &Request::Stats, &[])?);
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", child.id()))?;
        eprintln!("{rollup}");
    }
    let last = ours.receive::<Message>()?.map(|received| received.message);
    eprintln!("boot: {last:?} after {:?}, {}", begin.elapsed(), child.wait()?);
    Ok(())
}

/// A file as a disk.
fn whole(file: &File) -> io::Result<DiskConfig> {
    let extents = vec![DiskExtent { offset: 0, length: file.metadata()?.len() }];
    let (discard, limits) = (DiskDiscard::On, RateLimits::default());
    Ok(DiskConfig { serial: "boot".into(), access: DiskAccess::ReadWrite, extents, discard, limits })
}

fn spawn(monitor: &str, socket: &OwnedFd) -> io::Result<std::process::Child> {
    let fd = socket.as_raw_fd();
    let mut command = Command::new(monitor);
    // SAFETY: between fork and exec only fcntl or dup2 is called, which are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            let done =
                if fd == CONTROL_FD { libc::fcntl(fd, libc::F_SETFD, 0) } else { libc::dup2(fd, CONTROL_FD) };
            if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    command.spawn()
}

fn ask(channel: &Channel, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Message, Box<dyn Error>> {
    channel.send(request, fds)?;
    match channel.receive()?.map(|received| received.message) {
        Some(Message::Failed(failure)) => Err(failure.into()),
        Some(message) => Ok(message),
        None => Err("the monitor has gone".into()),
    }
}
