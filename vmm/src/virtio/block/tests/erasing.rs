//! Discard and write zeroes.

use std::os::unix::fs::MetadataExt;

use super::*;

for_each_engine! {
    ranges_are_discarded_and_zeroed
    a_request_names_several_ranges_in_several_files
    nothing_is_erased_if_one_range_is_wrong
    discarded_blocks_go_back_to_the_host
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [sector.to_le_bytes().as_slice(), &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

fn ranges_are_discarded_and_zeroed(backend: Backend) {
    let file = file_with(&sectors(64));
    let mut driver = backend.disk(DiskAccess::ReadWrite, &file);
    let mut expected = sectors(64);
    for (sector, count) in [(8, 8), (3, 1), (62, 2), (5, 0)] {
        assert_eq!(request(&mut driver, WRITE_ZEROES, 0, &range(sector, count, 1), 0).status, OK);
        let sector = usize::try_from(sector).unwrap();
        expected[sector * 512..(sector + usize::try_from(count).unwrap()) * 512].fill(0);
        assert!(contents(&file) == expected);
    }
    assert_eq!(request(&mut driver, WRITE_ZEROES, 0, &range(16, 8, 0), 0).status, OK);
    expected[16 * 512..24 * 512].fill(0);
    assert_eq!(request(&mut driver, DISCARD, 0, &range(24, 8, 0), 0).status, OK);
    expected[24 * 512..32 * 512].fill(0);
    assert!(contents(&file) == expected);

    for (sector, count) in [(64, 1), (63, 2), (u64::MAX, 1), (1 << 55, 1), (0, u32::MAX)] {
        for kind in [DISCARD, WRITE_ZEROES] {
            assert_eq!(request(&mut driver, kind, 0, &range(sector, count, 0), 0).status, IOERR);
        }
    }
    assert_eq!(request(&mut driver, DISCARD, 0, &range(0, 1, 1), 0).status, UNSUPP);
    assert_eq!(request(&mut driver, WRITE_ZEROES, 0, &range(0, 1, 2), 0).status, UNSUPP);
    for length in [0, 15, 17, 17 * 16] {
        assert_eq!(request(&mut driver, DISCARD, 0, &vec![0; length], 0).status, IOERR);
    }
    assert!(contents(&file) == expected);
    assert_eq!(file.metadata().unwrap().len(), 64 * 512);
}

fn a_request_names_several_ranges_in_several_files(backend: Backend) {
    let files = [file_with(&sectors(32)), file_with(&sectors(32)), file_with(&sectors(32))];
    let config = config(DiskAccess::ReadWrite, &[(512, 8 * 512), (0, 16 * 512), (4096, 8 * 512)]);
    let mut driver = Driver::running(Box::new(backend.block(&config, fds(&files.each_ref()))), MEMORY);
    let mut model = [&sectors(32)[512..4608], &sectors(32)[..8192], &sectors(32)[4096..8192]].concat();
    // Within a file, over all three, and twice the same.
    let ranges = [(2, 3), (6, 22), (30, 1), (30, 1)];
    let payload: Vec<u8> = ranges.iter().flat_map(|(sector, count)| range(*sector, *count, 0)).collect();
    for (sector, count) in ranges {
        let start = usize::try_from(sector * 512).unwrap();
        model[start..start + usize::try_from(count * 512).unwrap()].fill(0);
    }
    assert_eq!(request(&mut driver, WRITE_ZEROES, 0, &payload, 0).status, OK);
    assert!(request(&mut driver, IN, 0, &[], 32 * 512).data == model);
    // Nothing beside the extents.
    assert!(
        contents(&files[0])[..512] == sectors(32)[..512]
            && contents(&files[0])[4608..] == sectors(32)[4608..]
    );
    assert!(
        contents(&files[2])[..4096] == sectors(32)[..4096]
            && contents(&files[2])[8192..] == sectors(32)[8192..]
    );
}

fn nothing_is_erased_if_one_range_is_wrong(backend: Backend) {
    let file = file_with(&sectors(64));
    let mut driver = backend.disk(DiskAccess::ReadWrite, &file);
    for (wrong, status) in
        [(range(64, 1, 0), IOERR), (range(0, u32::MAX, 0), IOERR), (range(0, 1, 4), UNSUPP)]
    {
        let payload = [range(0, 8, 0), wrong].concat();
        for kind in [DISCARD, WRITE_ZEROES] {
            assert_eq!(request(&mut driver, kind, 0, &payload, 0).status, status);
        }
    }
    assert!(contents(&file) == sectors(64));
}

fn discarded_blocks_go_back_to_the_host(backend: Backend) {
    let file = file_with(&sectors(2048));
    file.sync_all().unwrap();
    let before = file.metadata().unwrap().blocks();
    let mut driver = backend.disk(DiskAccess::ReadWrite, &file);
    assert_eq!(request(&mut driver, DISCARD, 0, &range(0, 2048, 0), 0).status, OK);
    let after = file.metadata().unwrap().blocks();
    assert!(before >= 2048 && after <= 64, "{before} blocks became {after}");
    assert_eq!(file.metadata().unwrap().len(), 2048 * 512);
}
