//! File system work that can block (mounting, flushing, unmounting, binding drivers) done in a short-lived child, so that the agent answers
//! meanwhile.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use crate::launch::UserNamespace;
use crate::reap::Children;
use crate::sys::disk::{self, Partition};
use crate::sys::mount::{self, Depth, MountAttr};
use crate::sys::process::{self, Cloned, Ended};
use crate::sys::{path, socket};

/// One thing to do. A list of them is done in order up to the first that fails.
#[derive(Debug)]
pub enum Work {
    /// Makes a directory; one that exists is fine.
    MakeDirectory {
        /// Absolute.
        path: CString,
        /// Permissions.
        mode: u32,
    },
    /// Mounts a new instance of a file system.
    Mount {
        /// As in /proc/filesystems.
        kind: CString,
        /// Options; without a value they are flags.
        options: Vec<(CString, Option<CString>)>,
        /// `MOUNT_ATTR_*`.
        attributes: u64,
        /// To whose ids its files belong, if not to the guest's.
        user: Option<Arc<UserNamespace>>,
        /// An existing directory.
        target: CString,
    },
    /// Mounts a directory on another one.
    Bind {
        /// An existing directory.
        source: CString,
        /// An existing directory.
        target: CString,
        /// `MOUNT_ATTR_*` in addition to those of the source's mount.
        attributes: u64,
        /// To whose ids its files belong, if not to the guest's.
        user: Option<Arc<UserNamespace>>,
    },
    /// Gives `to` the owner and permissions of `from`.
    CopyAttributes {
        /// An existing directory.
        from: CString,
        /// An existing directory.
        to: CString,
    },
    /// Unmounts what is mounted there, flushing it first. Nothing being mounted is fine.
    Unmount {
        /// Absolute.
        path: CString,
    },
    /// Takes a mount off its place, and all those below it. Nothing being mounted is fine.
    Detach {
        /// Absolute.
        path: CString,
    },
    /// Makes a part of a disk a disk of its own.
    AddPartition {
        /// The whole disk's node.
        disk: CString,
        /// Which part.
        partition: Partition,
    },
    /// Writes to a file of the kernel that takes a whole text at once.
    WriteControl {
        /// Absolute.
        path: CString,
        /// The text.
        text: CString,
    },
    /// Makes a file with this content.
    WriteFile {
        /// Absolute; nothing may be there.
        path: CString,
        /// At most what one write takes.
        content: Vec<u8>,
    },
    /// Removes an empty directory. Its absence is fine.
    RemoveDirectory {
        /// Absolute.
        path: CString,
    },
}

/// Why a list of work was not done.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// One element failed.
    #[error("cannot {what}: {}", source.desc())]
    Failed {
        /// What was tried.
        what: String,
        /// Why.
        source: Errno,
    },
    /// The child did not end as it should.
    #[error("the helper process ended unexpectedly ({0:?})")]
    Ended(Ended),
    /// There was no child.
    #[error("cannot run a helper process: {0}")]
    Process(#[from] std::io::Error),
}

/// Kills a helper that has not ended and whose work nobody waits for any more.
struct KillOnDrop(Option<Arc<OwnedFd>>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let Some(helper) = &self.0 else { return };
        match process::send_signal(helper.as_fd(), libc::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => log::error!("cannot kill a helper process: {error}"),
        }
    }
}

/// Does `work` in a child process. When this is cancelled the child is killed.
pub async fn run(children: &Children, work: &[Work]) -> Result<(), HelperError> {
    let (report, report_child) = socket::message_pair().map_err(std::io::Error::from)?;
    // SAFETY: the child's branch never returns, and the agent has one thread.
    let (pid, pidfd) = match unsafe { process::clone_quietly() }.map_err(std::io::Error::from)? {
        Cloned::Child => child(work, &report_child),
        Cloned::Parent(pid, pidfd) => (pid, pidfd),
    };
    children.add(pid);
    drop(report_child);
    let pidfd = Arc::new(pidfd);
    let mut guard = KillOnDrop(Some(pidfd.clone()));
    let waiting = children.clone();
    // A task of its own, so that the child is reaped even if nobody waits any more.
    let ended = tokio::spawn(async move { waiting.wait(pid, &pidfd).await }).await;
    let ended = ended.map_err(std::io::Error::other)??;
    guard.0 = None;
    if ended == Ended::Exited(0) {
        return Ok(());
    }
    let mut message = [0u8; 8];
    match socket::receive(report.as_fd(), &mut message, libc::MSG_DONTWAIT) {
        Ok((8, None)) => {
            let [i0, i1, i2, i3, e0, e1, e2, e3] = message;
            let index = usize::try_from(u32::from_le_bytes([i0, i1, i2, i3])).unwrap_or(usize::MAX);
            let what = work.get(index).map(describe).unwrap_or_default();
            Err(HelperError::Failed { what, source: Errno::from_raw(i32::from_le_bytes([e0, e1, e2, e3])) })
        }
        _ => Err(HelperError::Ended(ended)),
    }
}

/// What a child wrote.
#[derive(Debug)]
pub struct Output {
    /// From the beginning.
    pub bytes: Vec<u8>,
    /// Whether there was more.
    pub cut: bool,
}

/// Has a child write, and takes at most so many bytes of it. When this is done or cancelled the child is killed.
pub async fn output(
    children: &Children,
    most: u64,
    work: impl FnOnce(&mut std::io::PipeWriter),
) -> Result<Output, HelperError> {
    let (reader, mut writer) = std::io::pipe()?;
    // SAFETY: the child's branch never returns, and the agent has one thread.
    let (pid, pidfd) = match unsafe { process::clone_quietly() }.map_err(std::io::Error::from)? {
        Cloned::Child => {
            work(&mut writer);
            process::exit(0)
        }
        Cloned::Parent(pid, pidfd) => (pid, pidfd),
    };
    children.add(pid);
    drop(writer);
    let pidfd = Arc::new(pidfd);
    let _killed = KillOnDrop(Some(pidfd.clone()));
    let waiting = children.clone();
    // A task of its own, so that the child is reaped even if nobody waits any more.
    tokio::spawn(async move { waiting.wait(pid, &pidfd).await });
    let mut bytes = Vec::new();
    let reader = Receiver::from_owned_fd(reader.into())?;
    reader.take(most + 1).read_to_end(&mut bytes).await?;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let cut = bytes.len() > most;
    bytes.truncate(most);
    Ok(Output { bytes, cut })
}

fn child(work: &[Work], report: &OwnedFd) -> ! {
    process::set_umask(0);
    for (index, element) in (0u32..).zip(work) {
        if let Err(errno) = perform(element) {
            let mut message = [0u8; 8];
            message[..4].copy_from_slice(&index.to_le_bytes());
            message[4..].copy_from_slice(&(errno as i32).to_le_bytes());
            // The exit code alone says that it failed, if this cannot.
            let _ = socket::send(report.as_fd(), &message, None);
            process::exit(1);
        }
    }
    process::exit(0)
}

fn perform(work: &Work) -> nix::Result<()> {
    match work {
        Work::MakeDirectory { path, mode } => path::make_dir(AT_FDCWD, path, *mode),
        Work::Mount { kind, options, attributes, user, target } => {
            let context = mount::fsopen(kind)?;
            for (key, value) in options {
                mount::fsconfig(context.as_fd(), key, value.as_deref())?;
            }
            let mounted = mount::fsmount(context.as_fd(), *attributes)?;
            map_ids(&mounted, user.as_ref())?;
            mount::attach_at(mounted.as_fd(), target)
        }
        Work::Bind { source, target, attributes, user } => {
            let copy = mount::clone_tree_at(source)?;
            let attr = MountAttr { set: *attributes, propagation: libc::MS_PRIVATE, ..MountAttr::default() };
            mount::set_attributes(copy.as_fd(), Depth::One, &attr)?;
            map_ids(&copy, user.as_ref())?;
            mount::attach_at(copy.as_fd(), target)
        }
        Work::CopyAttributes { from, to } => {
            let stat = path::stat_path(from)?;
            path::change_owner(AT_FDCWD, to, stat.st_uid, Some(stat.st_gid))?;
            path::change_mode_at(AT_FDCWD, to, stat.st_mode & 0o7777)
        }
        Work::Unmount { path } => match mount::unmount(path, libc::UMOUNT_NOFOLLOW) {
            Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
            result => result,
        },
        Work::Detach { path } => match mount::unmount(path, libc::UMOUNT_NOFOLLOW | libc::MNT_DETACH) {
            Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
            result => result,
        },
        Work::AddPartition { disk, partition } => {
            disk::add_partition(path::open(disk, libc::O_RDONLY)?.as_fd(), *partition)
        }
        Work::WriteControl { path, text } => {
            let file = path::open(path, libc::O_WRONLY)?;
            path::write_control(file.as_fd(), text.as_bytes())
        }
        Work::WriteFile { path, content } => {
            path::make_node(AT_FDCWD, path, libc::S_IFREG | 0o644, 0)?;
            path::write_control(path::open(path, libc::O_WRONLY)?.as_fd(), content)
        }
        Work::RemoveDirectory { path } => {
            match nix::unistd::unlinkat(AT_FDCWD, path.as_c_str(), nix::unistd::UnlinkatFlags::RemoveDir) {
                Err(Errno::ENOENT) => Ok(()),
                result => result,
            }
        }
    }
}

fn map_ids(mounted: &OwnedFd, user: Option<&Arc<UserNamespace>>) -> nix::Result<()> {
    user.map_or(Ok(()), |user| mount::map_ids(mounted.as_fd(), Depth::One, user.fd()))
}

fn describe(work: &Work) -> String {
    let text = |path: &CString| path.to_string_lossy().into_owned();
    match work {
        Work::MakeDirectory { path, .. } => format!("make directory {}", text(path)),
        Work::Mount { kind, options, target, .. } => {
            let source = options.iter().find(|(key, _)| key.as_c_str() == c"source");
            let source = source.and_then(|(_, value)| value.as_ref()).map(text).unwrap_or_default();
            format!("mount {} {source} on {}", text(kind), text(target))
        }
        Work::Bind { source, target, .. } => format!("bind {} on {}", text(source), text(target)),
        Work::CopyAttributes { to, .. } => format!("set the owner of {}", text(to)),
        Work::Unmount { path } | Work::Detach { path } => format!("unmount {}", text(path)),
        Work::AddPartition { disk, partition } => {
            format!("make partition {} of {}", partition.number, text(disk))
        }
        Work::WriteControl { path, text: value } => format!("write {} to {}", text(value), text(path)),
        Work::WriteFile { path, .. } => format!("write {}", text(path)),
        Work::RemoveDirectory { path } => format!("remove directory {}", text(path)),
    }
}
