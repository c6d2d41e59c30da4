//! The sidecar and the reader against damage, and layers against a simple model of what stacking them means.

mod model;

use std::fs::File;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::format::{self, DiskInode};
use super::{Device, Disk, LayerTree, ReadError, SidecarError, fuse_index, mode};
use crate::layer::testing::{TarBuilder, convert, show};

fn tar() -> TarBuilder {
    TarBuilder::default()
}

/// Some of everything that a tree can hold.
fn rich_layer() -> Vec<u8> {
    tar()
        .pax(&[("mtime", b"-1.25"), ("SCHILY.xattr.user.a", b"1"), ("SCHILY.xattr.security.b", b"")])
        .directory("d", 0o1755)
        .file("d/f", &[7; 5000])
        .hard_link("d/g", "d/f")
        .file("empty", b"")
        .symlink("s", "d/f")
        .entry("fifo", b'6', "", b"")
        .entry("block", b'4', "", b"")
        .file(".wh.gone", b"")
        .file("o/.wh..wh..opq", b"")
        .hard_link("below", "lower/file")
        .finish()
}

fn sidecar(tree: &LayerTree) -> Vec<u8> {
    let mut bytes = Vec::new();
    tree.write_to(&mut bytes).unwrap();
    bytes
}

fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    let body = bytes.len() - 4;
    let checksum = crc32c::crc32c(&bytes[..body]);
    bytes[body..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Fuses, and shows `[index | blobs]`.
fn show_fused(
    layers: Vec<(LayerTree, File)>,
) -> std::collections::BTreeMap<String, crate::layer::testing::Shown> {
    let index = tempfile::tempfile().unwrap();
    let (trees, blobs): (Vec<_>, Vec<_>) = layers.into_iter().unzip();
    let fused = fuse_index(&trees, &index).unwrap();
    assert_eq!(index.metadata().unwrap().len(), u64::from(fused.index_blocks) * 4096);
    show(std::iter::once(index).chain(blobs).collect())
}

#[test]
fn a_sidecar_round_trips() {
    let (tree, _) = convert(&rich_layer()).unwrap();
    let read = LayerTree::read_from(&mut &sidecar(&tree)[..]).unwrap();
    assert_eq!(sidecar(&read), sidecar(&tree));
    assert_eq!(read.blob_blocks(), tree.blob_blocks());
    // The index made from it is the same, byte for byte.
    let index = |tree: LayerTree| {
        let (lower, _) = convert(&tar().file("lower/file", b"x").finish()).unwrap();
        let file = tempfile::tempfile().unwrap();
        let fused = fuse_index(&[lower, tree], &file).unwrap();
        let mut bytes = vec![0; fused.index_blocks as usize * 4096];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert_eq!(index(read), index(tree));
}

#[test]
fn a_damaged_or_foreign_sidecar_is_refused() {
    let (tree, _) = convert(&rich_layer()).unwrap();
    let good = sidecar(&tree);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        assert!(LayerTree::read_from(&mut &bad[..]).is_err(), "byte {at}");
        assert!(LayerTree::read_from(&mut &good[..at]).is_err(), "cut at {at}");
    }
    let mut other = good;
    other[7] = 200;
    assert!(matches!(LayerTree::read_from(&mut &other[..]), Err(SidecarError::Version)));
}

proptest! {
    /// With a valid checksum, whatever is accepted is consistent: it can be written and fused.
    #[test]
    fn a_forged_sidecar_is_refused_or_consistent(
        changes in prop::collection::vec((8_usize..400, any::<u8>()), 1..6),
    ) {
        let (tree, _) = convert(&rich_layer()).unwrap();
        let mut bytes = sidecar(&tree);
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if let Ok(tree) = LayerTree::read_from(&mut &with_checksum(bytes)[..]) {
            prop_assert_eq!(&LayerTree::read_from(&mut &sidecar(&tree)[..]).unwrap(), &tree);
            // A link into a lower layer that does not exist is an error; nothing panics.
            let _ = fuse_index(&[tree], &tempfile::tempfile().unwrap());
        }
    }

    #[test]
    fn a_damaged_disk_is_an_error_and_never_a_panic(
        changes in prop::collection::vec((1024_usize..16_384, any::<u8>()), 1..8),
    ) {
        let (_, blob) = convert(&rich_layer()).unwrap();
        let length = blob.metadata().unwrap().len();
        for (at, value) in changes {
            if (at as u64) < length {
                blob.write_all_at(&[value], at as u64).unwrap();
            }
        }
        // The checksum covers the first block; repair it to get further.
        let mut block = [0; 4096];
        blob.read_exact_at(&mut block, 0).unwrap();
        block[1028..1032].fill(0);
        let checksum = !crc32c::crc32c(&block[1024..]);
        blob.write_all_at(&checksum.to_le_bytes(), 1028).unwrap();
        if let Ok(disk) = Disk::open(vec![blob]) {
            for path in ["d/f", "s", "empty", "fifo", "d/../s", "o/x"] {
                let _ = disk.read_file(path, 1 << 20);
            }
            if let Ok(root) = disk.root() {
                let _ = (disk.entries(&root), disk.xattrs(&root));
            }
        }
    }

    #[test]
    fn inodes_round_trip(
        (mode, links, size, address, uid, gid) in any::<(u16, u32, u64, u32, u32, u32)>(),
        (seconds, nanoseconds) in (any::<i64>(), 0_u32..1_000_000_000),
        (extended, inline, xattrs) in (any::<bool>(), any::<bool>(), 0_usize..60_000),
    ) {
        let build_time = super::Time { seconds, nanoseconds };
        let layout = if inline { format::Layout::Inline } else { format::Layout::Plain };
        let xattr_bytes = if xattrs == 0 { 0 } else { 12 + xattrs * 4 };
        let mut inode =
            DiskInode { extended, layout, mode, links, size, address, number: 1, uid, gid, mtime: build_time, xattr_bytes };
        if !extended {
            (inode.links, inode.uid, inode.gid) = (links & 0xffff, uid & 0xffff, gid & 0xffff);
            inode.size = size & 0xffff_ffff;
        }
        let mut bytes = Vec::new();
        inode.encode(&mut bytes);
        prop_assert_eq!(bytes.len(), inode.encoded_size());
        bytes.resize(64, 0);
        prop_assert_eq!(DiskInode::decode(bytes.as_slice().try_into().unwrap(), build_time), Some(inode));
    }

    #[test]
    fn device_numbers_round_trip(major in 0_u32..4096, minor in 0_u32..(1 << 20)) {
        let device = Device { major, minor };
        prop_assert_eq!(format::decode_device(format::encode_device(device)), device);
    }
}

#[test]
fn files_are_found_through_links_and_bounded() {
    let (tree, blob) = convert(
        &tar()
            .file("etc/passwd", b"root:x:0:0\n")
            .symlink("abs", "/etc")
            .symlink("up", "../../../etc/passwd")
            .symlink("loop", "loop")
            .symlink("dangling", "nowhere")
            .directory("d", 0o755)
            .finish(),
    )
    .unwrap();
    let index = tempfile::tempfile().unwrap();
    fuse_index(&[tree], &index).unwrap();
    let disk = Disk::open(vec![index, blob]).unwrap();
    for path in ["etc/passwd", "/etc/passwd", "/abs/passwd", "up", "//d/../abs/./passwd", "../etc/passwd"] {
        assert_eq!(disk.read_file(path, 100).unwrap().as_deref(), Some(&b"root:x:0:0\n"[..]), "{path}");
    }
    for path in ["etc/group", "dangling", "etc/passwd/x", "no/such"] {
        assert_eq!(disk.read_file(path, 100).unwrap(), None, "{path}");
    }
    assert!(matches!(disk.read_file("loop", 100), Err(ReadError::SymlinkLoop)));
    assert!(matches!(disk.read_file("d", 100), Err(ReadError::NotRegular)));
    assert!(matches!(disk.read_file("up", 5), Err(ReadError::TooLarge { size: 11, limit: 5 })));
}

#[test]
fn hard_links_reach_into_lower_layers() {
    let layers = [
        tar().file("a", b"old").symlink("dir", "real").file("real/t", b"t").hard_link("a2", "a").finish(),
        // The link is to what was there before this layer.
        tar().hard_link("b", "a").file("a", b"new").hard_link("c", "/dir/t").hard_link("d", "c").finish(),
    ];
    let shown = show_fused(layers.iter().map(|layer| convert(layer).unwrap()).collect());
    assert_eq!(&*shown["b"].content, b"old");
    assert_eq!(shown["b"].found, shown["a2"].found);
    assert_eq!(shown["b"].found.inode.links, 2);
    assert_eq!(&*shown["a"].content, b"new");
    assert_eq!((shown["c"].found, shown["d"].found), (shown["real/t"].found, shown["real/t"].found));
    assert_eq!(shown["c"].found.inode.links, 3);

    let (tree, _) = convert(&tar().hard_link("x", "not/there").finish()).unwrap();
    let error = fuse_index(&[tree], &tempfile::tempfile().unwrap()).unwrap_err();
    assert!(error.to_string().contains("\"not/there\""), "{error}");
}

#[test]
fn an_image_without_layers_is_an_empty_root() {
    let shown = show_fused(Vec::new());
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[""].found.inode.mode, mode::DIRECTORY | 0o755);
}
