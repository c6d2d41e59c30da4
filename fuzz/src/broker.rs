//! The file broker, and a monitor that was taken over: requests in any order, with numbers that exist and that do not.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use arbitrary::{Result, Unstructured};
use hull_protocol::fs::{
    Bytes, Caller, Change, Detail, ExportAccess, HandleId, MESSAGE_MAX, Make, Name, NodeId, Removal, Reply,
    Request, SetTime, SyncExtent, Time, VERSION,
};
use hull_vmm::broker::Broker;
use nix::fcntl::{OFlag, open};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::stat::Mode;
use tempfile::TempDir;

use crate::Body;

/// The largest file, in bytes.
const FILE_MAX: u64 = 1 << 20;
const REQUESTS: usize = 24;
const NAMES: [&[u8]; 8] = [b"f", b"d", b"l", b"rw", b"ro", b"new", b"user.x", b"escape"];

/// What the monitor has heard of.
struct Known {
    nodes: Vec<NodeId>,
    handles: Vec<HandleId>,
}

/// Requests to a broker with one folder to write and one to read.
pub fn requests() -> Body {
    // Files in memory are memory; and who writes too much is to hear of it, not to die.
    setrlimit(Resource::RLIMIT_FSIZE, FILE_MAX, FILE_MAX).unwrap();
    // SAFETY: to ignore a signal needs no handler.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
    let in_memory = Path::new("/dev/shm");
    let folder = if in_memory.is_dir() { tempfile::tempdir_in(in_memory) } else { tempfile::tempdir() };
    let folder = folder.unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, b"outside").unwrap();
    Box::new(move |input| {
        let mut broker = broker(&folder);
        let _ended: Result<()> = converse(&mut Unstructured::new(input), &mut broker);
        assert_eq!(fs::read(&secret).unwrap(), b"outside");
        let kept = fs::read_dir(folder.path().join("ro")).unwrap().count();
        assert_eq!((kept, fs::read(folder.path().join("ro/f")).unwrap()), (1, b"read".to_vec()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    })
}

/// Fresh folders, and a broker that gives them out.
fn broker(folder: &TempDir) -> Broker {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let path = |name: &str| folder.path().join(name);
    for name in ["rw", "ro"] {
        if path(name).exists() {
            fs::remove_dir_all(path(name)).unwrap();
        }
        fs::create_dir(path(name)).unwrap();
    }
    fs::write(path("ro/f"), b"read").unwrap();
    fs::write(path("rw/f"), b"write").unwrap();
    fs::create_dir(path("rw/d")).unwrap();
    symlink("../secret", path("rw/l")).unwrap();
    symlink("..", path("rw/escape")).unwrap();
    let mut broker = Broker::new(open("/proc/self/fd", flags, Mode::empty()).unwrap());
    for (name, access) in [("rw", ExportAccess::ReadWrite), ("ro", ExportAccess::ReadOnly)] {
        let root = open(&path(name), flags, Mode::empty()).unwrap();
        broker.exports_mut().add(name, access, root).unwrap();
    }
    broker
}

fn converse(u: &mut Unstructured<'_>, broker: &mut Broker) -> Result<()> {
    let mut known = Known { nodes: vec![NodeId(1)], handles: Vec::new() };
    for name in ["rw", "ro"] {
        let name = Name::new(name.as_bytes()).unwrap();
        learn(&mut known, broker.answer(Request::Lookup { parent: NodeId(1), name }).as_ref());
    }
    for _ in 0..REQUESTS {
        if u.is_empty() {
            break;
        }
        let request = if u.ratio(1, 16)? {
            let length = u.int_in_range(0..=64)?;
            match postcard::from_bytes(u.bytes(length)?) {
                Ok(request) => request,
                Err(_) => continue,
            }
        } else {
            request(u, &known)?
        };
        let reply = broker.answer(request);
        if let Some(reply) = &reply {
            let bytes = postcard::to_allocvec(reply).unwrap();
            assert!(bytes.len() <= MESSAGE_MAX, "a reply of {} bytes", bytes.len());
            if let Some(fd) = broker.descriptor(reply) {
                // No name can be resolved with what leaves the broker.
                let kind = nix::sys::stat::fstat(fd).unwrap().st_mode & libc::S_IFMT;
                assert_eq!(kind, libc::S_IFREG);
            }
        }
        learn(&mut known, reply.as_ref());
    }
    Ok(())
}

fn learn(known: &mut Known, reply: Option<&Reply>) {
    match reply {
        Some(Reply::Entry(entry)) => known.nodes.push(entry.node),
        Some(Reply::Opened(handle)) => known.handles.push(*handle),
        Some(Reply::Created(entry, handle)) => {
            known.nodes.push(entry.node);
            known.handles.push(*handle);
        }
        _ => {}
    }
}

fn request(u: &mut Unstructured<'_>, known: &Known) -> Result<Request> {
    let (node, parent) = (node(u, known)?, node(u, known)?);
    let (name, new_name) = (name(u)?, name(u)?);
    let (handle, other) = (handle(u, known)?, handle(u, known)?);
    let caller = Caller { uid: u.int_in_range(0..=2)?, gid: u.int_in_range(0..=2)? };
    let (number, offset) = (number(u)?, number(u)?);
    let small: u32 = if u.ratio(3, 4)? { u.int_in_range(0..=8)? } else { u.arbitrary()? };
    let mode: u32 = if u.ratio(1, 2)? { 0o777 & u.arbitrary::<u32>()? } else { u.arbitrary()? };
    Ok(match u.int_in_range(0..=25)? {
        0 => Request::Lookup { parent, name },
        1 => Request::Forget { node, count: number },
        2 => Request::GetAttributes { node },
        3 => Request::SetAttributes {
            node,
            handle: if u.ratio(1, 2)? { Some(handle) } else { None },
            change: change(u, mode, number)?,
        },
        4 => Request::Access { node, mask: small, caller },
        5 => Request::ReadLink { node },
        6 => Request::Make { parent, name, what: Make::Node { mode: mode | 0o100_000 }, caller },
        7 => Request::Make { parent, name, what: Make::Node { mode }, caller },
        8 => Request::Make { parent, name, what: Make::Directory { mode }, caller },
        9 => {
            let target = Bytes(if u.ratio(3, 4)? { b"../secret".to_vec() } else { vec![b'/'; 4096] });
            Request::Make { parent, name, what: Make::Symlink { target }, caller }
        }
        10 => {
            let name = if u.ratio(3, 4)? { Some(name) } else { None };
            Request::Create { parent, name, flags: small, mode, caller }
        }
        11 => Request::Remove {
            parent,
            name,
            kind: if u.ratio(1, 2)? { Removal::Directory } else { Removal::NoDirectory },
        },
        12 => Request::Rename { parent, name, new_parent: node, new_name, flags: small },
        13 => Request::Link { node, new_parent: parent, new_name },
        14 => Request::Open { node, flags: small },
        15 => Request::OpenDirectory { node },
        16 => Request::ReadDirectory {
            handle,
            offset: number,
            size: if u.ratio(1, 2)? { 4096 } else { u.arbitrary()? },
            detail: if u.ratio(1, 2)? { Detail::Lookups } else { Detail::Names },
        },
        17 => Request::Release { handle },
        18 => {
            Request::Sync { handle, extent: if u.ratio(1, 2)? { SyncExtent::All } else { SyncExtent::Data } }
        }
        19 => Request::FileSystem { node },
        20 => {
            Request::SetXattr { node, name, value: Bytes(vec![b'v'; u.int_in_range(0..=300)?]), flags: small }
        }
        21 => Request::GetXattr { node, name, size: small },
        22 => Request::ListXattr { node, size: small },
        23 => Request::RemoveXattr { node, name },
        24 => match u.int_in_range(0..=2)? {
            0 => Request::Allocate { handle, mode: small, offset, length: number },
            1 => Request::Seek { handle, offset, whence: small },
            _ => Request::Copy { from: (handle, offset), to: (other, number), length: number },
        },
        _ => Request::Init { version: if u.ratio(3, 4)? { VERSION } else { small } },
    })
}

fn node(u: &mut Unstructured<'_>, known: &Known) -> Result<NodeId> {
    if u.ratio(15, 16)? { u.choose(&known.nodes).copied() } else { u.arbitrary().map(NodeId) }
}

fn handle(u: &mut Unstructured<'_>, known: &Known) -> Result<HandleId> {
    if u.ratio(15, 16)? && !known.handles.is_empty() {
        u.choose(&known.handles).copied()
    } else {
        u.arbitrary().map(HandleId)
    }
}

fn name(u: &mut Unstructured<'_>) -> Result<Name> {
    Ok(Name::new(NAMES[u.choose_index(NAMES.len())?]).unwrap())
}

fn number(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match u.int_in_range(0..=3)? {
        0 => u.arbitrary()?,
        1 => u.int_in_range(0..=2 * FILE_MAX)?,
        _ => u.int_in_range(0..=8)?,
    })
}

fn change(u: &mut Unstructured<'_>, mode: u32, size: u64) -> Result<Change> {
    let time = |u: &mut Unstructured<'_>| {
        Ok(match u.int_in_range(0..=2)? {
            0 => None,
            1 => Some(SetTime::Now),
            _ => Some(SetTime::At(Time { seconds: u.arbitrary()?, nanoseconds: u.arbitrary()? })),
        })
    };
    Ok(Change {
        mode: u.arbitrary::<bool>()?.then_some(mode),
        uid: u.arbitrary::<Option<u8>>()?.map(u32::from),
        gid: u.arbitrary::<Option<u8>>()?.map(u32::from),
        size: u.arbitrary::<bool>()?.then_some(size),
        atime: time(u)?,
        mtime: time(u)?,
    })
}
