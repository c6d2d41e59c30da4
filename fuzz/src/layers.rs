//! Layers of images: their tar streams, the trees that are kept of them, and the disks that are read again.

use std::fs::File;
use std::os::unix::fs::FileExt;

use hull_images::erofs::{Disk, LayerTree, fuse_index};
use hull_images::layer::{Limits, convert_layer};

use crate::Body;
use crate::devices::file;

/// Tight enough to be reached.
fn limits() -> Limits {
    Limits {
        stream_bytes: 1 << 20,
        data_bytes: 1 << 20,
        file_bytes: 1 << 19,
        entries: 100,
        metadata_bytes: 1 << 16,
        depth: 16,
        path_bytes: 512,
        xattr_bytes: 1024,
        sparse_segments: 16,
    }
}

const PATHS: [&str; 4] = ["etc/passwd", "a", "link", "deep/er/../er/file"];

fn read_all(disk: &Disk) {
    for path in PATHS {
        if let Ok(Some(content)) = disk.read_file(path, 4096) {
            assert!(content.len() <= 4096);
        }
    }
}

/// A tar stream to a blob, and everything that is made of it.
pub fn tar() -> Body {
    Box::new(|input| {
        let blob = file(0);
        let Ok(tree) = convert_layer(input, &blob, &limits()) else { return };
        let mut kept = Vec::new();
        tree.write_to(&mut kept).unwrap();
        let again = LayerTree::read_from(&mut kept.as_slice()).unwrap();
        assert_eq!(again.blob_blocks(), tree.blob_blocks());
        let index = file(0);
        let trees = [tree, again];
        if fuse_index(&trees, &index).is_ok() {
            // The same blob twice, as two layers of an image may be.
            let disk = Disk::open(vec![index, blob.try_clone().unwrap(), blob.try_clone().unwrap()]).unwrap();
            read_all(&disk);
        }
        read_all(&Disk::open(vec![blob]).unwrap());
    })
}

/// A tree as it lies in the store, which may be damaged.
pub fn sidecar() -> Body {
    Box::new(|input| {
        let Ok(tree) = LayerTree::read_from(&mut &*input) else { return };
        let mut kept = Vec::new();
        tree.write_to(&mut kept).unwrap();
        let index = file(0);
        if fuse_index(&[tree], &index).is_ok() {
            read_all(&Disk::open(vec![index]).unwrap());
        }
    })
}

/// A disk that may be damaged: the first 1,024 bytes of a blob hold nothing, so an input begins behind them.
pub fn erofs() -> Body {
    Box::new(|input| {
        let disk: File = file(0);
        disk.write_all_at(input, 1024).unwrap();
        disk.set_len((1024 + input.len() as u64).next_multiple_of(4096)).unwrap();
        if let Ok(disk) = Disk::open(vec![disk]) {
            read_all(&disk);
        }
    })
}
