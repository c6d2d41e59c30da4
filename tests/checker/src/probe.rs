//! Things to try, each named by one argument: `verb:operand`. The answer is what was read, or `ok`, or the name of the error.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use crate::json::{Json, list, string};
use crate::report;

/// No file that is shown is longer.
const SHOWN_MAX: usize = 16 * 1024;

/// Tries one thing.
pub fn probe(word: &str) -> Json {
    let (verb, operand) = word.split_once(':').unwrap_or((word, ""));
    let done =
        |result: io::Result<()>| string(&result.map_or_else(|error| name(&error), |()| "ok".to_owned()));
    match verb {
        "read" => match fs::read(operand) {
            Ok(bytes) => string(String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_MAX)]).trim_end()),
            Err(error) => string(&name(&error)),
        },
        "list" => match fs::read_dir(operand) {
            Ok(entries) => {
                let mut names: Vec<String> = entries
                    .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
                    .collect();
                names.sort_unstable();
                list(names.iter().map(|name| string(name)))
            }
            Err(error) => string(&name(&error)),
        },
        "stat" => report::describe(Path::new(operand)).unwrap_or_else(|| string("ENOENT")),
        "open" => done(open(operand, libc::O_RDONLY)),
        "open-write" => done(open(operand, libc::O_WRONLY)),
        "create" => done(fs::File::create_new(operand).map(drop)),
        "mkdir" => done(fs::create_dir(operand)),
        "remove" => done(fs::remove_file(operand)),
        // `write:PATH=TEXT`
        "write" => {
            let (path, text) = operand.split_once('=').unwrap_or((operand, ""));
            done(
                fs::OpenOptions::new()
                    .write(true)
                    .open(path)
                    .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes())),
            )
        }
        // `mknod:PATH=TYPE,MAJOR,MINOR`
        "mknod" => done(mknod(operand)),
        // `mount:TYPE=TARGET`
        "mount" => {
            let (kind, target) = operand.split_once('=').unwrap_or((operand, "/mnt"));
            done(mount(kind, target, 0))
        }
        "remount-write" => done(mount("", operand, libc::MS_REMOUNT | libc::MS_BIND)),
        "unmount" => done(unmount(operand)),
        // `socket:FAMILY,TYPE`
        "socket" => done(socket(operand)),
        // `vsock:CID,PORT`
        "vsock" => done(vsock(operand)),
        // `syscall:NUMBER`, with zeros as arguments.
        "syscall" => done(system_call(operand)),
        "unshare" => done(apart(|| unshare(operand))),
        // `kill:PID` with signal 0.
        "kill" => done(operand.parse().map_err(io::Error::other).and_then(|pid: i32| {
            // SAFETY: integers.
            check(unsafe { libc::kill(pid, 0) }.into())
        })),
        "allocate" => done(allocate(operand)),
        // The operand is a port of this machine's own.
        "vsock-listen" => done(vsock_listen(operand)),
        // The program of another process, which it ends.
        "seize" => seize(),
        "iopl" => done(check(
            // SAFETY: an integer.
            unsafe { libc::iopl(3) }.into(),
        )),
        "chroot-escape" => done(apart(chroot_escape)),
        // The first byte, or `nothing` where there is none.
        "peek" => match fs::File::open(operand).and_then(|mut file| io::Read::read(&mut file, &mut [0])) {
            Ok(0) => string("nothing"),
            Ok(_) => string("ok"),
            Err(error) => string(&name(&error)),
        },
        "sleep" => {
            std::thread::sleep(Duration::from_millis(operand.parse().unwrap_or(0)));
            string("ok")
        }
        _ => string("no such probe"),
    }
}

/// In a process of its own: what is tried next must not be changed by what was tried before.
fn apart(attempt: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // SAFETY: this program has one thread, so that the child can do whatever it could do; it ends without returning.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let code = attempt().map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0);
        // SAFETY: never returns.
        unsafe { libc::_exit(code) }
    }
    check(pid.into())?;
    let mut status = 0;
    // SAFETY: room for a status.
    check(unsafe { libc::waitpid(pid, &raw mut status, 0) }.into())?;
    match libc::WEXITSTATUS(status) {
        0 if libc::WIFEXITED(status) => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

fn check(result: i64) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn c(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

fn open(path: &str, flags: i32) -> io::Result<()> {
    // SAFETY: a NUL-terminated path that outlives the call; the descriptor is closed at once.
    unsafe {
        let fd = libc::open(c(path).as_ptr(), flags | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY);
        check(fd.into())?;
        // A device that opens may still refuse to be read.
        let mut byte = 0u8;
        if flags == libc::O_RDONLY && libc::read(fd, (&raw mut byte).cast(), 1) < 0 {
            let error = io::Error::last_os_error();
            if ![Some(libc::EISDIR), Some(libc::EAGAIN)].contains(&error.raw_os_error()) {
                libc::close(fd);
                return Err(error);
            }
        }
        check(libc::close(fd).into())
    }
}

fn mknod(operand: &str) -> io::Result<()> {
    let wrong = || io::Error::from_raw_os_error(libc::EINVAL);
    let (path, device) = operand.split_once('=').ok_or_else(wrong)?;
    let parts: Vec<&str> = device.split(',').collect();
    let [kind, major, minor] = parts.as_slice() else { return Err(wrong()) };
    let kind = if *kind == "b" { libc::S_IFBLK } else { libc::S_IFCHR };
    let number = |text: &str| text.parse::<u32>().map_err(io::Error::other);
    let device = libc::makedev(number(major)?, number(minor)?);
    // SAFETY: a NUL-terminated path that outlives the call.
    check(unsafe { libc::mknod(c(path).as_ptr(), kind | 0o600, device) }.into())
}

fn mount(kind: &str, target: &str, flags: u64) -> io::Result<()> {
    // SAFETY: NUL-terminated strings that outlive the call.
    check(
        unsafe {
            libc::mount(c"none".as_ptr(), c(target).as_ptr(), c(kind).as_ptr(), flags, std::ptr::null())
        }
        .into(),
    )
}

fn unmount(target: &str) -> io::Result<()> {
    // SAFETY: a NUL-terminated path that outlives the call.
    check(unsafe { libc::umount2(c(target).as_ptr(), libc::MNT_DETACH) }.into())
}

fn socket(operand: &str) -> io::Result<()> {
    let (family, kind) = operand.split_once(',').unwrap_or((operand, "1"));
    let number = |text: &str| text.parse::<i32>().map_err(io::Error::other);
    // SAFETY: integers; the descriptor is closed by the end of the process.
    check(unsafe { libc::socket(number(family)?, number(kind)?, 0) }.into())
}

/// Connects to a vsock port.
fn vsock(operand: &str) -> io::Result<()> {
    let (cid, port) = operand.split_once(',').unwrap_or((operand, "0"));
    // SAFETY: all-zero bytes are a valid `sockaddr_vm`, whose size is named; the descriptor is closed by the end of the process.
    unsafe {
        let socket = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        check(socket.into())?;
        let mut address = std::mem::zeroed::<libc::sockaddr_vm>();
        address.svm_family = u16::try_from(libc::AF_VSOCK).unwrap_or(0);
        address.svm_cid = cid.parse().map_err(io::Error::other)?;
        address.svm_port = port.parse().map_err(io::Error::other)?;
        let size = u32::try_from(size_of::<libc::sockaddr_vm>()).unwrap_or(0);
        check(libc::connect(socket, (&raw const address).cast(), size).into())
    }
}

fn vsock_listen(port: &str) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `sockaddr_vm`, whose size is named; the descriptor is closed by the end of the process.
    unsafe {
        let socket = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        check(socket.into())?;
        let mut address = std::mem::zeroed::<libc::sockaddr_vm>();
        address.svm_family = u16::try_from(libc::AF_VSOCK).unwrap_or(0);
        address.svm_cid = libc::VMADDR_CID_ANY;
        address.svm_port = port.parse().map_err(io::Error::other)?;
        let size = u32::try_from(size_of::<libc::sockaddr_vm>()).unwrap_or(0);
        check(libc::bind(socket, (&raw const address).cast(), size).into())?;
        check(libc::listen(socket, 1).into())
    }
}

/// As CVE-2019-5736: opens the program of each process that runs another than this one and init, tries to write to it, ends the
/// process, and tries again. Tells of the one that could be written, or of the last.
fn seize() -> Json {
    const PAUSE: Duration = Duration::from_millis(10);
    let identity = |file: fs::Metadata| (file.dev(), file.ino());
    let own = ["/proc/self/exe", "/proc/1/exe"].map(|path| fs::metadata(path).map(identity).ok());
    let mut answer = string("no other program");
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let held = fs::File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
            .open(entry.path().join("exe"));
        let Ok(held) = held else { continue };
        if own.contains(&held.metadata().map(identity).ok()) {
            continue;
        }
        let write = || fs::File::options().write(true).open(format!("/proc/self/fd/{}", held.as_raw_fd()));
        let tried = write().or_else(|_| {
            // SAFETY: two integers.
            check(unsafe { libc::kill(pid, libc::SIGKILL) }.into())?;
            // It ends in its own time; and whoever started it may still run the program too, but not for long.
            for _ in 0..200 {
                match write() {
                    Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => std::thread::sleep(PAUSE),
                    result => return result,
                }
            }
            write()
        });
        let could = tried.is_ok();
        answer = string(&tried.err().map_or_else(|| "ok".to_owned(), |error| name(&error)));
        if could {
            break;
        }
    }
    answer
}

fn system_call(operand: &str) -> io::Result<()> {
    let number: i64 = operand.parse().map_err(io::Error::other)?;
    // SAFETY: only calls that read nothing through null pointers and end in an error are tried.
    check(unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) })
}

fn unshare(operand: &str) -> io::Result<()> {
    let flags = match operand {
        "user" => libc::CLONE_NEWUSER,
        "mount" => libc::CLONE_NEWNS,
        "net" => libc::CLONE_NEWNET,
        "cgroup" => libc::CLONE_NEWCGROUP,
        _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
    };
    // SAFETY: an integer.
    check(unsafe { libc::unshare(flags) }.into())
}

/// Touches that many mebibytes, one page after the other.
fn allocate(operand: &str) -> io::Result<()> {
    let mebibytes: usize = operand.parse().map_err(io::Error::other)?;
    let mut memory = vec![0u8; mebibytes << 20];
    for page in memory.chunks_mut(4096) {
        page[0] = 1;
    }
    std::hint::black_box(&memory);
    Ok(())
}

/// The classic way out of chroot(2): a root that is changed below an open directory.
fn chroot_escape() -> io::Result<()> {
    fs::create_dir_all("/tmp/jail")?;
    let outside = fs::File::open("/")?;
    // SAFETY: NUL-terminated paths and a descriptor that is open.
    unsafe {
        check(libc::chroot(c"/tmp/jail".as_ptr()).into())?;
        check(libc::fchdir(outside.as_raw_fd()).into())?;
        for _ in 0..64 {
            check(libc::chdir(c"..".as_ptr()).into())?;
        }
    }
    // What is above the container's root would have the agent's or the host's own program.
    if Path::new("checker").exists() && !Path::new("init").exists() {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    } else {
        Ok(())
    }
}

/// The error's name as errno(3) spells it, for those that matter here.
fn name(error: &io::Error) -> String {
    const NAMES: [(i32, &str); 32] = [
        (libc::EPERM, "EPERM"),
        (libc::ENOENT, "ENOENT"),
        (libc::ESRCH, "ESRCH"),
        (libc::EIO, "EIO"),
        (libc::ENXIO, "ENXIO"),
        (libc::ENOEXEC, "ENOEXEC"),
        (libc::EBADF, "EBADF"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::ENOMEM, "ENOMEM"),
        (libc::EACCES, "EACCES"),
        (libc::EFAULT, "EFAULT"),
        (libc::EBUSY, "EBUSY"),
        (libc::EEXIST, "EEXIST"),
        (libc::ENODEV, "ENODEV"),
        (libc::ENOTDIR, "ENOTDIR"),
        (libc::EISDIR, "EISDIR"),
        (libc::EINVAL, "EINVAL"),
        (libc::EMFILE, "EMFILE"),
        (libc::ETXTBSY, "ETXTBSY"),
        (libc::ENOSPC, "ENOSPC"),
        (libc::EROFS, "EROFS"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::ELOOP, "ELOOP"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
        (libc::EAFNOSUPPORT, "EAFNOSUPPORT"),
        (libc::EADDRINUSE, "EADDRINUSE"),
        (libc::EADDRNOTAVAIL, "EADDRNOTAVAIL"),
        (libc::ENETUNREACH, "ENETUNREACH"),
        (libc::ECONNRESET, "ECONNRESET"),
        (libc::ETIMEDOUT, "ETIMEDOUT"),
        (libc::ECONNREFUSED, "ECONNREFUSED"),
        (libc::EHOSTUNREACH, "EHOSTUNREACH"),
    ];
    let number = error.raw_os_error().unwrap_or(0);
    NAMES
        .iter()
        .find(|(known, _)| *known == number)
        .map_or_else(|| format!("error {number}"), |(_, name)| (*name).to_owned())
}
