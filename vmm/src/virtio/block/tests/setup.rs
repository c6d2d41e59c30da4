//! What can be a disk, and what the guest is told about it.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

use super::*;

#[test]
fn the_configuration_space_is_the_disks() {
    let file = file_with(&sectors(100));
    let mut driver = Backend::Blocking.disk(DiskAccess::ReadWrite, &file);
    let mut config = [0xff; 64];
    driver.transport.read(0x100, &mut config);
    assert_eq!(u64::from_le_bytes(config[..8].try_into().unwrap()), 100);
    assert_eq!(u32::from_le_bytes(config[12..16].try_into().unwrap()), 254);
    assert_eq!(u32::from_le_bytes(config[20..24].try_into().unwrap()), 512);
    assert_eq!(config[24], 3);
    assert_eq!(config[60..], [0; 4]);
    // Ranges to erase: how long, how many, how aligned; and zeroes may be holes.
    let words: Vec<u32> =
        config[36..60].chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    assert_eq!(words, [1 << 22, 16, 8, 1 << 16, 16, 1]);
    let features = driver.offered();
    assert_eq!(features & (FEATURE_RO | FEATURE_FLUSH | FEATURE_DISCARD), FEATURE_FLUSH | FEATURE_DISCARD);
    let features = Backend::Blocking.disk(DiskAccess::ReadOnly, &file).offered();
    assert_eq!(features & (FEATURE_RO | FEATURE_FLUSH | FEATURE_DISCARD), FEATURE_RO);
}

#[test]
fn a_disk_that_keeps_its_blocks_offers_no_discard() {
    let file = file_with(&sectors(10));
    let config = DiskConfig { discard: DiskDiscard::Off, ..config(DiskAccess::ReadWrite, &[(0, 5120)]) };
    let mut driver = Driver::running(Box::new(Block::new(&config, fds(&[&file])).unwrap()), MEMORY);
    assert_eq!(driver.offered() & (FEATURE_FLUSH | FEATURE_DISCARD | FEATURE_WRITE_ZEROES), FEATURE_FLUSH);
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(request(&mut driver, kind, 0, &[0; 16], 0).status, UNSUPP);
    }
}

#[test]
fn what_cannot_be_a_disk_is_refused() {
    let file = file_with(&sectors(10));
    let error = |config: &DiskConfig, files: Vec<OwnedFd>| match Block::new(config, files) {
        Err(BlockError::Extent { source, .. }) => source.to_string(),
        Err(error) => error.to_string(),
        Ok(_) => panic!("{config:?} is a disk"),
    };
    let reject = |access, offset, length, word: &str| {
        let text = error(&config(access, &[(offset, length)]), fds(&[&file]));
        assert!(text.contains(word), "{text}");
    };
    use DiskAccess::{ReadOnly, ReadWrite};
    for (offset, length) in [(0, 0), (1, 512), (0, 511), (256, 512)] {
        reject(ReadOnly, offset, length, "sectors");
    }
    for (offset, length) in [(0, 11 * 512), (5120, 512), (512, 5120), (1 << 40, 512)] {
        reject(ReadOnly, offset, length, "ends at");
    }
    for (offset, length) in [(u64::MAX - 511, 512), (u64::MAX - 511, 1024), (1 << 63, 512), (0, 1 << 63)] {
        reject(ReadOnly, offset, length, "too large");
    }
    let one = config(ReadOnly, &[(0, 512)]);
    assert!(error(&one, vec![]).contains("0 file descriptors"));
    assert!(error(&config(ReadOnly, &[]), vec![]).contains("without extents"));
    let long = "x".repeat(21);
    for serial in ["", "a\n", "ä", long.as_str()] {
        assert!(
            error(&DiskConfig { serial: serial.into(), ..one.clone() }, fds(&[&file])).contains("serial")
        );
    }

    let read_only = reopen(&file, OpenOptions::new().read(true));
    let read_write = config(ReadWrite, &[(0, 512)]);
    assert!(error(&read_write, fds(&[&read_only])).contains("read-only"));
    assert!(Block::new(&one, fds(&[&read_only])).is_ok());
    let write_only = reopen(&file, OpenOptions::new().write(true));
    assert!(error(&one, fds(&[&write_only])).contains("cannot be read"));
    let append = reopen(&file, OpenOptions::new().read(true).append(true));
    assert!(error(&read_write, fds(&[&append])).contains("appending"));
    let path = reopen(&file, OpenOptions::new().read(true).custom_flags(libc::O_PATH));
    assert!(error(&one, fds(&[&path])).contains("O_PATH"));
    let (pipe, _writer) = io::pipe().unwrap();
    assert!(error(&one, vec![pipe.into()]).contains("regular file"));
    assert!(error(&one, vec![File::open("/").unwrap().into()]).contains("regular file"));
    assert!(error(&one, vec![File::open("/dev/zero").unwrap().into()]).contains("regular file"));
}

/// Cloud Hypervisor GHSA-jmr4-g2hv-mjj6: a guest wrote the header of another format to its disk, and the next boot read
/// files of the host that the header named.
#[test]
fn ghsa_jmr4_a_disk_stays_raw_whatever_the_guest_writes_to_its_first_sector() {
    let qcow2 =
        [b"QFI\xfb\0\0\0\x03".as_slice(), &[0, 0, 0, 0, 0, 0, 0, 24, 0, 0, 0, 11], b"/etc/passwd"].concat();
    for magic in [
        qcow2.as_slice(),
        b"KDMV\x01",
        b"conectix",
        b"vhdxfile",
        b"\x7fVDI",
        b"<<< QEMU VM Virtual Disk Image >>>",
    ] {
        let file = file_with(&sectors(8));
        let mut written = magic.to_vec();
        written.resize(512, 0);
        let mut driver = Backend::Blocking.disk(DiskAccess::ReadWrite, &file);
        assert_eq!(request(&mut driver, 1, 0, &written, 0).status, 0);
        drop(driver);
        // Another monitor, another boot.
        let mut driver = Backend::Blocking.disk(DiskAccess::ReadWrite, &file);
        let mut capacity = [0; 8];
        driver.transport.read(0x100, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), 8);
        let all = request(&mut driver, 0, 0, &[], 8 * 512).data;
        assert_eq!(all[..512], written);
        assert_eq!(all[512..], sectors(8)[512..]);
    }
}
