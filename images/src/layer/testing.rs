//! For tests: tar streams byte by byte, and what a disk shows.

use std::collections::BTreeMap;
use std::fs::File;

use super::{ConvertError, Limits, convert_layer};
use crate::erofs::reader::Found;
use crate::erofs::{Disk, LayerTree, Xattr, mode};

/// One 512-byte header; change the fields, then take the bytes.
#[derive(Clone)]
pub(crate) struct RawHeader(pub(crate) [u8; 512]);

impl RawHeader {
    pub(crate) fn new(name: &[u8], flag: u8, size: u64) -> RawHeader {
        let mut header = RawHeader([0; 512]);
        header.put(0, name).put(100, b"0000644\0").put(108, b"0000000\0").put(116, b"0000000\0");
        header.put(124, format!("{size:011o}\0").as_bytes()).put(136, b"00000000000\0");
        header.put(257, b"ustar\x0000").put(329, b"0000000\0").put(337, b"0000000\0");
        header.0[156] = flag;
        header
    }

    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) -> &mut RawHeader {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn bytes(&self) -> [u8; 512] {
        let mut bytes = self.0;
        bytes[148..156].fill(b' ');
        let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes
    }
}

/// A tar stream.
#[derive(Clone, Default)]
pub(crate) struct TarBuilder(Vec<u8>);

impl TarBuilder {
    pub(crate) fn raw(mut self, header: &RawHeader, content: &[u8]) -> TarBuilder {
        self.0.extend_from_slice(&header.bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// An entry of the given type with mode 0644; long names as PAX.
    pub(crate) fn entry(self, name: &str, flag: u8, link: &str, content: &[u8]) -> TarBuilder {
        self.moded(name, flag, 0o644, link, content)
    }

    pub(crate) fn moded(self, name: &str, flag: u8, mode: u16, link: &str, content: &[u8]) -> TarBuilder {
        let mut records = Vec::new();
        if name.len() > 100 {
            records.push(("path", name.as_bytes()));
        }
        if link.len() > 100 {
            records.push(("linkpath", link.as_bytes()));
        }
        let this = if records.is_empty() { self } else { self.pax(&records) };
        let short = |text: &str| text.as_bytes()[..text.len().min(100)].to_vec();
        let mut header = RawHeader::new(&short(name), flag, content.len() as u64);
        header.put(157, &short(link)).put(100, format!("{mode:07o}\0").as_bytes());
        this.raw(&header, content)
    }

    pub(crate) fn file(self, name: &str, content: &[u8]) -> TarBuilder {
        self.entry(name, b'0', "", content)
    }

    pub(crate) fn directory(self, name: &str, mode: u16) -> TarBuilder {
        self.moded(name, b'5', mode, "", b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> TarBuilder {
        self.entry(name, b'2', target, b"")
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> TarBuilder {
        self.entry(name, b'1', target, b"")
    }

    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> TarBuilder {
        let content = pax_records(records);
        self.raw(&RawHeader::new(b"PaxHeader", b'x', content.len() as u64), &content)
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }

    pub(crate) fn unfinished(self) -> Vec<u8> {
        self.0
    }
}

pub(crate) fn pax_records(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in records {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        out.extend_from_slice(format!("{length} {key}=").as_bytes());
        out.extend_from_slice(value);
        out.push(b'\n');
    }
    out
}

/// Converts to a temporary blob.
pub(crate) fn convert(tar: &[u8]) -> Result<(LayerTree, File), ConvertError> {
    convert_with(tar, &Limits::default())
}

pub(crate) fn convert_with(tar: &[u8], limits: &Limits) -> Result<(LayerTree, File), ConvertError> {
    let blob = tempfile::tempfile().unwrap();
    let tree = convert_layer(tar, &blob, limits)?;
    assert_eq!(blob.metadata().unwrap().len(), u64::from(tree.blob_blocks()) * 4096);
    Ok((tree, blob))
}

/// One file of a disk.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shown {
    pub(crate) found: Found,
    /// Of files, and targets of links.
    pub(crate) content: Vec<u8>,
    pub(crate) xattrs: Vec<Xattr>,
}

impl Shown {
    pub(crate) fn permissions(&self) -> u16 {
        self.found.inode.mode & 0o7777
    }

    pub(crate) fn is(&self, file_type: u16) -> bool {
        self.found.file_type() == file_type
    }
}

/// Every path of a disk; the root is the empty path.
pub(crate) fn show(parts: Vec<File>) -> BTreeMap<String, Shown> {
    let disk = Disk::open(parts).unwrap();
    let mut shown = BTreeMap::new();
    let mut pending = vec![(String::new(), disk.root().unwrap())];
    while let Some((path, found)) = pending.pop() {
        let content = match found.file_type() {
            mode::REGULAR | mode::SYMLINK => disk.content(&found, 1 << 30).unwrap(),
            _ => Vec::new(),
        };
        if found.file_type() == mode::DIRECTORY {
            let entries = disk.entries(&found).unwrap();
            assert!(entries.is_sorted_by(|a, b| a.0 < b.0));
            let mut subdirectories = 0;
            for (name, nid) in entries {
                let child = disk.inode(nid).unwrap();
                assert_eq!(disk.lookup(&found, &name).unwrap(), Some(child));
                if matches!(&*name, b"." | b"..") {
                    assert_eq!(child.file_type(), mode::DIRECTORY);
                    continue;
                }
                subdirectories += u32::from(child.file_type() == mode::DIRECTORY);
                let name = String::from_utf8_lossy(&name).into_owned();
                pending.push((if path.is_empty() { name } else { format!("{path}/{name}") }, child));
            }
            assert_eq!(found.inode.links, 2 + subdirectories, "links of {path}");
        }
        let xattrs = disk.xattrs(&found).unwrap();
        shown.insert(path, Shown { found, content, xattrs });
    }
    shown
}

/// Converts and shows one layer.
pub(crate) fn show_layer(tar: &[u8]) -> BTreeMap<String, Shown> {
    show(vec![convert(tar).unwrap().1])
}
