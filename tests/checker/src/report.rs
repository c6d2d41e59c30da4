//! What the kernel says about this process and its container, as one object.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use crate::json::{Json, list, number, object, string};
use crate::system;

const LIMITS: [(&str, libc::__rlimit_resource_t); 16] = [
    ("RLIMIT_CPU", libc::RLIMIT_CPU),
    ("RLIMIT_FSIZE", libc::RLIMIT_FSIZE),
    ("RLIMIT_DATA", libc::RLIMIT_DATA),
    ("RLIMIT_STACK", libc::RLIMIT_STACK),
    ("RLIMIT_CORE", libc::RLIMIT_CORE),
    ("RLIMIT_RSS", libc::RLIMIT_RSS),
    ("RLIMIT_NPROC", libc::RLIMIT_NPROC),
    ("RLIMIT_NOFILE", libc::RLIMIT_NOFILE),
    ("RLIMIT_MEMLOCK", libc::RLIMIT_MEMLOCK),
    ("RLIMIT_AS", libc::RLIMIT_AS),
    ("RLIMIT_LOCKS", libc::RLIMIT_LOCKS),
    ("RLIMIT_SIGPENDING", libc::RLIMIT_SIGPENDING),
    ("RLIMIT_MSGQUEUE", libc::RLIMIT_MSGQUEUE),
    ("RLIMIT_NICE", libc::RLIMIT_NICE),
    ("RLIMIT_RTPRIO", libc::RLIMIT_RTPRIO),
    ("RLIMIT_RTTIME", libc::RLIMIT_RTTIME),
];

/// Everything that needs no question.
pub fn report() -> Vec<(String, Json)> {
    let members = [
        ("args", list(std::env::args().map(|argument| string(&argument)))),
        ("env", list(std::env::vars().map(|(name, value)| string(&format!("{name}={value}"))))),
        (
            "cwd",
            std::env::current_dir().map_or(Json("null".to_owned()), |path| string(&path.to_string_lossy())),
        ),
        ("pid", number(std::process::id())),
        ("session", number(system::session())),
        ("hostname", line("/proc/sys/kernel/hostname")),
        ("domainname", line("/proc/sys/kernel/domainname")),
        ("machine", string(&system::machine())),
        ("umask", string(&system::umask())),
        ("status", status()),
        ("limits", limits()),
        ("oomScoreAdj", line("/proc/self/oom_score_adj")),
        ("scheduler", system::scheduler()),
        ("ioPriority", number(system::io_priority())),
        ("personality", number(system::personality())),
        ("mempolicy", system::memory_policy()),
        ("namespaces", namespaces()),
        ("uidMap", words("/proc/self/uid_map")),
        ("gidMap", words("/proc/self/gid_map")),
        ("setgroups", line("/proc/self/setgroups")),
        ("uptime", line("/proc/uptime")),
        ("mounts", mounts()),
        ("dev", devices()),
        ("cgroup", line("/proc/self/cgroup")),
        ("label", line("/proc/self/attr/current")),
        ("interfaces", interfaces()),
        ("files", files()),
        ("terminal", system::terminal()),
        ("streams", list((0..3).map(system::stream_owner))),
    ];
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn line(path: &str) -> Json {
    fs::read_to_string(path)
        .map_or(Json("null".to_owned()), |text| string(text.trim_end_matches(['\n', '\0'])))
}

fn words(path: &str) -> Json {
    let text = fs::read_to_string(path).unwrap_or_default();
    list(text.split_whitespace().map(string))
}

/// /proc/self/status, field by field.
fn status() -> Json {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    object(fields.map(|(name, value)| {
        let value: Vec<&str> = value.split_whitespace().collect();
        (name.to_owned(), string(&value.join(" ")))
    }))
}

fn limits() -> Json {
    object(LIMITS.map(|(name, resource)| {
        let (soft, hard) = system::limit(resource);
        (name.to_owned(), list([number(soft), number(hard)]))
    }))
}

fn namespaces() -> Json {
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
    object(kinds.map(|kind| {
        let link = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap_or_default();
        (kind.to_owned(), string(&link.to_string_lossy()))
    }))
}

/// proc(5), /proc/pid/mountinfo.
fn mounts() -> Json {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    list(text.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let before: Vec<&str> = before.split(' ').collect();
        let after: Vec<&str> = after.split(' ').collect();
        let [_, _, device, root, at, options, shared @ ..] = before.as_slice() else { return None };
        let [kind, source, superblock, ..] = after.as_slice() else { return None };
        let members = [
            ("device", string(device)),
            ("root", string(root)),
            ("at", string(at)),
            ("options", list(options.split(',').map(string))),
            ("propagation", list(shared.iter().map(|word| string(word)))),
            ("type", string(kind)),
            ("source", string(source)),
            ("super", list(superblock.split(',').map(string))),
        ];
        Some(object(members.map(|(name, value)| (name.to_owned(), value))))
    }))
}

/// The nodes and links in /dev.
fn devices() -> Json {
    let entries = fs::read_dir("/dev")
        .map(|entries| entries.filter_map(Result::ok).collect())
        .unwrap_or_else(|_| Vec::new());
    object(entries.into_iter().filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        Some((name, describe(&entry.path())?))
    }))
}

/// One file, without following a last link: type, device number, permissions, owner.
pub fn describe(path: &std::path::Path) -> Option<Json> {
    let metadata = fs::symlink_metadata(path).ok()?;
    let kind = metadata.file_type();
    let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
    let kind = if kind.is_char_device() {
        format!("c {major}:{minor}")
    } else if kind.is_block_device() {
        format!("b {major}:{minor}")
    } else if kind.is_fifo() {
        "p".to_owned()
    } else if kind.is_dir() {
        "directory".to_owned()
    } else if kind.is_symlink() {
        return Some(string(&format!("-> {}", fs::read_link(path).ok()?.display())));
    } else {
        "file".to_owned()
    };
    let (mode, uid, gid) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
    Some(string(&format!("{kind} {mode:o} {uid}:{gid}")))
}

fn interfaces() -> Json {
    let text = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    let names = text.lines().skip(2).filter_map(|line| line.split_once(':'));
    list(names.map(|(name, _)| string(name.trim())))
}

/// What the open descriptors are, besides the one that is used to look.
fn files() -> Json {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return list([]) };
    let numbers: Vec<String> =
        entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect();
    object(numbers.into_iter().filter_map(|number| {
        // The directory that was read is closed by now, and its link gone.
        let target = fs::read_link(format!("/proc/self/fd/{number}")).ok()?;
        Some((number, string(&target.to_string_lossy())))
    }))
}
