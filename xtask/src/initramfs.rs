//! The guest's initramfs: the agent as `/init`, a console to speak on, and nothing else.
//!
//! Written in the "newc" format that the kernel reads (Documentation/driver-api/early-userspace/buffer-format.rst),
//! uncompressed: unpacking would cost more at boot than reading a few megabytes.

use std::fs;
use std::path::Path;

use crate::shell::{Error, at};

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Packs `agent` into `output`. The same agent gives the same bytes.
pub fn write(agent: &Path, output: &Path) -> Result<(), Error> {
    let agent = at(agent, fs::read(agent))?;
    let mut archive = Vec::with_capacity(agent.len() + 4096);
    entry(&mut archive, 1, "dev", DIRECTORY | 0o755, (0, 0), &[])?;
    entry(&mut archive, 2, "dev/console", CHARACTER_DEVICE | 0o600, (5, 1), &[])?;
    entry(&mut archive, 3, "init", REGULAR | 0o755, (0, 0), &agent)?;
    entry(&mut archive, 0, "TRAILER!!!", 0, (0, 0), &[])?;
    if let Some(parent) = output.parent() {
        at(parent, fs::create_dir_all(parent))?;
    }
    // A guest may be booting from the old file: replace it, never rewrite it.
    let fresh = output.with_extension("new");
    at(&fresh, fs::write(&fresh, &archive))?;
    at(output, fs::rename(&fresh, output))
}

fn entry(
    archive: &mut Vec<u8>,
    inode: u32,
    name: &str,
    mode: u32,
    (major, minor): (u32, u32),
    data: &[u8],
) -> Result<(), Error> {
    let size = |length: usize| {
        u32::try_from(length).map_err(|_| Error::Other(format!("{name} is too large for an initramfs")))
    };
    let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
    // inode mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    let fields =
        [inode, mode, 0, 0, links, 0, size(data.len())?, 0, 0, major, minor, size(name.len() + 1)?, 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(data);
    pad(archive);
    Ok(())
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_holds_the_agent_and_a_console() {
        let folder = tempfile::tempdir().unwrap();
        let (agent, output) = (folder.path().join("agent"), folder.path().join("out/initramfs.img"));
        fs::write(&agent, b"ELF").unwrap();
        write(&agent, &output).unwrap();
        let archive = fs::read(&output).unwrap();
        assert_eq!(archive.len() % 4, 0);
        let mut names = Vec::new();
        let mut at = 0;
        let hex = |at: usize| {
            usize::from_str_radix(std::str::from_utf8(&archive[at..at + 8]).unwrap(), 16).unwrap()
        };
        while at < archive.len() {
            assert_eq!(&archive[at..at + 6], b"070701");
            let (size, name_size) = (hex(at + 6 + 6 * 8), hex(at + 6 + 11 * 8));
            let name = &archive[at + 110..at + 110 + name_size - 1];
            names.push(String::from_utf8(name.to_vec()).unwrap());
            let data = (at + 110 + name_size).next_multiple_of(4);
            if name == b"init" {
                assert_eq!(&archive[data..data + size], b"ELF");
            }
            at = (data + size).next_multiple_of(4);
        }
        assert_eq!(names, ["dev", "dev/console", "init", "TRAILER!!!"]);
    }
}
