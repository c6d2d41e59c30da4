use std::fs::{File, OpenOptions};

use super::*;
use crate::virtio::testing::*;

const MEMORY: usize = 0x10_0000;
const START: u64 = 5 << 30;

fn config(access: DiskAccess, length: u64) -> PmemConfig {
    PmemConfig { name: "data".into(), length, access }
}

fn file(length: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(length).unwrap();
    file
}

fn pmem(access: DiskAccess, file: &File) -> (Driver, FileRegion) {
    let length = file.metadata().unwrap().len();
    let (device, region) =
        Pmem::new(&config(access, length), file.try_clone().unwrap().into(), START).unwrap();
    (Driver::running(Box::new(device), MEMORY), region)
}

/// Sends a request of these bytes; answers what came back.
fn request(driver: &mut Driver, request: &[u8], room: u32) -> (u32, Vec<u8>) {
    let from = driver.put(request);
    let to = driver.put(&[0xee; 8]);
    driver.add(0, &[readable(from, u32::try_from(request.len()).unwrap()), writable(to, room)]);
    driver.notify(0);
    let used = driver.wait_used(0, 1);
    (used[0].1, driver.peek(to, 8))
}

#[test]
fn the_guest_is_told_where_the_file_is() {
    let (mut driver, region) = pmem(DiskAccess::ReadOnly, &file(4096));
    let mut space = [0xff; 20];
    driver.transport.read(0x100, &mut space);
    assert_eq!(space[..8], START.to_le_bytes());
    assert_eq!(space[8..16], (2_u64 << 20).to_le_bytes());
    assert_eq!(space[16..], [0; 4]);
    assert_eq!((region.start, region.mapping.length()), (START, 2 << 20));
}

#[test]
fn a_flush_is_answered() {
    for access in [DiskAccess::ReadOnly, DiskAccess::ReadWrite] {
        let (mut driver, _region) = pmem(access, &file(2 << 20));
        assert_eq!(request(&mut driver, &[0; 4], 4), (4, [[0; 4], [0xee; 4]].concat()));
        assert_eq!(request(&mut driver, &[0; 8], 8), (4, [[0; 4], [0xee; 4]].concat()));
        // Unknown, too short, and no room for an answer.
        assert_eq!(request(&mut driver, &[1, 0, 0, 0], 4), (4, [[0xff; 4], [0xee; 4]].concat()));
        assert_eq!(request(&mut driver, &[0; 3], 4), (0, vec![0xee; 8]));
        assert_eq!(request(&mut driver, &[0; 4], 3), (0, vec![0xee; 8]));
        assert_eq!(request(&mut driver, &[0; 4], 4).0, 4);
        assert_eq!(driver.transport.counters().host_errors, 0);
    }
}

#[test]
fn a_flush_that_the_host_fails_is_no_success() {
    let (mut device, _region) = {
        let config = config(DiskAccess::ReadWrite, 2 << 20);
        Pmem::new(&config, file(2 << 20).into(), START).unwrap()
    };
    // A pipe cannot be synced.
    let (_reader, writer) = io::pipe().unwrap();
    let extents = Arc::new(Extents::of_anything(vec![(writer.into(), 512)]));
    device.syncs = InFlight::new(engine::best(&extents));
    let mut driver = Driver::running(Box::new(device), MEMORY);
    assert_eq!(request(&mut driver, &[0; 4], 4), (4, [[0xff; 4], [0xee; 4]].concat()));
    assert_eq!(driver.transport.counters().host_errors, 1);
    assert_eq!(driver.get(STATUS), RUNNING);
}

#[test]
fn many_flushes_are_bounded_and_all_answered() {
    let (mut driver, _region) = pmem(DiskAccess::ReadWrite, &file(2 << 20));
    let from = driver.put(&[0; 4]);
    let mut wanted = Vec::new();
    for _ in 0..3 {
        for _ in 0..32 {
            let to = driver.allocate(4);
            wanted.push(driver.add(0, &[readable(from, 4), writable(to, 4)]));
        }
        driver.kick(0);
        assert_eq!(driver.wait_used(0, 32).len(), 32);
    }
    driver.start(u64::MAX);
    assert_eq!(request(&mut driver, &[0; 4], 4).0, 4);
}

/// What the guest sees through the mapping, read as the host's kernel would.
fn seen(region: &FileRegion, offset: u64, length: usize) -> Vec<u8> {
    let address = (region.mapping.address() + offset) as *const u8;
    // SAFETY: the range is mapped and nobody writes to it meanwhile.
    (0..length).map(|at| unsafe { address.add(at).read_volatile() }).collect()
}

#[test]
fn the_mapping_is_the_file_and_zeroes_behind_it() {
    let file = file(5000 * 512);
    std::os::unix::fs::FileExt::write_all_at(&file, &[7; 1024], 4999 * 512 - 512).unwrap();
    let (_driver, region) = pmem(DiskAccess::ReadOnly, &file);
    assert_eq!(region.mapping.length(), 4 << 20);
    assert_eq!(seen(&region, 4999 * 512 - 512, 1024), [7; 1024]);
    assert_eq!(seen(&region, 5000 * 512, 512), [0; 512]);
    assert_eq!(seen(&region, (4 << 20) - 512, 512), [0; 512]);
    // It is shared: what the host writes is there.
    std::os::unix::fs::FileExt::write_all_at(&file, b"new", 0).unwrap();
    assert_eq!(seen(&region, 0, 3), b"new");
}

/// What the kernel says about the mapping's pages.
#[test]
fn a_read_only_file_is_mapped_read_only() {
    for (access, flags) in [(DiskAccess::ReadOnly, "r--s"), (DiskAccess::ReadWrite, "rw-s")] {
        let (_driver, region) = pmem(access, &file(2 << 20));
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let start = format!("{:x}-", region.mapping.address());
        let line = maps.lines().find(|line| line.starts_with(&start)).unwrap();
        assert_eq!(line.split(' ').nth(1), Some(flags));
    }
}

#[test]
fn what_cannot_be_memory_is_refused() {
    let good = file(2 << 20);
    let error = |config: &PmemConfig, file: &File| {
        let error = Pmem::new(config, file.try_clone().unwrap().into(), START).unwrap_err();
        crate::error::chain(&error).to_string()
    };
    use DiskAccess::{ReadOnly, ReadWrite};
    for name in ["", "a/b", "ä", "012345678901234567890"] {
        let config = PmemConfig { name: name.into(), ..config(ReadOnly, 4096) };
        assert!(error(&config, &good).contains("letters"));
    }
    for length in [0, 511, (2 << 20) + 512, u64::MAX, u64::MAX - 511] {
        error(&config(ReadOnly, length), &good);
    }
    assert!(error(&config(ReadWrite, 4096), &good).contains("multiple of 2 MiB"));
    let read_only = reopen(&good, OpenOptions::new().read(true));
    assert!(error(&config(ReadWrite, 2 << 20), &read_only).contains("read-only"));
    assert!(error(&config(ReadOnly, 512), &File::open("/dev/zero").unwrap()).contains("regular file"));
}
