//! What a FUSE message asks, in the broker's words. Nothing here acts.

use hull_protocol::fs::{
    Bytes, Caller, Change, Detail, HandleId, InvalidName, Make, Name, NodeId, Removal, Request, SetTime,
    SyncExtent, Time,
};

use super::fuse::{FSYNC_DATA, Fields, InHeader, Opcode, setattr};

/// A message, understood.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The first message of a mount.
    Init(Init),
    /// The mount's end.
    Destroy,
    /// Nodes are held less often. No answer.
    Forget(Vec<(NodeId, u64)>),
    /// The broker has the answer.
    Ask(Request),
    /// The broker has the answer, and an open file that goes with it.
    Open(Request),
    /// An open file or directory is closed.
    Release(HandleId),
    /// A piece of a directory.
    List(Request, Detail),
    /// Nothing is done and nothing answered: what is interrupted is answered soon anyway.
    Interrupt,
}

/// `fuse_init_in`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names are the protocol's.
pub struct Init {
    pub major: u32,
    pub minor: u32,
    pub max_readahead: u32,
    pub flags: u32,
    pub flags2: u32,
}

/// Reads what follows the header. The error is an `errno`.
pub fn parse(header: &InHeader, opcode: Opcode, body: &[u8]) -> Result<Parsed, i32> {
    let mut fields = Fields(body);
    let node = NodeId(header.nodeid);
    let caller = Caller { uid: header.uid, gid: header.gid };
    parse_fields(node, caller, opcode, &mut fields).unwrap_or(Err(libc::EINVAL))
}

/// `None` where the message is too short.
fn parse_fields(
    node: NodeId,
    caller: Caller,
    opcode: Opcode,
    fields: &mut Fields<'_>,
) -> Option<Result<Parsed, i32>> {
    let request = match opcode {
        Opcode::Init => return Some(Ok(Parsed::Init(init(fields)?))),
        Opcode::Destroy => return Some(Ok(Parsed::Destroy)),
        Opcode::Interrupt => return Some(Ok(Parsed::Interrupt)),
        Opcode::Forget => return Some(Ok(Parsed::Forget(vec![(node, fields.u64()?)]))),
        Opcode::BatchForget => return batch_forget(fields).map(|nodes| Ok(Parsed::Forget(nodes))),
        Opcode::Release | Opcode::Releasedir => {
            return Some(Ok(Parsed::Release(HandleId(fields.u64()?))));
        }
        Opcode::Readdir => return list(fields, Detail::Names).map(Ok),
        Opcode::Readdirplus => return list(fields, Detail::Lookups).map(Ok),
        Opcode::Open => {
            return Some(Ok(Parsed::Open(Request::Open { node, flags: fields.u32()? })));
        }
        Opcode::Create | Opcode::Tmpfile => {
            return create(node, caller, opcode, fields).map(|request| request.map(Parsed::Open));
        }
        // Their data stays in guest memory: see `session`.
        Opcode::Read | Opcode::Write => Err(libc::EINVAL),
        Opcode::Lookup => name(fields)?.map(|name| Request::Lookup { parent: node, name }),
        Opcode::Getattr => Ok(Request::GetAttributes { node }),
        Opcode::Setattr => Ok(set_attributes(node, fields)?),
        Opcode::Readlink => Ok(Request::ReadLink { node }),
        Opcode::Symlink => {
            let name = name(fields)?;
            let target = Bytes(fields.string()?.to_vec());
            name.map(|name| Request::Make { parent: node, name, what: Make::Symlink { target }, caller })
        }
        Opcode::Mknod => {
            let mode = fields.u32()?;
            fields.skip(12)?;
            name(fields)?.map(|name| Request::Make { parent: node, name, what: Make::Node { mode }, caller })
        }
        Opcode::Mkdir => {
            let what = Make::Directory { mode: fields.u32()? };
            fields.skip(4)?;
            name(fields)?.map(|name| Request::Make { parent: node, name, what, caller })
        }
        Opcode::Unlink => remove(node, fields, Removal::NoDirectory)?,
        Opcode::Rmdir => remove(node, fields, Removal::Directory)?,
        Opcode::Rename | Opcode::Rename2 => rename(node, opcode, fields)?,
        Opcode::Link => {
            let linked = NodeId(fields.u64()?);
            name(fields)?.map(|new_name| Request::Link { node: linked, new_parent: node, new_name })
        }
        Opcode::Statfs => Ok(Request::FileSystem { node }),
        Opcode::Fsync | Opcode::Fsyncdir => {
            let handle = HandleId(fields.u64()?);
            let extent = if fields.u32()? & FSYNC_DATA != 0 { SyncExtent::Data } else { SyncExtent::All };
            Ok(Request::Sync { handle, extent })
        }
        Opcode::Setxattr => {
            let (size, flags) = (usize::try_from(fields.u32()?).ok()?, fields.u32()?);
            let name = name(fields)?;
            let value = Bytes(fields.0.get(..size)?.to_vec());
            name.map(|name| Request::SetXattr { node, name, value, flags })
        }
        Opcode::Getxattr => {
            let size = fields.u32()?;
            fields.skip(4)?;
            name(fields)?.map(|name| Request::GetXattr { node, name, size })
        }
        Opcode::Listxattr => Ok(Request::ListXattr { node, size: fields.u32()? }),
        Opcode::Removexattr => name(fields)?.map(|name| Request::RemoveXattr { node, name }),
        Opcode::Opendir => Ok(Request::OpenDirectory { node }),
        Opcode::Access => Ok(Request::Access { node, mask: fields.u32()?, caller }),
        Opcode::Fallocate => {
            let (handle, offset, length) = (HandleId(fields.u64()?), fields.u64()?, fields.u64()?);
            Ok(Request::Allocate { handle, mode: fields.u32()?, offset, length })
        }
        Opcode::Lseek => {
            let (handle, offset) = (HandleId(fields.u64()?), fields.u64()?);
            Ok(Request::Seek { handle, offset, whence: fields.u32()? })
        }
        Opcode::CopyFileRange => {
            let from = (HandleId(fields.u64()?), fields.u64()?);
            fields.skip(8)?;
            let to = (HandleId(fields.u64()?), fields.u64()?);
            Ok(Request::Copy { from, to, length: fields.u64()? })
        }
    };
    Some(request.map(Parsed::Ask))
}

/// A name, checked: the guest's kernel sends what its user typed, a hostile one anything.
fn name(fields: &mut Fields<'_>) -> Option<Result<Name, i32>> {
    let bytes = fields.string()?;
    Some(Name::new(bytes).map_err(|error| match error {
        InvalidName::TooLong => libc::ENAMETOOLONG,
        InvalidName::NotAComponent => libc::EINVAL,
    }))
}

fn init(fields: &mut Fields<'_>) -> Option<Init> {
    let (major, minor) = (fields.u32()?, fields.u32()?);
    let (max_readahead, flags) = (fields.u32()?, fields.u32()?);
    // Absent before 7.36.
    let flags2 = fields.u32().unwrap_or(0);
    Some(Init { major, minor, max_readahead, flags, flags2 })
}

fn batch_forget(fields: &mut Fields<'_>) -> Option<Vec<(NodeId, u64)>> {
    let count = usize::try_from(fields.u32()?).ok()?;
    fields.skip(4)?;
    // Bounded by the message, not by what it says.
    let (nodes, []) = fields.0.get(..count.checked_mul(16)?)?.as_chunks::<16>() else { return None };
    nodes
        .iter()
        .map(|node| {
            let mut fields = Fields(node);
            Some((NodeId(fields.u64()?), fields.u64()?))
        })
        .collect()
}

fn list(fields: &mut Fields<'_>, detail: Detail) -> Option<Parsed> {
    let (handle, offset, size) = (HandleId(fields.u64()?), fields.u64()?, fields.u32()?);
    Some(Parsed::List(Request::ReadDirectory { handle, offset, size, detail }, detail))
}

fn create(
    parent: NodeId,
    caller: Caller,
    opcode: Opcode,
    fields: &mut Fields<'_>,
) -> Option<Result<Request, i32>> {
    let (flags, mode) = (fields.u32()?, fields.u32()?);
    fields.skip(8)?;
    let named = match opcode {
        // What the kernel calls such a file is of no account.
        Opcode::Tmpfile => Ok(None),
        _ => name(fields)?.map(Some),
    };
    Some(named.map(|name| Request::Create { parent, name, flags, mode, caller }))
}

fn remove(parent: NodeId, fields: &mut Fields<'_>, kind: Removal) -> Option<Result<Request, i32>> {
    Some(name(fields)?.map(|name| Request::Remove { parent, name, kind }))
}

fn rename(parent: NodeId, opcode: Opcode, fields: &mut Fields<'_>) -> Option<Result<Request, i32>> {
    let new_parent = NodeId(fields.u64()?);
    let flags = match opcode {
        Opcode::Rename2 => {
            let flags = fields.u32()?;
            fields.skip(4)?;
            flags
        }
        _ => 0,
    };
    let (old, new) = (name(fields)?, name(fields)?);
    Some(
        old.and_then(|name| {
            new.map(|new_name| Request::Rename { parent, name, new_parent, new_name, flags })
        }),
    )
}

fn set_attributes(node: NodeId, fields: &mut Fields<'_>) -> Option<Request> {
    let valid = fields.u32()?;
    fields.skip(4)?;
    let (handle, size) = (fields.u64()?, fields.u64()?);
    fields.skip(8)?;
    // Two's complement: times before 1970 are negative.
    let (atime, mtime) = (fields.u64()?.cast_signed(), fields.u64()?.cast_signed());
    fields.skip(8)?;
    let (atime_nanoseconds, mtime_nanoseconds) = (fields.u32()?, fields.u32()?);
    fields.skip(4)?;
    let mode = fields.u32()?;
    fields.skip(4)?;
    let (uid, gid) = (fields.u32()?, fields.u32()?);
    let has = |bit: u32| valid & bit != 0;
    let time = |set: u32, now: u32, seconds, nanoseconds| match (has(set), has(now)) {
        (_, true) => Some(SetTime::Now),
        (true, false) => Some(SetTime::At(Time { seconds, nanoseconds })),
        (false, false) => None,
    };
    let change = Change {
        mode: has(setattr::MODE).then_some(mode),
        uid: has(setattr::UID).then_some(uid),
        gid: has(setattr::GID).then_some(gid),
        size: has(setattr::SIZE).then_some(size),
        atime: time(setattr::ATIME, setattr::ATIME_NOW, atime, atime_nanoseconds),
        mtime: time(setattr::MTIME, setattr::MTIME_NOW, mtime, mtime_nanoseconds),
    };
    let handle = has(setattr::FH).then_some(HandleId(handle));
    Some(Request::SetAttributes { node, handle, change })
}
