//! What a layer may say and what is refused: the rules of names, links and whiteouts, and archives that have fooled
//! other programs.

use super::testing::{RawHeader, TarBuilder, convert, convert_with, pax_records, show_layer};
use super::{ConvertError, LimitKind, Limits, TarFault};
use crate::erofs::{InodeId, Kind, LayerTree, mode};

macro_rules! assert_matches {
    ($value:expr, $pattern:pat $(if $guard:expr)? $(, $($context:tt)+)?) => {{
        let value = $value;
        assert!(matches!(&value, $pattern $(if $guard)?), "{value:?}" );
    }};
}

fn tar() -> TarBuilder {
    TarBuilder::default()
}

fn refused(tar: TarBuilder) -> ConvertError {
    convert(&tar.finish()).unwrap_err()
}

fn fault(tar: TarBuilder) -> TarFault {
    match refused(tar) {
        ConvertError::Tar { fault, .. } => fault,
        other => panic!("{other}"),
    }
}

#[test]
fn an_empty_layer_is_an_empty_root() {
    for tar in [vec![], vec![0; 512], vec![0; 1024], vec![0; 10_240]] {
        let shown = show_layer(&tar);
        assert_eq!(shown.len(), 1);
        assert_eq!(shown[""].found.inode.mode, mode::DIRECTORY | 0o755);
    }
}

#[test]
fn the_same_layer_gives_the_same_bytes() {
    use std::io::Read;
    use std::os::unix::fs::FileExt;
    let bytes = |content: &[u8]| {
        let (_, mut blob) = convert(&tar().directory("d", 0o700).file("d/f", content).finish()).unwrap();
        let mut bytes = vec![0; 4096];
        blob.read_exact_at(&mut bytes, 0).unwrap();
        blob.read_to_end(&mut bytes).unwrap();
        bytes
    };
    assert_eq!(bytes(b"one"), bytes(b"one"));
    assert_ne!(bytes(b"one")[1024 + 48..1024 + 64], bytes(b"two")[1024 + 48..1024 + 64], "UUID");
}

#[test]
fn names_are_relative_to_the_root_of_the_image() {
    let shown = show_layer(&tar().file("/abs", b"1").file("./dot", b"2").file("a//b/./../c", b"3").finish());
    assert_eq!(shown.keys().map(String::as_str).collect::<Vec<_>>(), ["", "a", "a/c", "abs", "dot"]);
}

#[test]
fn names_that_climb_above_the_root_are_refused() {
    for name in ["../x", "/../x", "a/../../x", "..", "./..", "a/b/../../../etc/passwd"] {
        assert_matches!(refused(tar().file(name, b"")), ConvertError::EscapesRoot(entry) if *entry.0 == *name.as_bytes());
        assert_matches!(
            refused(tar().file("f", b"").hard_link("l", name)),
            ConvertError::LinkEscapesRoot { .. },
            "{name}"
        );
        // A symbolic link is only text.
        convert(&tar().symlink("l", name).finish()).unwrap();
    }
    let text = refused(tar().file("../../etc/shadow", b"")).to_string();
    assert!(text.contains("\"../../etc/shadow\""), "{text}");
}

#[test]
fn empty_and_overlong_names_are_refused() {
    assert_matches!(refused(tar().file("", b"")), ConvertError::InvalidName(_));
    let long = "n".repeat(256);
    assert_matches!(refused(tar().file(&long, b"")), ConvertError::Limit { limit: LimitKind::Name(255), .. });
    assert_matches!(
        refused(tar().file(&format!("{long}/x"), b"")),
        ConvertError::Limit { limit: LimitKind::Name(255), .. }
    );
    let deep = "d/".repeat(2049);
    assert_matches!(
        refused(tar().file(&deep, b"")),
        ConvertError::Limit { limit: LimitKind::Path(4096), .. }
    );
    assert_matches!(fault(tar().pax(&[("path", b"a\0b")]).file("x", b"")), TarFault::Pax(_));
    assert_matches!(refused(tar().symlink("l", "")), ConvertError::InvalidLinkTarget(_));
}

#[test]
fn the_root_stays_a_directory() {
    for name in ["/", ".", "./", "a/.."] {
        for flag in *b"0236" {
            // A name with a slash at its end makes a "file" a directory.
            if flag == b'0' && name.ends_with('/') {
                continue;
            }
            assert_matches!(
                refused(tar().entry(name, flag, "target", b"")),
                ConvertError::RootNotDirectory(_),
                "{name} {flag}"
            );
        }
    }
    assert_matches!(refused(tar().file("f", b"").hard_link(".", "f")), ConvertError::RootNotDirectory(_));
    let shown = show_layer(&tar().file("f", b"").directory("./", 0o1700).finish());
    assert_eq!(shown[""].permissions(), 0o1700);
    assert!(shown.contains_key("f"));
}

#[test]
fn the_last_entry_of_a_name_wins() {
    let shown = show_layer(
        &tar()
            .file("a", b"file")
            .directory("a", 0o700)
            .file("a/inside", b"")
            .directory("b", 0o700)
            .file("b/gone", b"")
            .symlink("b", "a")
            .file("c", b"old")
            .file("c", b"new")
            .directory("d", 0o700)
            .file("d/kept", b"")
            .directory("d", 0o711)
            .finish(),
    );
    assert!(shown["a"].is(mode::DIRECTORY) && shown.contains_key("a/inside"));
    assert!(shown["b"].is(mode::SYMLINK) && !shown.contains_key("b/gone"));
    assert_eq!(shown["c"].content, b"new");
    assert_eq!(shown["d"].permissions(), 0o711);
    assert!(shown.contains_key("d/kept"));
}

#[test]
fn links_keep_one_inode_and_survive_the_replacement_of_their_target() {
    let shown = show_layer(
        &tar()
            .file("a", b"data")
            .hard_link("b", "./a")
            .hard_link("/c", "/b")
            .file("a", b"other")
            .symlink("s", "x")
            .hard_link("t", "s")
            .hard_link("b", "b")
            .finish(),
    );
    assert_eq!(shown["b"].found, shown["c"].found);
    assert_eq!((shown["b"].found.inode.links, &*shown["b"].content), (2, &b"data"[..]));
    assert_eq!((shown["a"].found.inode.links, &*shown["a"].content), (1, &b"other"[..]));
    assert_eq!(shown["t"].found, shown["s"].found);
    assert_matches!(
        refused(tar().directory("d", 0o755).hard_link("l", "d")),
        ConvertError::LinkToDirectory { .. }
    );
}

#[test]
fn a_link_to_a_lower_layer_is_kept_for_fusing() {
    let (LayerTree { tree, .. }, _) =
        convert(&tar().symlink("dir", "real").hard_link("a", "dir/../dir/target").finish()).unwrap();
    let id = tree.lookup(InodeId::ROOT, b"a").unwrap();
    assert_eq!(tree.inode(id).kind, Kind::LowerLink((*b"real/target").into()));
}

#[test]
fn parents_that_are_symbolic_links_are_followed_inside_the_image() {
    let shown = show_layer(
        &tar()
            .symlink("lib", "usr/lib")
            .file("lib/one", b"1")
            .symlink("abs", "/usr")
            .file("abs/lib/two", b"2")
            .symlink("up", "../../../..")
            .file("up/three", b"3")
            .finish(),
    );
    assert_eq!(shown["usr/lib/one"].content, b"1");
    assert_eq!(shown["usr/lib/two"].content, b"2");
    assert_eq!(shown["three"].content, b"3");
    assert!(shown["lib"].is(mode::SYMLINK));
    assert_matches!(
        refused(tar().symlink("a", "b").symlink("b", "a").file("a/x", b"")),
        ConvertError::SymlinkLoop(_)
    );
    assert_matches!(refused(tar().file("a", b"").file("a/x", b"")), ConvertError::ParentNotDirectory(_));
}

#[test]
fn depth_counts_where_an_entry_lands() {
    let limits = Limits { depth: 4, ..Limits::default() };
    convert_with(&tar().file("a/b/c/d/e", b"").finish(), &limits).unwrap();
    let deeper = tar().symlink("s", "a/b/c").file("s/d/e/f", b"").finish();
    assert_matches!(
        convert_with(&deeper, &limits).unwrap_err(),
        ConvertError::Limit { limit: LimitKind::Depth(4), .. }
    );
}

#[test]
fn whiteouts_in_a_blob_are_those_of_overlayfs() {
    let shown = show_layer(
        &tar()
            .file("d/.wh.gone", b"")
            .file("o/.wh..wh..opq", b"")
            .file("o/new", b"")
            .file(".wh..wh.plnk/x", b"data")
            .file(".wh..wh.orph", b"data")
            .file("kept", b"1")
            .file(".wh.kept", b"")
            .entry("dev", b'3', "", b"")
            .finish(),
    );
    assert!(shown["d/gone"].is(mode::CHAR) && shown["d/gone"].found.inode.address == 0);
    assert!(shown["dev"].is(mode::CHAR) && shown["dev"].found.inode.address == 0);
    assert_eq!(&*shown["o"].xattrs[0].name, b"trusted.overlay.opaque");
    assert_eq!(&*shown["o"].xattrs[0].value, b"y");
    assert_eq!(shown["kept"].content, b"1");
    assert!(!shown.keys().any(|path| path.contains(".wh.")));
    for name in [".wh.", ".wh..", ".wh...", "a/.wh..", ".wh.a/b"] {
        assert_matches!(refused(tar().file(name, b"")), ConvertError::InvalidWhiteout(_), "{name}");
    }
}

#[test]
fn attributes_are_kept_but_overlayfs_ones_are_not() {
    let records: [(&str, &[u8]); 6] = [
        ("SCHILY.xattr.user.a", b"1\n\0x"),
        ("SCHILY.xattr.security.capability", &[1, 0, 0, 2]),
        ("SCHILY.xattr.system.posix_acl_access", &[2, 0, 0, 0]),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.unknown.thing", b"x"),
        ("LIBARCHIVE.xattr.user.b%20c", b"AQID"),
    ];
    let shown = show_layer(&tar().pax(&records).file("f", b"").finish());
    let names: Vec<_> = shown["f"].xattrs.iter().map(|xattr| xattr.name.escape_ascii().to_string()).collect();
    assert_eq!(names, ["security.capability", "system.posix_acl_access", "user.a", "user.b c"]);
    assert_eq!(&*shown["f"].xattrs[2].value, b"1\n\0x");
    let large = vec![b'x'; 65_000];
    convert(&tar().pax(&[("SCHILY.xattr.user.a", &large)]).file("f", b"").finish()).unwrap();
    assert_matches!(
        refused(
            tar().pax(&[("SCHILY.xattr.user.a", &large), ("SCHILY.xattr.user.b", &large)]).file("f", b"")
        ),
        ConvertError::Limit { limit: LimitKind::Xattrs(_), .. }
    );
}

#[test]
fn numbers_beyond_octal() {
    let mut header = RawHeader::new(b"f", b'0', 0);
    header.put(108, &[0x80, 0, 0, 0, 0x80, 0, 0, 1]).put(136, &[0xff; 12]);
    let shown = show_layer(
        &tar().raw(&header, b"").pax(&[("gid", b"4294967294"), ("uid", b"7")]).file("g", b"").finish(),
    );
    assert_eq!(shown["f"].found.inode.uid, 0x8000_0001);
    assert_eq!(shown["f"].found.inode.mtime.seconds, -1);
    assert_eq!((shown["g"].found.inode.uid, shown["g"].found.inode.gid), (7, 4_294_967_294));
    assert_matches!(fault(tar().pax(&[("uid", b"4294967296")]).file("g", b"")), TarFault::Number("uid"));
}

#[test]
fn limits_name_the_entry() {
    let archive = tar().file("a", &[1; 3000]).file("b", &[2; 3000]).finish();
    let default = Limits::default;
    for (limits, name) in [
        (Limits { file_bytes: 2999, ..default() }, "\"a\""),
        (Limits { data_bytes: 5999, ..default() }, "\"b\""),
        (Limits { entries: 1, ..default() }, "\"b\""),
        (Limits { metadata_bytes: 10, ..default() }, "\"a\""),
    ] {
        let error = convert_with(&archive, &limits).unwrap_err();
        assert!(matches!(error, ConvertError::Limit { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    let stream = Limits { stream_bytes: 4096, ..default() };
    let archive = tar().file("a", &vec![1; 1 << 20]).finish();
    assert_matches!(
        convert_with(&archive, &stream).unwrap_err(),
        ConvertError::Limit { limit: LimitKind::Stream(4096), .. }
    );
    // A sparse bomb: terabytes in one kilobyte.
    let map = [("GNU.sparse.size", &b"99999999999999"[..]), ("GNU.sparse.map", b"0,0")];
    assert_matches!(
        refused(tar().pax(&map).file("bomb", b"")),
        ConvertError::Limit { limit: LimitKind::File(_), .. }
    );
}

#[test]
fn truncated_layers_are_refused_wherever_they_end() {
    let whole = tar().pax(&[("uid", b"1")]).file("a", &[7; 5000]).file("b", b"x").unfinished();
    for end in 1..whole.len() {
        let outcome = convert(&whole[..end]);
        // Between two entries an archive may end; all else is damage.
        let complete = 512 * 2 + 512 + 5120;
        assert_eq!(outcome.is_ok(), end == complete, "cut at {end}");
    }
}

#[test]
fn malformed_headers_are_refused() {
    let mut header = RawHeader::new(b"f", b'0', 0);
    header.put(124, b"0000000000x\0");
    assert_eq!(fault(tar().raw(&header, b"")), TarFault::Number("size"));
    let mut bytes = tar().file("f", b"").finish();
    bytes[0] ^= 1;
    assert_matches!(
        convert(&bytes).unwrap_err(),
        ConvertError::Tar { fault: TarFault::Checksum, offset: 0, .. }
    );
    let mut lone = vec![0; 512];
    lone.extend(tar().file("f", b"").finish());
    assert_matches!(convert(&lone).unwrap_err(), ConvertError::Tar { fault: TarFault::LoneZeroBlock, .. });
    for flag in *b"VMDNX?" {
        assert_eq!(fault(tar().entry("f", flag, "", b"")), TarFault::EntryType(flag));
    }
    assert_eq!(fault(tar().pax(&[("uid", b"1")])), TarFault::Dangling);
}

// What follows are archives that other programs misread.

/// CVE-2025-62518 and CVE-2026-33055: the size of the ustar header must not count once PAX gives another.
#[test]
fn the_pax_size_decides_where_the_next_header_is() {
    let hidden = tar().file("smuggled", b"evil").unfinished();
    let mut outer = RawHeader::new(b"outer", b'0', 0);
    let size = hidden.len().to_string();
    let archive = tar().pax(&[("size", size.as_bytes())]).raw(&outer, &hidden).file("after", b"").finish();
    let shown = show_layer(&archive);
    assert_eq!(shown.keys().map(String::as_str).collect::<Vec<_>>(), ["", "after", "outer"]);
    assert_eq!(shown["outer"].content, hidden);

    outer.put(124, b"00000001000\0");
    let archive = tar().pax(&[("size", b"0")]).raw(&outer, b"").file("after", b"").finish();
    assert_eq!(show_layer(&archive)["after"].content, b"");
}

/// GHSA-3pv8-6f4r-ffg2: a PAX header is for the entry, not for the GNU long name before the entry.
#[test]
fn a_pax_size_does_not_apply_to_a_gnu_long_name() {
    let name = [&[b'n'; 120][..], b"\0"].concat();
    let long = RawHeader::new(b"././@LongLink", b'L', name.len() as u64);
    let archive =
        tar().pax(&[("size", b"5")]).raw(&long, &name).raw(&RawHeader::new(b"n", b'0', 0), b"hello");
    let shown = show_layer(&archive.file("after", b"").finish());
    assert_eq!(shown[&"n".repeat(120)].content, b"hello");
    assert!(shown.contains_key("after"));
}

#[test]
fn contradictory_headers_are_refused() {
    let long = |name: &[u8]| (RawHeader::new(b"././@LongLink", b'L', name.len() as u64), name.to_vec());
    let (header, name) = long(b"one\0");
    assert_eq!(fault(tar().pax(&[("path", b"two")]).raw(&header, &name).file("f", b"")), TarFault::Conflict);
    assert_eq!(fault(tar().raw(&header, &name).raw(&header, &name).file("f", b"")), TarFault::Conflict);
    assert_eq!(fault(tar().pax(&[("uid", b"1")]).pax(&[("uid", b"2")]).file("f", b"")), TarFault::Conflict);
    let global = pax_records(&[("path", b"elsewhere")]);
    let header = RawHeader::new(b"g", b'g', global.len() as u64);
    assert_eq!(fault(tar().raw(&header, &global).file("f", b"")), TarFault::GlobalPax);
}

/// Data behind a link or directory: some programs skip it, some read it as the next header.
#[test]
fn only_files_have_data() {
    for flag in *b"123456" {
        let hidden = tar().file("smuggled", b"").unfinished();
        assert_eq!(fault(tar().entry("f", flag, "x", &hidden)), TarFault::UnexpectedData, "{flag}");
    }
    assert_eq!(fault(tar().file("directory/", b"data")), TarFault::UnexpectedData);
    assert!(show_layer(&tar().file("directory/", b"").finish())["directory"].is(mode::DIRECTORY));
}

/// CVE-2026-33056, CVE-2021-29136 and their like: a link, then an entry through it or in its place.
#[test]
fn a_link_then_a_directory_of_its_name() {
    let shown = show_layer(
        &tar()
            .symlink("a", "/etc")
            .directory("a", 0o777)
            .file("a/passwd", b"x")
            .directory("etc", 0o700)
            .finish(),
    );
    assert!(shown["a"].is(mode::DIRECTORY));
    assert_eq!(shown["etc"].permissions(), 0o700);
    assert_eq!(shown["a/passwd"].content, b"x");
    assert!(!shown.contains_key("etc/passwd"));
}

#[test]
fn malformed_sparse_maps_are_refused() {
    let sparse = |map: &[u8], size: &[u8], content: &[u8]| {
        fault(tar().pax(&[("GNU.sparse.size", size), ("GNU.sparse.map", map)]).file("f", content))
    };
    assert_eq!(sparse(b"0,4,2,4", b"100", b"12345678"), TarFault::Sparse); // overlap
    assert_eq!(sparse(b"4,4,0,4", b"100", b"12345678"), TarFault::Sparse); // order
    assert_eq!(sparse(b"0,4", b"100", b"12345678"), TarFault::Sparse); // data left over
    assert_eq!(sparse(b"0,8", b"4", b"12345678"), TarFault::Sparse); // beyond the end
    assert_eq!(sparse(b"0", b"100", b""), TarFault::Sparse); // half a pair
    assert_eq!(sparse(b"18446744073709551615,8", b"100", b"12345678"), TarFault::Sparse);
    let version =
        [("GNU.sparse.major", &b"1"[..]), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"10")];
    assert_eq!(fault(tar().pax(&version).file("f", b"1\n0\n")), TarFault::Sparse);
    let mut map = b"1\n2\n3\n".to_vec();
    map.resize(512, 0);
    let shown = show_layer(&tar().pax(&version).file("f", &[&map[..], b"abc"].concat()).finish());
    assert_eq!(shown["f"].content, b"\0\0abc\0\0\0\0\0");
}

proptest::proptest! {
    /// Whatever the bytes: an error or a layer, never a panic.
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..3000)) {
        let limits = Limits { file_bytes: 1 << 20, data_bytes: 1 << 20, ..Limits::default() };
        let _ = convert_with(&bytes, &limits);
    }

    /// Archives with flipped bytes and repaired checksums get further.
    #[test]
    fn damaged_archives(
        changes in proptest::collection::vec((0_usize..6000, proptest::prelude::any::<u8>()), 1..12),
    ) {
        let mut bytes = tar()
            .pax(&[("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"1"), ("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"0,4")])
            .file("a", b"1234")
            .hard_link("b", "a")
            .symlink("c", "b")
            .entry("d", b'L', "", b"name\0")
            .file("e/.wh.x", b"")
            .finish();
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        for block in bytes.chunks_exact_mut(512) {
            if block[257..262] == *b"ustar" {
                let mut header = [0; 512];
                header.copy_from_slice(block);
                block.copy_from_slice(&RawHeader(header).bytes());
            }
        }
        let limits = Limits { file_bytes: 1 << 20, data_bytes: 1 << 20, ..Limits::default() };
        if let Ok((_, blob)) = convert_with(&bytes, &limits) {
            super::testing::show(vec![blob]);
        }
    }
}
