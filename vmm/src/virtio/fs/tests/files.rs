//! Contents, sizes, times and attributes of files.

use std::os::unix::fs::{FileExt, MetadataExt};

use libc::{O_APPEND, O_CREAT, O_EXCL, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY};

use super::client::*;
use crate::virtio::testing::*;

#[test]
fn the_configuration_names_the_mount() {
    let mut client = Client::before_init();
    let mut config = [0; 48];
    client.driver.transport.read(0x100, &mut config);
    assert_eq!(&config[..8], b"volumes\0");
    assert_eq!(config[8..36], [0; 28]);
    assert_eq!(u32_at(&config, 36), 1);
    let init = client.init();
    assert_eq!((u32_at(&init, 0), u32_at(&init, 4)), (7, 38));
    assert_eq!(u32_at(&init, 20), 1 << 20, "the largest write");
    // Nothing was taken that would need an answer we do not have: POSIX locks, writeback, ACLs, DAX.
    assert_eq!(u32_at(&init, 12) & (1 << 1 | 1 << 10 | 1 << 16 | 1 << 20 | 1 << 26), 0);
    let old = body().u32(7).u32(30).u32(0).u32(0);
    assert_eq!(client.call(26, 0, old, 64), Err(libc::EPROTO));
}

#[test]
fn what_is_written_is_on_the_host_at_once_and_the_other_way_round() {
    let mut client = Client::new();
    let rw = client.rw();
    let (node, handle, attr) = client.create(rw, "f", O_RDWR | O_CREAT, 0o640).unwrap();
    assert_eq!(attr.mode, libc::S_IFREG | 0o640);
    let data: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(client.write(handle, 5, &data), Ok(300_000));
    let host = std::fs::read(client.host("f")).unwrap();
    assert_eq!((&host[..5], &host[5..]), (&[0; 5][..], &data[..]));
    assert_eq!(client.read(handle, 5, 300_000).unwrap(), data);
    assert_eq!(client.read(handle, 300_000, 4096).unwrap(), data[299_995..], "short at the end");
    assert_eq!(client.read(handle, 400_000, 4096).unwrap(), b"");
    std::fs::OpenOptions::new().write(true).open(client.host("f")).unwrap().write_all_at(b"host", 0).unwrap();
    assert_eq!(client.read(handle, 0, 4).unwrap(), b"host");
    assert_eq!(client.getattr(node).unwrap().size, 300_005);
    let counters = client.driver.transport.counters();
    assert_eq!((counters.bytes_from_guest, counters.bytes_to_guest), (300_000, 300_009));
    client.release(handle).unwrap();
    assert_eq!(client.read(handle, 0, 1), Err(libc::EBADF));
    assert_eq!(client.release(handle), Err(libc::EBADF));
}

#[test]
fn owners_and_modes_are_the_guests() {
    let mut client = Client::new();
    let rw = client.rw();
    client.caller = (1234, 5678);
    client.create(rw, "f", O_RDWR, 0o4751).unwrap();
    client.mkdir(rw, "d", 0o711).unwrap();
    client.entry(6, rw, body().text("l").text("/nowhere")).unwrap();
    client.entry(8, rw, body().u32(libc::S_IFREG | 0o444).u32(0).u32(0).u32(0).text("n")).unwrap();
    for (name, mode) in [("f", 0o104_751), ("d", 0o40_711), ("l", 0o120_777), ("n", 0o100_444)] {
        let meta = std::fs::symlink_metadata(client.host(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode()), (1234, 5678, mode), "{name}");
    }
    // A directory with the set-group-id bit hands its group on, and directories the bit too.
    let (d, _) = client.lookup(rw, "d").unwrap();
    let set = SetAttr { valid: 1 | 4, mode: 0o2775, gid: 42, ..Default::default() };
    client.setattr(d, set).unwrap();
    client.setattr(d, SetAttr { valid: 1, mode: 0o2775, ..set }).unwrap();
    let (_, _, file) = client.create(d, "f", O_RDWR, 0o600).unwrap();
    let (_, directory) = client.mkdir(d, "d", 0o700).unwrap();
    assert_eq!((file.gid, directory.gid, directory.mode), (42, 42, libc::S_IFDIR | 0o2700));
}

#[test]
fn attributes_are_set_one_by_one() {
    let mut client = Client::new();
    let rw = client.rw();
    let (node, handle, _) = client.create(rw, "f", O_RDWR, 0o600).unwrap();
    client.write(handle, 0, &[1; 100]).unwrap();
    let set =
        SetAttr { mode: 0o755, uid: 7, gid: 8, size: 10, handle, mtime: 1_000_000, ..Default::default() };
    let mut change = |valid| client.setattr(node, SetAttr { valid, ..set }).unwrap();
    assert_eq!(change(1).mode & 0o7777, 0o755);
    assert_eq!((change(2).uid, change(4).gid), (7, 8));
    assert_eq!(change(8).size, 10);
    assert_eq!(change(1 << 5).mtime, 1_000_000);
    assert!(change(1 << 5 | 1 << 8).mtime > 1_000_000_000, "now");
    client.setattr(node, SetAttr { size: 5000, valid: 8 | 1 << 6, ..set }).unwrap();
    assert_eq!(client.read(handle, 0, 6000).unwrap().len(), 5000);
    // Nothing was said about the rest.
    let meta = std::fs::metadata(client.host("f")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (7, 8, 0o755));
    let huge = SetAttr { size: u64::MAX, valid: 8, ..set };
    assert_eq!(client.setattr(node, huge), Err(libc::EFBIG));
    let (link, _) = client.entry(6, rw, body().text("l").text("f")).unwrap();
    assert_eq!(client.setattr(link, SetAttr { valid: 1, ..set }), Err(libc::EOPNOTSUPP));
    assert_eq!(client.setattr(link, SetAttr { valid: 2, uid: 99, ..set }).unwrap().uid, 99);
    assert_eq!(std::fs::metadata(client.host("f")).unwrap().uid(), 7, "the link was followed");
    assert_eq!(client.setattr(link, SetAttr { valid: 8, ..set }), Err(libc::ELOOP));
}

#[test]
fn appending_finds_the_end_and_the_page_cache_does_not() {
    let mut client = Client::new();
    let rw = client.rw();
    let (_, handle, _) = client.create(rw, "f", O_WRONLY | O_APPEND, 0o600).unwrap();
    client.write_with(handle, 0, b"one", O_WRONLY | O_APPEND, 0).unwrap();
    std::fs::write(client.host("f"), b"one host ").unwrap();
    client.write_with(handle, 3, b"two", O_WRONLY | O_APPEND, 0).unwrap();
    assert_eq!(std::fs::read(client.host("f")).unwrap(), b"one host two");
    client.write_with(handle, 0, b"ONE", O_WRONLY | O_APPEND, 1).unwrap();
    assert_eq!(std::fs::read(client.host("f")).unwrap(), b"ONE host two");
}

#[test]
fn open_modes_hold() {
    let mut client = Client::new();
    let rw = client.rw();
    let (node, first, _) = client.create(rw, "f", O_RDWR | O_CREAT | O_EXCL, 0o600).unwrap();
    client.write(first, 0, b"content").unwrap();
    assert_eq!(client.create(rw, "f", O_RDWR | O_EXCL, 0o600), Err(libc::EEXIST));
    let (same, _, attr) = client.create(rw, "f", O_RDWR, 0o777).unwrap();
    assert_eq!((same, attr.size, attr.mode & 0o777), (node, 7, 0o600), "an existing file is opened as it is");
    let read_only = client.open(node, O_RDONLY).unwrap();
    assert_eq!(client.write(read_only, 0, b"x"), Err(libc::EBADF));
    let write_only = client.open(node, O_WRONLY).unwrap();
    assert_eq!(client.read(write_only, 0, 1), Err(libc::EBADF));
    client.open(node, O_WRONLY | O_TRUNC).unwrap();
    assert_eq!(client.getattr(node).unwrap().size, 0);
    assert_eq!(client.open(node, 3), Err(libc::EINVAL));
    assert_eq!(client.open(rw, O_RDONLY), Err(libc::EISDIR));
    assert_eq!(client.open(ROOT, O_RDONLY), Err(libc::EISDIR));
}

#[test]
fn sparse_files_holes_and_copies() {
    let mut client = Client::new();
    let rw = client.rw();
    let (node, handle, _) = client.create(rw, "f", O_RDWR, 0o600).unwrap();
    client.write(handle, 1 << 20, b"island").unwrap();
    let seek = |client: &mut Client, at: u64, whence: u32| {
        client.call(46, node, body().u64(handle).u64(at).u32(whence).u32(0), 8).map(|reply| u64_at(&reply, 0))
    };
    assert_eq!(seek(&mut client, 0, 3), Ok(1 << 20), "data");
    assert_eq!(seek(&mut client, 0, 4), Ok(0), "a hole");
    assert_eq!(seek(&mut client, 2 << 20, 3), Err(libc::ENXIO));
    assert_eq!(seek(&mut client, 0, 0), Err(libc::EINVAL));
    let allocate = |client: &mut Client, mode: i32, at: u64, length: u64| {
        let request = body().u64(handle).u64(at).u64(length).u32(mode.cast_unsigned()).u32(0);
        client.call(43, node, request, 0).map(drop)
    };
    allocate(&mut client, 0, 0, 4 << 20).unwrap();
    assert_eq!(client.getattr(node).unwrap().size, 4 << 20);
    allocate(&mut client, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0, 2 << 20).unwrap();
    assert_eq!(client.read(handle, 1 << 20, 6).unwrap(), [0; 6]);
    assert_eq!(allocate(&mut client, libc::FALLOC_FL_COLLAPSE_RANGE, 0, 4096), Err(libc::EOPNOTSUPP));
    assert_eq!(allocate(&mut client, 0, u64::MAX, 1), Err(libc::EFBIG));

    client.write(handle, 0, b"copied").unwrap();
    let (_, target, _) = client.create(rw, "g", O_RDWR, 0o600).unwrap();
    let copy = body().u64(handle).u64(0).u64(0).u64(target).u64(3).u64(6).u64(0);
    assert_eq!(u32_at(&client.call(47, node, copy, 8).unwrap(), 0), 6);
    assert_eq!(std::fs::read(client.host("g")).unwrap(), b"\0\0\0copied");
}

#[test]
fn a_file_without_a_name_and_one_that_lost_it() {
    let mut client = Client::new();
    let rw = client.rw();
    let create = body().u32(O_RDWR.cast_unsigned()).u32(0o600).u32(0).u32(0).text("");
    let reply = client.call(51, rw, create, 144).unwrap();
    let (node, handle) = (u64_at(&reply, 0), u64_at(&reply, 128));
    assert_eq!(attr(&reply[40..]).nlink, 0);
    client.write(handle, 0, b"later").unwrap();
    client.entry(13, rw, body().u64(node).text("named")).unwrap();
    assert_eq!(std::fs::read(client.host("named")).unwrap(), b"later");

    client.rename((rw, "named"), (rw, "renamed"), 0).unwrap();
    client.unlink(rw, "renamed").unwrap();
    client.write(handle, 5, b"!").unwrap();
    assert_eq!(client.read(handle, 0, 10).unwrap(), b"later!");
    // By the inode too: a path that led there does not exist any more.
    let again = client.open(node, O_RDONLY).unwrap();
    assert_eq!(client.read(again, 0, 10).unwrap(), b"later!");
    assert_eq!(client.getattr(node).unwrap().nlink, 0);
    client.setattr(node, SetAttr { valid: 1, mode: 0o644, ..Default::default() }).unwrap();
    client.call(20, node, body().u64(handle).u32(1).u32(0), 0).unwrap();
}

#[test]
fn extended_attributes_are_the_users_own() {
    let mut client = Client::new();
    let rw = client.rw();
    let (node, ..) = client.create(rw, "f", O_RDWR, 0o600).unwrap();
    let set = |client: &mut Client, name: &str, value: &[u8], flags: i32| {
        let size = u32::try_from(value.len()).unwrap();
        let request = body().u32(size).u32(flags.cast_unsigned()).text(name).bytes(value);
        client.call(21, node, request, 0).map(drop)
    };
    let get = |client: &mut Client, name: &str, size: u32| {
        client.call(22, node, body().u32(size).u32(0).text(name), usize::try_from(size.max(8)).unwrap())
    };
    set(&mut client, "user.a", b"value", 0).unwrap();
    set(&mut client, "user.b", b"", 0).unwrap();
    assert_eq!(set(&mut client, "user.a", b"", libc::XATTR_CREATE), Err(libc::EEXIST));
    assert_eq!(get(&mut client, "user.a", 100).unwrap(), b"value");
    assert_eq!(u32_at(&get(&mut client, "user.a", 0).unwrap(), 0), 5);
    assert_eq!(get(&mut client, "user.a", 4), Err(libc::ERANGE));
    let list = client.call(23, node, body().u32(100).u32(0), 100).unwrap();
    assert_eq!(list, b"user.a\0user.b\0");
    client.call(24, node, body().text("user.a"), 0).unwrap();
    assert_eq!(get(&mut client, "user.a", 100), Err(libc::ENODATA));
    // What the host would believe, the guest cannot say.
    for name in
        ["security.capability", "trusted.overlay.opaque", "system.posix_acl_access", "security.selinux"]
    {
        assert_eq!(set(&mut client, name, b"x", 0), Err(libc::EOPNOTSUPP), "{name}");
        assert_eq!(get(&mut client, name, 100), Err(libc::ENODATA), "{name}");
    }
    // The value is as long as it says, or there is none.
    let short = body().u32(100).u32(0).text("user.c").bytes(b"short");
    assert_eq!(client.call(21, node, short, 0), Err(libc::EINVAL));
}

#[test]
fn access_and_statfs() {
    let mut client = Client::new();
    let (rw, ro) = (client.rw(), client.ro());
    client.caller = (5, 6);
    let (node, ..) = client.create(rw, "f", O_RDWR, 0o640).unwrap();
    let access = |client: &mut Client, node, caller, mask| {
        client.caller = caller;
        client.call(34, node, body().u32(mask).u32(0), 0).map(drop)
    };
    assert_eq!(access(&mut client, node, (5, 0), 6), Ok(()));
    assert_eq!(access(&mut client, node, (9, 6), 4), Ok(()));
    assert_eq!(access(&mut client, node, (9, 6), 2), Err(libc::EACCES));
    assert_eq!(access(&mut client, node, (9, 9), 4), Err(libc::EACCES));
    assert_eq!(access(&mut client, node, (0, 0), 1), Err(libc::EACCES), "nobody may execute it");
    assert_eq!(access(&mut client, ro, (0, 0), 2), Err(libc::EROFS));
    assert_eq!(access(&mut client, ROOT, (0, 0), 2), Err(libc::EROFS));
    let stat = client.call(17, rw, body(), 80).unwrap();
    assert!(u64_at(&stat, 0) > 0 && u32_at(&stat, 44) == 255, "{stat:?}");
    assert_eq!(client.call(17, ROOT, body(), 80).unwrap().len(), 80);
}

#[test]
fn requests_after_a_reset_begin_anew() {
    let mut client = Client::new();
    let rw = client.rw();
    let (_, handle, _) = client.create(rw, "f", O_RDWR, 0o600).unwrap();
    client.driver.start(u64::MAX);
    client.init();
    assert_eq!(client.read(handle, 0, 1), Err(libc::EBADF));
    assert_eq!(client.getattr(rw), Err(libc::ESTALE));
    let rw = client.rw();
    assert!(client.lookup(rw, "f").is_ok());
    assert_eq!(client.driver.get(STATUS), RUNNING);
}
