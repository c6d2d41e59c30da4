//! The agent without a VM: on unix sockets, in a mount namespace, a network namespace and a cgroup of its own. For tests and debugging.
//!
//! Run it as PID 1 of a pid namespace with its own /proc (`unshare --pid --fork --mount-proc`): then nothing survives it.

use std::path::PathBuf;
use std::sync::Arc;

use futures::StreamExt;
use tokio::net::UnixListener;

use crate::agent::{self, Outcome};
use crate::cgroup::CgroupParent;
use crate::environment::Environment;
use crate::rootfs::Disks;
use crate::stdio::Connection;
use crate::sys;

/// Where things are.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory for the sockets `control.sock` and `streams.sock`, which are made, and for `run`.
    pub directory: PathBuf,
    /// Directory whose subdirectories are the disks.
    pub disks: PathBuf,
    /// Name of the cgroup to use, below the root of the cgroup2 hierarchy.
    pub cgroup: String,
}

/// Serves one connection on `control.sock` until it ends. Prints a line when it listens.
pub async fn run(options: Options) -> Result<Outcome, Box<dyn std::error::Error>> {
    // The network too: the pod's is configured as a whole, and the host's must not be.
    sys::process::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWNET)?;
    sys::socket::loopback_up()?;
    sys::mount::mount(c"none", c"/", None, libc::MS_REC | libc::MS_PRIVATE)?;
    let run = options.directory.join("run");
    let hierarchy = options.directory.join("cgroup");
    for directory in [&run, &hierarchy] {
        std::fs::create_dir_all(directory)?;
    }
    let at = |path: &PathBuf| std::ffi::CString::new(path.as_os_str().as_encoded_bytes());
    sys::mount::mount(c"cgroup2", &at(&hierarchy)?, Some(c"cgroup2"), 0)?;
    sys::mount::mount(c"tmpfs", &at(&run)?, Some(c"tmpfs"), 0)?;
    let cgroup = hierarchy.join(&options.cgroup);
    let cgroups = CgroupParent::prepare(&hierarchy, &cgroup)?;
    let environment = Environment::prepare(&run, cgroups, Disks::Directories(options.disks))?;

    let streams = UnixListener::bind(options.directory.join("streams.sock"))?;
    let control = UnixListener::bind(options.directory.join("control.sock"))?;
    println!("listening");
    let (connection, _) = control.accept().await?;
    let incoming = futures::stream::unfold(streams, |streams| async move {
        let accepted = streams.accept().await;
        Some((accepted, streams))
    })
    .filter_map(|accepted| async move {
        accepted.ok().map(|(connection, _)| Box::new(connection) as Box<dyn Connection>)
    });
    let outcome = agent::run(Arc::new(environment), connection, incoming).await?;
    // Only this agent's own: it is empty, because every container is gone.
    std::fs::remove_dir(&cgroup)?;
    Ok(outcome)
}
