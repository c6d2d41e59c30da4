//! Names: looking up, making, listing, renaming, removing; exports and their rights.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;

use hull_protocol::fs::{Control, ExportAccess};
use libc::{O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY};

use super::client::*;

fn opendir(client: &mut Client, node: u64) -> u64 {
    u64_at(&client.call(27, node, body().u32(0).u32(0), 16).unwrap(), 0)
}

/// All of a directory, in pieces of `size`: names with their inodes, and the nodes that came along.
fn list(client: &mut Client, handle: u64, size: u32, plus: bool) -> (Vec<(String, u64)>, Vec<u64>) {
    let (mut names, mut nodes, mut offset) = (Vec::new(), Vec::new(), 0);
    let (opcode, head) = if plus { (44, 128) } else { (28, 0) };
    loop {
        let request = body().u64(handle).u64(offset).u32(size).u32(0).u64(0).u32(0).u32(0);
        let reply = client.call(opcode, 99, request, usize::try_from(size).unwrap()).unwrap();
        let mut rest = &reply[..];
        if rest.is_empty() {
            return (names, nodes);
        }
        while !rest.is_empty() {
            let length = usize::try_from(u32_at(rest, head + 16)).unwrap();
            let name = String::from_utf8(rest[head + 24..head + 24 + length].to_vec()).unwrap();
            offset = u64_at(rest, head + 8);
            if plus && u64_at(rest, 0) != 0 {
                assert_eq!(u64_at(rest, 40), u64_at(rest, head), "{name}: the inode of entry and attributes");
                nodes.push(u64_at(rest, 0));
            }
            names.push((name, u64_at(rest, head)));
            rest = &rest[(head + 24 + length).next_multiple_of(8)..];
        }
    }
}

#[test]
fn the_root_lists_the_exports_and_nothing_can_be_made_there() {
    let mut client = Client::new();
    let handle = opendir(&mut client, ROOT);
    let names = |listed: Vec<(String, u64)>| listed.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(list(&mut client, handle, 4096, false).0), ["ro", "rw"]);
    let (listed, nodes) = list(&mut client, handle, 160, true);
    assert_eq!((names(listed), nodes.len()), (vec!["ro".into(), "rw".into()], 2));
    assert_eq!(client.lookup(ROOT, "etc"), Err(libc::ENOENT));
    assert_eq!(client.mkdir(ROOT, "new", 0o755), Err(libc::EROFS));
    assert_eq!(client.create(ROOT, "new", O_RDWR, 0o644), Err(libc::EROFS));
    assert_eq!(client.unlink(ROOT, "rw"), Err(libc::EROFS));
    let rw = client.rw();
    assert_eq!(client.rename((rw, "x"), (ROOT, "x"), 0), Err(libc::EROFS));
    let file = client.host("single");
    std::fs::write(&file, b"alone").unwrap();
    client.shim.export("file", &file, ExportAccess::ReadOnly);
    let (node, attr) = client.lookup(ROOT, "file").unwrap();
    assert_eq!(attr.mode & libc::S_IFMT, libc::S_IFREG);
    let handle = client.open(node, O_RDONLY).unwrap();
    assert_eq!(client.read(handle, 0, 10).unwrap(), b"alone");
    assert_eq!(client.lookup(node, "x"), Err(libc::ENOTDIR));
}

#[test]
fn ten_thousand_entries_are_listed_once_each() {
    let mut client = Client::new();
    let rw = client.rw();
    let wanted: BTreeSet<String> = (0..10_000).map(|n| format!("file-{n}")).collect();
    for name in &wanted {
        std::fs::write(client.host(name), b"").unwrap();
    }
    let handle = opendir(&mut client, rw);
    for (size, plus) in [(4096, false), (65_536, true), (4096, true)] {
        let (names, nodes) = list(&mut client, handle, size, plus);
        let set: BTreeSet<String> = names.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(set.len(), names.len(), "an entry came twice");
        assert!(set.contains(".") && set.contains(".."));
        assert!(wanted.is_subset(&set) && set.len() == wanted.len() + 2, "{} of 10002", set.len());
        assert_eq!(nodes.len(), if plus { 10_000 } else { 0 });
        let attr = nodes.first().map(|node| client.getattr(*node).unwrap());
        assert!(attr.is_none_or(|attr| attr.nlink == 1));
        for nodes in nodes.chunks(1000) {
            let batch = body().u32(u32::try_from(nodes.len()).unwrap()).u32(0);
            let batch = nodes.iter().fold(batch, |batch, node| batch.u64(*node).u64(1));
            let message = client.message(42, 0, &batch);
            assert!(client.send_raw(0, &[&message], 0).is_empty());
            assert_eq!(client.getattr(nodes[0]), Err(libc::ESTALE));
        }
    }
    // Too little room for any entry is said, instead of the end of the directory.
    let request = body().u64(handle).u64(0).u32(8).u32(0).u64(0).u32(0).u32(0);
    assert_eq!(client.call(28, rw, request, 8), Err(libc::EINVAL));
    client.call(30, rw, body().u64(handle).u32(0).u32(0), 0).unwrap();
    client.call(29, rw, body().u64(handle).u32(0).u32(0).u64(0), 0).unwrap();
}

#[test]
fn renaming_linking_and_removing() {
    let mut client = Client::new();
    let rw = client.rw();
    let (a, _) = client.mkdir(rw, "a", 0o755).unwrap();
    let (b, _) = client.mkdir(rw, "b", 0o755).unwrap();
    let (f, handle, _) = client.create(a, "f", O_RDWR, 0o644).unwrap();
    client.write(handle, 0, b"f").unwrap();
    client.rename((a, "f"), (b, "g"), 0).unwrap();
    assert_eq!(client.lookup(b, "g").unwrap().0, f, "one inode is one node");
    client.create(a, "h", O_RDWR, 0o644).unwrap();
    assert_eq!(client.rename((b, "g"), (a, "h"), libc::RENAME_NOREPLACE), Err(libc::EEXIST));
    client.rename((b, "g"), (a, "h"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(std::fs::read(client.host("a/h")).unwrap(), b"f");
    assert_eq!(client.rename((b, "g"), (a, "h"), libc::RENAME_WHITEOUT), Err(libc::EINVAL));
    client.rename((b, "g"), (a, "h"), 0).unwrap();
    assert_eq!(std::fs::read(client.host("a/h")).unwrap(), b"");
    assert_eq!(client.rename((b, "g"), (a, "h"), 0), Err(libc::ENOENT));
    assert_eq!(client.call(12, a, body().u64(b).text("h").text("old style"), 0), Ok(vec![]));

    let (h, _) = client.lookup(b, "old style").unwrap();
    let (linked, attr) = client.entry(13, rw, body().u64(h).text("hard")).unwrap();
    assert_eq!((linked, attr.nlink), (h, 2));
    assert_eq!(
        client.entry(13, rw, body().u64(a).text("dir")),
        Err(libc::EPERM),
        "directories have one name"
    );
    assert_eq!(client.unlink(rw, "a"), Err(libc::EISDIR));
    assert_eq!(client.call(11, rw, body().text("b"), 0), Err(libc::ENOTEMPTY));
    assert_eq!(client.call(11, rw, body().text("hard"), 0), Err(libc::ENOTDIR));
    client.unlink(rw, "hard").unwrap();
    client.unlink(b, "old style").unwrap();
    client.call(11, rw, body().text("b"), 0).unwrap();
    assert_eq!(client.create(b, "x", O_RDWR, 0o644), Err(libc::ENOENT), "a directory that is gone");
    assert!(!client.host("b").exists());
}

#[test]
fn links_are_read_and_never_followed() {
    let mut client = Client::new();
    let rw = client.rw();
    symlink("/etc", client.host("etc")).unwrap();
    symlink("/etc/passwd", client.host("passwd")).unwrap();
    symlink("/proc/self/fd/0", client.host("magic")).unwrap();
    for name in ["etc", "passwd", "magic"] {
        let (node, attr) = client.lookup(rw, name).unwrap();
        assert_eq!(attr.mode & libc::S_IFMT, libc::S_IFLNK, "{name}");
        assert_eq!(client.open(node, O_RDONLY), Err(libc::ELOOP), "{name}");
        assert_eq!(client.lookup(node, "passwd"), Err(libc::ENOTDIR), "{name}");
        assert_eq!(client.call(27, node, body().u64(0), 16), Err(libc::ENOTDIR), "{name}");
        assert_eq!(client.create(node, "x", O_RDWR, 0o644), Err(libc::ENOTDIR), "{name}");
        assert_eq!(client.create(rw, name, O_RDWR, 0o644), Err(libc::ELOOP), "{name}");
    }
    let (node, _) = client.lookup(rw, "passwd").unwrap();
    assert_eq!(client.call(5, node, body(), 4096).unwrap(), b"/etc/passwd");
    let long = "x".repeat(4000);
    let (node, _) = client.entry(6, rw, body().text("long").text(&long)).unwrap();
    assert_eq!(client.call(5, node, body(), 4096).unwrap(), long.as_bytes());
    assert_eq!(client.entry(6, rw, body().text("empty").text("")), Err(libc::ENAMETOOLONG));
}

#[test]
fn devices_are_not_made_and_pipes_and_sockets_are_not_opened() {
    let mut client = Client::new();
    let rw = client.rw();
    for kind in [libc::S_IFCHR, libc::S_IFBLK, libc::S_IFDIR, 0] {
        let request = body().u32(kind | 0o666).u32(0x103).u32(0).u32(0).text("node");
        assert_eq!(client.entry(8, rw, request), Err(libc::EPERM), "{kind:o}");
    }
    for (kind, name) in [(libc::S_IFIFO, "made-fifo"), (libc::S_IFSOCK, "made-socket")] {
        let request = || body().u32(kind | 0o640).u32(0).u32(0).u32(0).text(name);
        let (node, _) = client.entry(8, rw, request()).unwrap();
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(client.host(name)).unwrap());
        assert_eq!(mode, kind | 0o640, "{name}");
        assert_eq!(client.entry(8, rw, request()), Err(libc::EEXIST), "{name}");
        assert_eq!(client.open(node, O_RDWR), Err(libc::EACCES), "{name}");
    }
    nix::unistd::mkfifo(&client.host("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(client.host("socket")).unwrap();
    for name in ["fifo", "socket"] {
        let (node, _) = client.lookup(rw, name).unwrap();
        for flags in [O_RDONLY, O_WRONLY, O_RDWR] {
            assert_eq!(client.open(node, flags), Err(libc::EACCES), "{name}");
        }
        let size = SetAttr { valid: 8, ..Default::default() };
        assert_eq!(client.setattr(node, size), Err(libc::EACCES), "{name}");
        assert_eq!(client.create(rw, name, O_RDWR, 0o644), Err(libc::EACCES), "{name}");
        assert_eq!(client.call(22, node, body().u32(9).u32(0).text("user.x"), 9), Err(libc::ENODATA));
    }
}

/// Read-only only in the guest's mount flags was an advisory of another project: here the broker refuses, whatever
/// the guest sends.
#[test]
fn a_read_only_export_refuses_every_change() {
    let mut client = Client::new();
    std::fs::create_dir(client.host("d")).unwrap();
    std::fs::write(client.host("f"), b"as it was").unwrap();
    let (ro, rw) = (client.ro(), client.rw());
    let (f, _) = client.lookup(ro, "f").unwrap();
    let (d, _) = client.lookup(ro, "d").unwrap();
    let (writable_f, _) = client.lookup(rw, "f").unwrap();
    assert_ne!(f, writable_f, "rights belong to the way, not to the inode");
    let reader = client.open(f, O_RDONLY).unwrap();
    let writer = client.open(writable_f, O_RDWR).unwrap();
    let attempts: Vec<(u32, u64, Body)> = vec![
        (4, f, body().u32(1).bytes(&[0; 84])),
        (4, f, body().u32(8).bytes(&[0; 84])),
        (4, f, body().u32(8 | 1 << 6).u32(0).u64(writer).bytes(&[0; 72])),
        (6, ro, body().text("l").text("t")),
        (8, ro, body().u32(libc::S_IFREG).u32(0).u32(0).u32(0).text("n")),
        (9, ro, body().u32(0o755).u32(0).text("new")),
        (10, ro, body().text("f")),
        (11, ro, body().text("d")),
        (12, ro, body().u64(ro).text("f").text("g")),
        (45, ro, body().u64(rw).u32(0).u32(0).text("f").text("g")),
        (45, rw, body().u64(ro).u32(0).u32(0).text("f").text("g")),
        (13, ro, body().u64(f).text("hard")),
        (13, d, body().u64(writable_f).text("hard")),
        (14, f, body().u32(O_WRONLY.cast_unsigned()).u32(0)),
        (14, f, body().u32(O_RDWR.cast_unsigned()).u32(0)),
        (14, f, body().u32((O_RDONLY | O_TRUNC).cast_unsigned()).u32(0)),
        (21, f, body().u32(1).u32(0).text("user.x").bytes(b"x")),
        (24, f, body().text("user.x")),
        (35, ro, body().u32(O_RDONLY.cast_unsigned()).u32(0o644).u64(0).text("f")),
        (35, ro, body().u32(O_RDWR.cast_unsigned()).u32(0o644).u64(0).text("new")),
        (43, f, body().u64(reader).u64(0).u64(4096).u64(0)),
        (47, f, body().u64(writer).u64(0).u64(f).u64(reader).u64(0).u64(4).u64(0)),
        (51, ro, body().u32(O_RDWR.cast_unsigned()).u32(0o644).u64(0).text("")),
    ];
    for (opcode, node, request) in attempts {
        assert_eq!(client.call(opcode, node, request, 200), Err(libc::EROFS), "opcode {opcode}");
    }
    // The monitor itself could not if it would: the descriptor that it has does not let it.
    assert_eq!(client.write(reader, 0, b"x"), Err(libc::EBADF));
    assert_eq!(client.entry(13, rw, body().u64(f).text("hard")), Err(libc::EXDEV));
    assert_eq!(std::fs::read(client.host("f")).unwrap(), b"as it was");
    let mut names: Vec<_> =
        std::fs::read_dir(client.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["d", "f"]);
}

#[test]
fn exports_come_and_go() {
    let mut client = Client::new();
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("f"), b"other").unwrap();
    client.shim.export("late", other.path(), ExportAccess::ReadWrite);
    let (late, _) = client.lookup(ROOT, "late").unwrap();
    let (f, _) = client.lookup(late, "f").unwrap();
    let handle = client.open(f, O_RDONLY).unwrap();
    let rw = client.rw();
    std::fs::write(client.host("mine"), b"mine").unwrap();
    let (rw_file, _) = client.lookup(rw, "mine").unwrap();
    assert_eq!(client.rename((late, "f"), (rw, "f"), 0), Err(libc::EXDEV));
    assert_eq!(client.read(handle, 0, 5), Ok(b"other".to_vec()));
    let kept = client.open(rw_file, O_RDONLY).unwrap();
    let remove = Control::RemoveExport { name: "late".into() };
    client.shim.say(&remove, &[]).unwrap();
    // The monitor had the file open by itself.
    assert_eq!(client.read(handle, 0, 5), Err(libc::EBADF));
    assert_eq!(client.read(kept, 0, 4), Ok(b"mine".to_vec()));
    assert!(client.shim.say(&remove, &[]).is_err());
    assert_eq!(client.lookup(ROOT, "late"), Err(libc::ENOENT));
    assert_eq!(client.lookup(late, "f"), Err(libc::ESTALE));
    assert_eq!(client.getattr(f), Err(libc::ESTALE));
    assert_eq!(client.release(handle), Err(libc::EBADF), "the broker has closed it already");
    client.forget(f, 1);
    assert!(client.getattr(rw).is_ok());
    let pipe = std::io::pipe().unwrap();
    let add = |name: &str| Control::AddExport { name: name.into(), access: ExportAccess::ReadWrite };
    assert!(client.shim.say(&add("pipe"), &[&pipe.0.into()]).unwrap_err().contains("neither"));
    let directory = std::os::fd::OwnedFd::from(std::fs::File::open(other.path()).unwrap());
    for bad in ["", ".", "..", "a/b", "rw", &"n".repeat(256)] {
        assert!(client.shim.say(&add(bad), &[&directory]).is_err(), "{bad}");
    }
    assert!(client.shim.say(&Control::Serve, &[&directory]).unwrap_err().contains("already"));
    assert!(client.shim.say(&Control::Hello { version: 99 }, &[]).unwrap_err().contains("99"));
}

#[test]
fn the_host_may_change_what_it_likes() {
    let mut client = Client::new();
    let rw = client.rw();
    let (node, _) = client.mkdir(rw, "d", 0o755).unwrap();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), b"secret").unwrap();
    // The directory is moved out of the export: what the guest holds of it moves along, but leads no further.
    std::fs::rename(client.host("d"), outside.path().join("d")).unwrap();
    assert_eq!(client.lookup(node, "secret"), Err(libc::ENOENT));
    assert_eq!(client.lookup(rw, "d"), Err(libc::ENOENT));
    assert_eq!(client.lookup(node, ".."), Err(libc::EINVAL));
}
