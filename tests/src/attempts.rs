//! What root in a container tries, each attempt once: by the agent's command line beside runc, and in a microVM for the tables of
//! docs/security.md. Only what does no harm where it succeeds: some hosts of these tests are real.

use serde_json::Value;

use crate::document::{Section, outcome};

/// One attempt.
#[derive(Debug)]
pub struct Attempt {
    /// What it is, in words.
    pub words: &'static str,
    /// What the checker is told to try.
    pub probe: &'static str,
    /// What stands in the way.
    pub guard: &'static str,
}

const fn attempt(words: &'static str, probe: &'static str, guard: &'static str) -> Attempt {
    Attempt { words, probe, guard }
}

/// On the kernel, and on whoever else it runs. They need nothing but a container, with directories /tmp and /mnt.
pub const ON_THE_KERNEL: [Attempt; 49] = [
    attempt("find a descriptor of the agent's", "stat:/proc/self/fd/3", "none is left open"),
    attempt(
        "set a parameter of the kernel",
        "open-write:/proc/sys/kernel/core_pattern",
        "read-only /proc/sys",
    ),
    attempt("... of its memory management", "open-write:/proc/sys/vm/panic_on_oom", "read-only /proc/sys"),
    attempt("... of its modules", "open-write:/proc/sys/kernel/modprobe", "the guest's kernel has none"),
    attempt("... of an interrupt", "open-write:/proc/irq/default_smp_affinity", "read-only /proc/irq"),
    attempt("press a magic key", "open-write:/proc/sysrq-trigger", "the guest's kernel has none"),
    attempt("read the kernel's memory", "peek:/proc/kcore", "the guest's kernel does not show it"),
    attempt("write to sysfs", "open-write:/sys/kernel/rcu_expedited", "read-only sysfs"),
    attempt("... make it writable first", "remount-write:/sys", "no CAP_SYS_ADMIN"),
    attempt("make /proc/sys writable", "remount-write:/proc/sys", "no CAP_SYS_ADMIN"),
    attempt("unmount what makes it read-only", "unmount:/proc/sys", "no CAP_SYS_ADMIN"),
    attempt("unmount what masks a path", "unmount:/proc/keys", "no CAP_SYS_ADMIN"),
    attempt("mount a second procfs", "mount:proc=/mnt", "no CAP_SYS_ADMIN"),
    attempt("mount a tmpfs", "mount:tmpfs=/mnt", "no CAP_SYS_ADMIN"),
    attempt("mount the cgroup hierarchy", "mount:cgroup2=/mnt", "no CAP_SYS_ADMIN"),
    attempt("make a child cgroup", "mkdir:/sys/fs/cgroup/below", "read-only cgroupfs"),
    attempt(
        "raise its own memory limit",
        "write:/sys/fs/cgroup/memory.max=max",
        "read-only cgroupfs; a cgroup namespace is a boundary",
    ),
    attempt(
        "leave its cgroup upwards",
        "open-write:/sys/fs/cgroup/../cgroup.procs",
        "a cgroup namespace: there is nothing above",
    ),
    attempt(
        "... and upwards by a handle of its root",
        "cgroup-root",
        "no CAP_DAC_READ_SEARCH, docker's filter",
    ),
    attempt(
        "make the node of the memory device",
        "mknod:/tmp/mem=c,1,1",
        "nothing: CAP_MKNOD is docker's default",
    ),
    attempt("... and read it", "open:/tmp/mem", "device filter; the guest's kernel has none"),
    attempt("make the node of the kernel's log", "mknod:/tmp/kmsg=c,1,11", "nothing"),
    attempt("... and write to it", "open-write:/tmp/kmsg", "device filter"),
    attempt("make the node of a disk", "mknod:/tmp/disk=b,7,0", "nothing"),
    attempt("... and read it", "open:/tmp/disk", "device filter; the guest has none of that number"),
    attempt("make a namespace of users", "unshare:user", "docker's filter"),
    attempt("make a mount namespace", "unshare:mount", "no CAP_SYS_ADMIN, docker's filter"),
    attempt("mount the guest's devices", "mount:devtmpfs=/mnt", "no CAP_SYS_ADMIN"),
    attempt(
        "mount all that the host shares",
        "mount:virtiofs@volumes=/mnt",
        "no CAP_SYS_ADMIN; it is the pod's",
    ),
    attempt("leave by chroot", "chroot-escape", "the root was pivoted into: there is nothing above"),
    attempt("open a file by its handle", "syscall:304", "no CAP_DAC_READ_SEARCH, docker's filter"),
    attempt("load a BPF program", "syscall:321", "docker's filter"),
    attempt("load a module", "syscall:175", "no CAP_SYS_MODULE, docker's filter; not in the guest's kernel"),
    attempt(
        "start another kernel",
        "syscall:246",
        "no CAP_SYS_BOOT, docker's filter; not in the guest's kernel",
    ),
    attempt("open a performance counter", "syscall:298", "docker's filter"),
    attempt("use the kernel's keys", "syscall:250", "docker's filter"),
    attempt("handle page faults of others", "syscall:323", "docker's filter"),
    attempt("reboot", "syscall:169", "no CAP_SYS_BOOT, docker's filter"),
    attempt("use I/O ports", "iopl", "no CAP_SYS_RAWIO, docker's filter"),
    attempt("set the clock", "syscall:164", "no CAP_SYS_TIME, docker's filter"),
    attempt("make a vsock socket", "socket:40,1", "docker's filter"),
    attempt(
        "make a raw packet socket",
        "socket:17,3",
        "nothing: CAP_NET_RAW is docker's default, on its own network",
    ),
    attempt("make a socket of the kernel's ciphers", "socket:38,5", "the guest's kernel has none"),
    attempt("see processes outside", "open:/proc/2/status", "its own process ids"),
    attempt("signal processes outside", "kill:2", "its own process ids"),
    attempt("write to the program that runs", "open-write:/proc/self/exe", "it is busy"),
    attempt("join the namespaces of init's parent", "open:/proc/0/ns/mnt", "its own process ids"),
    attempt("trace a process outside", "trace:2", "its own process ids"),
    attempt("read another container's files", "list:/run/hull", "its own root"),
];

/// On the host, the agent, and other VMs. The container has a volume that is read-only at /volume, with a link in it to a file of the
/// host's; and something has begun to run there that is the agent's, for the last of them.
pub const ON_THE_HOST: [Attempt; 15] = [
    attempt(
        "connect to the agent's port on the host",
        "vsock:2,1024",
        "the shim took one connection, the agent's",
    ),
    attempt("connect to its other port there", "vsock:2,1025", "the host listens on none"),
    attempt("connect to a port of the host's", "vsock:2,22", "the host listens on none"),
    attempt("connect to the agent by the guest's address", "vsock:3,1025", "the guest has no vsock loopback"),
    attempt(
        "connect to the agent by the loopback address",
        "vsock:1,1025",
        "the monitor refuses what is not for the host",
    ),
    attempt("connect to the next guest", "vsock:4,1025", "the monitor refuses what is not for the host"),
    attempt("take the agent's port", "vsock-listen:1025", "the agent has it"),
    attempt("read its disk by a node of its own", "disk:vda", "device filter; it is its own"),
    attempt(
        "write to its image by that node",
        "disk-write:vda",
        "device filter; it is mounted, and read-only where it comes from",
    ),
    attempt("make a read-only volume writable", "remount-write:/volume", "no CAP_SYS_ADMIN"),
    attempt("... and write to it", "create:/volume/file", "read-only is enforced on the host"),
    attempt("... and make a device there", "mknod:/volume/node=c,1,3", "read-only is enforced on the host"),
    attempt("follow a volume's link to the host", "open:/volume/link", "links are followed in the guest"),
    attempt("climb out of a volume", "open:/volume/../secret", "what is above it is the container's"),
    // Once something runs that is the agent's.
    attempt("overwrite the agent's program", "seize", "it runs"),
];

/// The checker's command line.
pub fn command<'a>(attempts: impl IntoIterator<Item = &'a Attempt>) -> Vec<&'static str> {
    std::iter::once("/checker").chain(attempts.into_iter().map(|attempt| attempt.probe)).collect()
}

/// What came of each, from the checker's report.
pub fn outcomes<'a>(report: &Value, attempts: impl IntoIterator<Item = &'a Attempt>) -> Vec<String> {
    attempts.into_iter().map(|attempt| outcome(&report["probes"][attempt.probe])).collect()
}

/// A table: the words, what came of it by default and with every privilege, and what stands in the way.
pub fn section(attempts: &[Attempt], default: &[String], privileged: &[String]) -> Section {
    assert_eq!((attempts.len(), attempts.len()), (default.len(), privileged.len()));
    let row = |((attempt, default), privileged): ((&Attempt, &String), &String)| {
        [attempt.words.to_owned(), default.clone(), privileged.clone(), attempt.guard.to_owned()]
    };
    Section { rows: attempts.iter().zip(default).zip(privileged).map(row).collect() }
}
