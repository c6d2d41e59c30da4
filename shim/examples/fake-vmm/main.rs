//! A monitor without a VM, for the shim's tests: speaks the control protocol on descriptor 3 and plays the agent
//! itself. "Containers" are processes of the host.
//!
//! `fake-vmm FAULT FOLDER`: what is to go wrong, see [`Fault`], and where the test looks for what it is told.

#![allow(clippy::unwrap_used, reason = "a test double: every surprise is a failed test")]
#![allow(missing_docs)]

mod agent;
mod broker;
mod fault;
mod streams;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener as StdListener;
use std::os::unix::net::UnixStream as StdStream;
use std::process::exit;
use std::sync::Arc;

use hull_protocol::agent::CONTROL_PORT;
use hull_protocol::agent::api::agent_ttrpc::create_agent;
use hull_protocol::vmm::{
    CONTROL_FD, Channel, DiskConfig, ExitReason, Failure, FailureCode, HotplugStats, Message, PortConnection,
    Request, VmStats,
};
use tokio::net::{UnixListener, UnixStream};
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use agent::FakeAgent;
use fault::{Fault, note, told};

fn main() {
    if std::env::args().nth(1).as_deref() == Some("broker") {
        broker::run();
    }
    let fault = Fault::parse(std::env::args().nth(1).as_deref());
    // SAFETY: the shim passed the descriptor for this process to own.
    let control = Channel::from(unsafe { OwnedFd::from_raw_fd(CONTROL_FD) });
    // The host processes that play containers must not hold our end open.
    nix::fcntl::fcntl(&control, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).unwrap();
    let mut ports = Vec::new();
    let mut listener = None;
    let mut console: Option<File> = None;
    // A monitor holds its taps.
    let mut taps = Vec::new();
    loop {
        let Ok(Some(received)) = control.receive::<Request>() else { exit(0) };
        let (request, fds) = (received.message, received.fds);
        match request {
            Request::Hello { .. } => fault.at("hello"),
            // It stays free: its containers are processes of the host.
            Request::Jail(_) => fault.at("jail"),
            Request::Machine(machine) => {
                fault.at("machine");
                note("kernel", &machine.kernel_args);
                let [_kvm, _kernel, _initramfs, file] = fds.try_into().unwrap();
                console = Some(File::from(file));
            }
            Request::AddDisk(disk) => {
                fault.at("disk");
                assert_eq!(fds.len(), disk.extents.len());
                note_disk("disk", &disk, &fds);
            }
            Request::AddNetwork(network) => {
                fault.at("network");
                note("network", &format!("device {} mtu {}", network.name, network.mtu));
                taps.extend(fds);
            }
            Request::AddVsock(_) => {
                fault.at("vsock");
                let mut fds = fds.into_iter();
                listener = fds.next();
                ports = fds.collect();
            }
            Request::Boot => {
                fault.at("boot");
                match fault {
                    Fault::RefuseBoot => {
                        let message = "KVM is on holiday".to_owned();
                        let failure = Failure { code: FailureCode::Kvm, message };
                        control.send(&Message::Failed(failure), &[]).unwrap();
                        continue;
                    }
                    Fault::Panic => {
                        let message = "VFS: Unable to mount root fs".to_owned();
                        let trace = "Oops: 0000\r\nRIP: 0010:nowhere\r\n---[ end Kernel panic ]---\r\n";
                        console.take().unwrap().write_all(trace.as_bytes()).unwrap();
                        control.send(&Message::Done, &[]).unwrap();
                        control.send(&Message::Exited(ExitReason::GuestPanic { message }), &[]).unwrap();
                        exit(0);
                    }
                    _ => {}
                }
                control.send(&Message::Done, &[]).unwrap();
                let control = Arc::new(control);
                let reading = Arc::clone(&control);
                // The end of the control socket is the end of the VM.
                std::thread::spawn(move || {
                    let mut taps = taps;
                    let mut plugged = 0;
                    while let Ok(Some(received)) = reading.receive::<Request>() {
                        match received.message {
                            Request::Stop => break,
                            Request::PlugHotplugMemory => {
                                fault.at("plug");
                                reading.send(&Message::Plugged { slot: 7 }, &[]).unwrap();
                            }
                            // A guest that has at most 256 MiB to give back and to take, and may be told to keep some.
                            Request::SetHotplugMemory { mib } => {
                                note("memory", &mib.to_string());
                                let kept = told("keeps").map_or(0, |keeps| plugged.min(keeps));
                                plugged = mib.next_multiple_of(2).min(256).max(kept);
                                reading.send(&Message::Done, &[]).unwrap();
                            }
                            Request::Stats => {
                                fault.at("stats");
                                let hotplug = HotplugStats {
                                    plugged_bytes: u64::from(plugged) << 20,
                                    ..HotplugStats::default()
                                };
                                let stats =
                                    VmStats { vm_exits: 7, hotplug: Some(hotplug), ..VmStats::default() };
                                reading.send(&Message::Stats(stats), &[]).unwrap();
                            }
                            Request::AddDisk(disk) => {
                                fault.at("plug");
                                note_disk("plugged", &disk, &received.fds);
                                reading.send(&Message::Plugged { slot: 8 }, &[]).unwrap();
                            }
                            Request::Unplug { name, .. } => {
                                fault.at("unplug");
                                note("disks", &format!("unplugged {name}"));
                                reading.send(&Message::Done, &[]).unwrap();
                            }
                            Request::AddNetwork(network) => {
                                fault.at("plug");
                                note("network", &format!("plugged {} mtu {}", network.name, network.mtu));
                                taps.extend(received.fds);
                                reading.send(&Message::Plugged { slot: 9 }, &[]).unwrap();
                            }
                            _ => {}
                        }
                    }
                    exit(0);
                });
                run_guest(fault, control, listener.unwrap(), ports.pop().unwrap());
            }
            Request::AddFs(_) => fault.at("fs"),
            Request::AddEntropy => fault.at("entropy"),
            Request::AddBalloon
            | Request::AddHotplugMemory { .. }
            | Request::ReserveHotplugMemory { .. }
            | Request::PlugHotplugMemory
            | Request::SetHotplugMemory { .. }
            | Request::AddPmem(_)
            | Request::SetBalloon { .. }
            | Request::Unplug { .. }
            | Request::Pause
            | Request::Resume
            | Request::Stats
            | Request::Stop => {}
        }
        if control.send(&Message::Done, &[]).is_err() {
            exit(0);
        }
    }
}

/// A disk, with what its first file was opened for.
fn note_disk(how: &str, disk: &DiskConfig, fds: &[OwnedFd]) {
    let flags = nix::fcntl::fcntl(&fds[0], nix::fcntl::FcntlArg::F_GETFL).unwrap();
    let opened = if flags & libc::O_ACCMODE == libc::O_RDONLY { "reading" } else { "writing" };
    note("disks", &format!("{how} {} {:?} for {opened}", disk.serial, disk.access));
}

fn run_guest(fault: Fault, control: Arc<Channel>, listener: OwnedFd, port: OwnedFd) -> ! {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let agent = FakeAgent::new(fault, control);
        let listener = StdListener::from(listener);
        listener.set_nonblocking(true).unwrap();
        let listener = UnixListener::from_std(listener).unwrap();
        if fault != Fault::Silent {
            let (ours, theirs) = StdStream::pair().unwrap();
            let connection = PortConnection { port: CONTROL_PORT, guest_port: 49152 };
            Channel::from(port).send(&connection, &[theirs.as_fd()]).unwrap();
            drop(theirs);
            fault::agent_connection(&ours);
            ours.set_nonblocking(true).unwrap();
            let ours = UnixStream::from_std(ours).unwrap();
            let once = futures::stream::unfold(Some(ours), |ours| async {
                match ours {
                    Some(ours) => Some((Ok(ours), None)),
                    None => std::future::pending().await,
                }
            });
            let mut server = Server::new()
                .add_listener(Listener::new(once))
                .register_service(create_agent(Arc::new(agent.clone())));
            server.start().await.unwrap();
            streams::accept(listener, agent).await;
        }
        std::future::pending::<()>().await;
    });
    exit(1)
}
