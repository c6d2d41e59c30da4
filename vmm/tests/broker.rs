//! The real `hull-fsd`, as the shim starts it, with a monitor that was taken over.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests, with helpers outside of test functions")]

mod support;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use hull_protocol::fs::{BrokerChannel, Bytes, Caller, Control, Make, NodeId, ROOT, Reply, Request};
use hull_protocol::vmm::Channel;
use support::broker::{Broker, name};

const CALLER: Caller = Caller { uid: 0, gid: 0 };

/// Everything the broker does once, so that its filter has seen it, and then what the kernel says about it.
#[test]
fn the_jail_is_what_it_should_be_and_leaves_room_for_work() {
    let mut broker = Broker::start();
    let root = broker.root();
    let caller = Caller { uid: 12, gid: 34 };
    let create = Request::Create { parent: root, name: Some(name("f")), flags: 2, mode: 0o640, caller };
    let (Reply::Created(entry, handle), Some(file)) = broker.ask(&create) else { panic!("no file") };
    std::os::unix::fs::FileExt::write_all_at(&File::from(file), b"written by the monitor", 0).unwrap();
    let (node, n) = (entry.node, |text: &str| name(text));
    let change = hull_protocol::fs::Change {
        mode: Some(0o600),
        uid: Some(7),
        gid: None,
        size: Some(7),
        atime: Some(hull_protocol::fs::SetTime::Now),
        mtime: None,
    };
    let target = Bytes(b"/etc".to_vec());
    let done: Vec<Request> = vec![
        Request::GetAttributes { node },
        Request::SetAttributes { node, handle: None, change },
        Request::SetAttributes { node, handle: Some(handle), change },
        Request::Access { node, mask: 4, caller: CALLER },
        Request::Make { parent: root, name: n("l"), what: Make::Symlink { target }, caller },
        Request::Make { parent: root, name: n("d"), what: Make::Directory { mode: 0o755 }, caller },
        Request::Make { parent: root, name: n("n"), what: Make::Node { mode: libc::S_IFREG }, caller },
        Request::Create { parent: root, name: None, flags: 2, mode: 0o600, caller },
        Request::Link { node, new_parent: root, new_name: n("g") },
        Request::Rename { parent: root, name: n("g"), new_parent: root, new_name: n("i"), flags: 1 },
        Request::Rename { parent: root, name: n("i"), new_parent: root, new_name: n("h"), flags: 0 },
        Request::Open { node, flags: 0 },
        Request::OpenDirectory { node: root },
        Request::Sync { handle, extent: hull_protocol::fs::SyncExtent::All },
        Request::Sync { handle, extent: hull_protocol::fs::SyncExtent::Data },
        Request::FileSystem { node },
        Request::ListXattr { node, size: 100 },
        Request::Allocate { handle, mode: 0, offset: 0, length: 8192 },
        Request::Seek { handle, offset: 0, whence: 3 },
        Request::Copy { from: (handle, 0), to: (handle, 4096), length: 5 },
        Request::Remove { parent: root, name: n("h"), kind: hull_protocol::fs::Removal::NoDirectory },
        Request::Remove { parent: root, name: n("d"), kind: hull_protocol::fs::Removal::Directory },
    ];
    for request in done {
        let reply = broker.ask(&request).0;
        assert!(!matches!(reply, Reply::Error(_)), "{request:?}: {reply:?}");
    }
    let link = broker.look_up(root, "l").unwrap();
    assert_eq!(broker.ask(&Request::ReadLink { node: link }).0, Reply::Data(Bytes(b"/etc".to_vec())));
    // Not every file system has them; the calls are made.
    let value = Bytes(b"v".to_vec());
    broker.ask(&Request::SetXattr { node, name: n("user.a"), value, flags: 0 });
    broker.ask(&Request::GetXattr { node, name: n("user.a"), size: 10 });
    broker.ask(&Request::RemoveXattr { node, name: n("user.a") });
    let (Reply::Opened(list), _) = broker.ask(&Request::OpenDirectory { node: root }) else { panic!() };
    let detail = hull_protocol::fs::Detail::Lookups;
    let listing = Request::ReadDirectory { handle: list, offset: 0, size: 4096, detail };
    let (Reply::Listing(entries), _) = broker.ask(&listing) else { panic!() };
    assert!(entries.iter().any(|entry| entry.name.0 == b"f" && entry.entry.is_some()));
    broker.ask(&Request::Release { handle: list });

    let status = broker.status();
    let field = |wanted: &str| {
        let line = status.lines().find(|line| line.starts_with(wanted)).unwrap();
        line.split_once(':').unwrap().1.trim().to_owned()
    };
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID.
    let kept = format!("{:016x}", 0b1_1011);
    assert_eq!((field("CapEff"), field("CapPrm"), field("CapBnd")), (kept.clone(), kept.clone(), kept));
    assert_eq!((field("CapInh"), field("CapAmb")), ("0".repeat(16), "0".repeat(16)));
    assert_eq!(
        (field("NoNewPrivs"), field("Seccomp"), field("Seccomp_filters"), field("Threads")),
        ("1".into(), "2".into(), "1".into(), "1".into())
    );
    // A denied call is told of.
    let caught = u64::from_str_radix(&field("SigCgt"), 16).unwrap();
    assert_ne!(caught & 1 << (libc::SIGSYS - 1), 0, "{caught:x}");
    let pid = broker.process.id();
    for space in ["net", "mnt", "ipc", "uts"] {
        let theirs = fs::read_link(format!("/proc/{pid}/ns/{space}")).unwrap();
        assert_ne!(theirs, fs::read_link(format!("/proc/self/ns/{space}")).unwrap());
    }
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains(" / tmpfs ro,nosuid,nodev,noexec"), "{mounts}");
    assert_eq!(fs::read_dir(format!("/proc/{pid}/root/")).unwrap().count(), 0);
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let cores = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(cores.split_whitespace().nth(4), Some("0"));
}

#[test]
fn it_ends_when_the_shim_does_and_survives_the_monitor() {
    let mut broker = Broker::start();
    broker.root();
    broker.monitor = BrokerChannel::pair().unwrap().0;
    broker.say(&Control::RemoveExport { name: "x".into() }, None);
    broker.control = Channel::pair().unwrap().0;
    assert!(broker.process.wait().unwrap().success());
}

#[test]
fn without_its_socket_or_with_arguments_it_says_so() {
    let output = Command::new(env!("CARGO_BIN_EXE_hull-fsd")).arg("--help").output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("takes no arguments"));
}

/// The monitor's own code never sends any of this; one that was taken over may.
#[test]
fn raw_messages_reach_nothing_outside() {
    let mut broker = Broker::start();
    let root = broker.root();
    fs::create_dir(broker.folder.path().join("d")).unwrap();
    symlink("/etc/passwd", broker.folder.path().join("absolute")).unwrap();
    symlink("../../../../../../etc/passwd", broker.folder.path().join("relative")).unwrap();
    symlink("/proc/self/root/etc/passwd", broker.folder.path().join("magic")).unwrap();
    // A name as the wire has it: the request's number, the parent, a length, the bytes.
    let template = postcard_lookup(root, b"d");
    broker.monitor.send_bytes(&template, None).unwrap();
    assert!(matches!(broker.monitor.receive::<Reply>().unwrap().0, Reply::Entry(_)), "the template is right");
    for bad in [&b".."[..], b".", b"", b"/", b"/etc", b"d/..", b"d/../../etc", b"a\0b", &[b'n'; 256]] {
        broker.monitor.send_bytes(&postcard_lookup(root, bad), None).unwrap();
        let reply = broker.monitor.receive::<Reply>().unwrap().0;
        assert_eq!(reply, Reply::Error(libc::EINVAL), "{:?}", bad.escape_ascii().to_string());
    }
    for junk in [&b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"[..], b"\x63", b"\x01\x01\xff\xff\xff\xff\x0f"] {
        broker.monitor.send_bytes(junk, Some(File::open("/dev/null").unwrap().as_fd())).unwrap();
        assert_eq!(broker.monitor.receive::<Reply>().unwrap().0, Reply::Error(libc::EINVAL));
    }
    for link in ["absolute", "relative", "magic"] {
        let node = broker.look_up(root, link).unwrap();
        let (reply, fd) = broker.ask(&Request::Open { node, flags: 0 });
        assert_eq!((reply, fd.is_none()), (Reply::Error(libc::ELOOP), true), "{link}");
        assert_eq!(broker.look_up(node, "passwd"), Err(libc::ENOTDIR));
    }
    // No directory is ever handed out, whichever way it is asked for.
    let d = broker.look_up(root, "d").unwrap();
    for flags in [0, libc::O_DIRECTORY, libc::O_PATH, libc::O_PATH | libc::O_DIRECTORY] {
        let (reply, fd) = broker.ask(&Request::Open { node: d, flags: flags.cast_unsigned() });
        assert_eq!((reply, fd.is_none()), (Reply::Error(libc::EISDIR), true));
    }
    let (_, fd) = broker.ask(&Request::OpenDirectory { node: d });
    assert!(fd.is_none());
}

/// `Request::Lookup` as postcard has it, whatever the name is.
fn postcard_lookup(parent: NodeId, name: &[u8]) -> Vec<u8> {
    assert!(parent.0 < 128);
    let mut bytes = vec![1, u8::try_from(parent.0).unwrap()];
    let mut length = name.len();
    while length > 127 {
        bytes.push(u8::try_from(length & 127).unwrap() | 128);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap());
    bytes.extend_from_slice(name);
    bytes
}

/// Somebody on the host swaps a directory for a link to the outside, and back, as fast as possible.
#[test]
fn a_swapped_link_leads_nowhere() {
    let mut broker = Broker::start();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("f"), b"outside").unwrap();
    let path = broker.folder.path().to_owned();
    fs::create_dir(path.join("a")).unwrap();
    fs::write(path.join("a/f"), b"inside").unwrap();
    symlink(outside.path(), path.join("b")).unwrap();
    let root = broker.root();
    let (stop, swapped) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (a, b) = (path.join("a"), path.join("b"));
            while !stop.load(Ordering::Relaxed) {
                let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                let cwd = nix::fcntl::AT_FDCWD;
                nix::fcntl::renameat2(cwd, &a, cwd, &b, flags).unwrap();
                swapped.store(true, Ordering::Relaxed);
            }
        });
        let (mut inside, mut refused) = (0, 0);
        while inside + refused < 3000 || !swapped.load(Ordering::Relaxed) {
            let a = broker.look_up(root, "a").unwrap();
            match broker.look_up(a, "f") {
                Ok(f) => {
                    let (reply, fd) = broker.ask(&Request::Open { node: f, flags: 0 });
                    assert!(matches!(reply, Reply::Opened(_)), "{reply:?}");
                    assert_eq!(std::io::read_to_string(File::from(fd.unwrap())).unwrap(), "inside");
                    inside += 1;
                    let Reply::Opened(handle) = reply else { continue };
                    broker.ask(&Request::Release { handle });
                }
                Err(errno) => {
                    assert_eq!(errno, libc::ENOTDIR);
                    refused += 1;
                }
            }
            // What is made below it is made inside, or not at all.
            let what = Make::Directory { mode: 0o755 };
            let made = broker.ask(&Request::Make { parent: a, name: name("new"), what, caller: CALLER }).0;
            if matches!(made, Reply::Entry(_)) {
                let kind = hull_protocol::fs::Removal::Directory;
                broker.ask(&Request::Remove { parent: a, name: name("new"), kind });
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(inside > 0 && refused > 0, "{inside} times inside, {refused} times refused");
    });
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn files_of_an_export_that_goes_are_taken_back_however_many() {
    let mut broker = Broker::start();
    fs::write(broker.folder.path().join("f"), b"").unwrap();
    let root = broker.look_up(ROOT, "x").unwrap();
    let f = broker.look_up(root, "f").unwrap();
    let mut opened: Vec<_> = (0..5000)
        .map(|_| match broker.ask(&Request::Open { node: f, flags: 0 }).0 {
            Reply::Opened(handle) => handle,
            other => panic!("{other:?}"),
        })
        .collect();
    broker.say(&Control::RemoveExport { name: "x".into() }, None);
    let mut revoked = Vec::new();
    while revoked.len() < opened.len() {
        match broker.monitor.receive::<Reply>().unwrap().0 {
            Reply::Revoked(files) => revoked.extend(files),
            other => panic!("{other:?}"),
        }
    }
    opened.sort_by_key(|handle| handle.0);
    revoked.sort_by_key(|handle| handle.0);
    assert_eq!(revoked, opened);
    // Answers go on as before.
    assert_eq!(broker.look_up(ROOT, "x"), Err(libc::ENOENT));
}

#[test]
fn a_monitor_that_does_not_read_holds_up_nobody() {
    let broker = Broker::start();
    // More answers than the socket holds.
    let stat = Request::GetAttributes { node: ROOT };
    while broker.monitor.send(&stat, None).is_ok() {}
    // It was cut off, and the shim is heard.
    broker.say(&Control::RemoveExport { name: "x".into() }, None);
}
