//! What a VM is to be, before there is one.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::cgroup::CgroupPath;
use crate::pod::{Disk, Export};
use crate::spec::{NetworkChoice, VmShape};

/// A VM to be started.
#[derive(Debug)]
pub struct VmSpec {
    /// What it begins with.
    pub size: VmShape,
    /// What it can become while it runs.
    pub room: VmShape,
    /// The disks, open.
    pub disks: Vec<Disk>,
    /// What of the host's files the guest may reach; `None` where it never will reach any.
    pub exports: Option<Vec<Export>>,
    /// File for the guest's console.
    pub console: PathBuf,
    /// Path for the monitor's vsock listener.
    pub stream_socket: PathBuf,
    /// The namespace of the containers' ids.
    pub namespace: String,
    /// The pod's network.
    pub network: NetworkChoice,
    /// The pod's host name.
    pub hostname: String,
    /// Kernel parameters of the pod's network.
    pub sysctls: HashMap<String, String>,
    /// Whether the pod's ports can be reached from its network namespace.
    pub ports: Ports,
    /// The pod's cgroup on the host, if it is to have one.
    pub cgroup: Option<CgroupPath>,
}

/// Where a pod's ports can be reached, besides by its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Nowhere.
    Own,
    /// On the loopback of its network namespace as well, where the host's kernel can do that.
    Forwarded,
}

/// How a VM is to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerOff {
    /// The guest syncs and unmounts first.
    Orderly,
    /// At once; nothing in it is worth keeping.
    Now,
}
