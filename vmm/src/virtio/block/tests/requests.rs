//! Requests of every kind, right and wrong, with each engine.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;

for_each_engine! {
    sectors_are_read_and_written_across_extents
    many_small_buffers_make_one_request
    what_is_not_on_the_disk_or_not_in_sectors_fails
    a_read_only_disk_is_never_written_even_with_a_writable_descriptor
    ghsa_jmr4_the_disk_stays_raw_whatever_is_written_to_it
    the_serial_is_padded_with_zeroes
    unknown_and_malformed_requests_are_answered
    features_that_were_not_negotiated_do_not_exist
    a_file_that_becomes_shorter_is_an_error_for_the_guest_only
    cve_2026_45782_a_reset_with_requests_in_the_ring_forgets_them
    the_disk_is_an_array_of_sectors
}

fn sectors_are_read_and_written_across_extents(backend: Backend) {
    let (first, second) = (file_with(&sectors(8)), file_with(&sectors(20)));
    let config = config(DiskAccess::ReadWrite, &[(512, 3 * 512), (4096, 5 * 512), (0, 512)]);
    let block = backend.block(&config, fds(&[&first, &second, &first]));
    let mut driver = Driver::running(Box::new(block), MEMORY);
    let mut expected = sectors(8)[512..2048].to_vec();
    expected.extend_from_slice(&sectors(20)[4096..4096 + 2560]);
    expected.extend_from_slice(&sectors(8)[..512]);
    let answer = request(&mut driver, IN, 0, &[], 9 * 512);
    assert_eq!((answer.status, answer.used), (OK, 9 * 512 + 1));
    assert!(answer.data == expected);

    let answer = request(&mut driver, OUT, 2, &[0xab; 7 * 512], 0);
    assert_eq!((answer.status, answer.used), (OK, 1));
    let mut wanted = sectors(8);
    wanted[..512].fill(0xab);
    wanted[3 * 512..4 * 512].fill(0xab);
    assert!(contents(&first) == wanted);
    let mut wanted = sectors(20);
    wanted[4096..4096 + 2560].fill(0xab);
    assert!(contents(&second) == wanted);
    assert_eq!(request(&mut driver, FLUSH, 0, &[], 0).status, OK);
    assert_eq!(driver.transport.counters().bytes_to_guest, 9 * 512);
    assert_eq!(driver.transport.counters().bytes_from_guest, 7 * 512);
}

fn many_small_buffers_make_one_request(backend: Backend) {
    let file = file_with(&sectors(200));
    let mut driver = backend.disk(DiskAccess::ReadOnly, &file);
    let header = driver.put(&header(IN, 10));
    let to = driver.allocate(512 * 150 + 1);
    let mut chain = vec![readable(header, 7), readable(header + 7, 9)];
    chain.extend((0..150).map(|index| writable(to + 512 * index, 512)));
    // The status is the last byte, in whatever buffer it is.
    chain.last_mut().unwrap().length += 1;
    driver.submit(0, &chain);
    assert_eq!(driver.wait_used(0, 1)[0].1, 512 * 150 + 1);
    assert!(driver.peek(to, 512 * 150) == sectors(200)[5120..5120 + 512 * 150]);
    assert_eq!(driver.peek(to + 512 * 150, 1), [OK]);
}

fn what_is_not_on_the_disk_or_not_in_sectors_fails(backend: Backend) {
    let content = sectors(10);
    let file = file_with(&content);
    let mut driver = backend.disk(DiskAccess::ReadWrite, &file);
    for (sector, length) in
        [(10, 512), (9, 1024), (u64::MAX, 512), (1 << 55, 512), (0, 511), (0, 513), (0, 1)]
    {
        let answer = request(&mut driver, IN, sector, &[], length);
        assert_eq!((answer.status, answer.used), (IOERR, 1), "read {length} at {sector}");
        assert_eq!(answer.data, vec![0; length]);
        assert_eq!(request(&mut driver, OUT, sector, &vec![1; length], 0).status, IOERR);
    }
    assert_eq!(request(&mut driver, IN, 10, &[], 0).status, OK);
    assert!(contents(&file) == content);
}

fn a_read_only_disk_is_never_written_even_with_a_writable_descriptor(backend: Backend) {
    let content = sectors(10);
    let file = file_with(&content);
    let mut driver = backend.disk(DiskAccess::ReadOnly, &file);
    for kind in [OUT, DISCARD, WRITE_ZEROES] {
        let range = [0_u64.to_le_bytes().as_slice(), &10_u32.to_le_bytes(), &0_u32.to_le_bytes()].concat();
        let data = if kind == OUT { vec![1; 512] } else { range };
        let answer = request(&mut driver, kind, 0, &data, 0);
        assert_eq!(answer.status, if kind == OUT { IOERR } else { UNSUPP });
    }
    assert!(contents(&file) == content);
}

/// GHSA-jmr4-g2hv-mjj6: a guest wrote the header of another image format into its disk, and the host believed it.
fn ghsa_jmr4_the_disk_stays_raw_whatever_is_written_to_it(backend: Backend) {
    let magics: [&[u8]; 6] =
        [b"QFI\xfb\0\0\0\x03", b"conectix", b"vhdxfile", b"KDMV", b"<<< QEMU VM", b"QED\0"];
    for magic in magics {
        let file = file_with(&sectors(64));
        let mut first = magic.to_vec();
        first.resize(512, 0);
        let mut driver = backend.disk(DiskAccess::ReadWrite, &file);
        assert_eq!(request(&mut driver, OUT, 0, &first, 0).status, OK);
        drop(driver);
        let mut driver = backend.disk(DiskAccess::ReadWrite, &file);
        let mut capacity = [0; 8];
        driver.transport.read(0x100, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), 64);
        let answer = request(&mut driver, IN, 0, &[], 1024);
        assert!(answer.data[..512] == first && answer.data[512..] == sectors(64)[512..1024]);
    }
}

fn the_serial_is_padded_with_zeroes(backend: Backend) {
    let file = file_with(&sectors(1));
    let mut driver = backend.disk(DiskAccess::ReadOnly, &file);
    let answer = request(&mut driver, GET_ID, 0, &[], 20);
    assert_eq!((answer.status, answer.used), (OK, 21));
    assert_eq!(&answer.data, b"test\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(request(&mut driver, GET_ID, 0, &[], 3).data, b"tes");
    let answer = request(&mut driver, GET_ID, 0, &[], 30);
    assert_eq!((answer.used, &answer.data[20..]), (21, [0; 10].as_slice()));
}

fn unknown_and_malformed_requests_are_answered(backend: Backend) {
    let file = file_with(&sectors(10));
    let mut driver = backend.disk(DiskAccess::ReadWrite, &file);
    for kind in [2, 3, 5, 7, 9, 10, 12, 14, 16, 0x8000_0000, u32::MAX] {
        let answer = request(&mut driver, kind, 0, &[], 512);
        assert_eq!((answer.status, answer.used), (UNSUPP, 1), "{kind}");
    }
    let header = driver.put(&header(IN, 0));
    let to = driver.allocate(513);
    for length in [0, 1, 15] {
        driver.poke(to, &[0xee; 513]);
        driver.submit(0, &[readable(header, length), writable(to, 513)]);
        assert_eq!(driver.used(0)[0].1, 1);
        assert_eq!(driver.peek(to + 512, 1), [IOERR], "a header of {length} bytes");
    }
    // Nowhere to put a status: it comes back untouched.
    let heads = [driver.submit(0, &[readable(header, 16)]), driver.submit(0, &[writable(to, 0)])];
    assert_eq!(driver.used(0), [(heads[0], 0), (heads[1], 0)]);
    assert_eq!(request(&mut driver, IN, 0, &[], 512).data, sectors(1));
}

fn features_that_were_not_negotiated_do_not_exist(backend: Backend) {
    let file = file_with(&sectors(10));
    let mut driver = backend.disk(DiskAccess::ReadWrite, &file);
    driver.start(VERSION_1);
    for kind in [FLUSH, DISCARD, WRITE_ZEROES] {
        assert_eq!(request(&mut driver, kind, 0, &[0; 16], 0).status, UNSUPP);
    }
}

fn a_file_that_becomes_shorter_is_an_error_for_the_guest_only(backend: Backend) {
    let file = file_with(&sectors(10));
    let mut driver = backend.disk(DiskAccess::ReadOnly, &file);
    file.set_len(1000).unwrap();
    assert_eq!(request(&mut driver, IN, 0, &[], 512).status, OK);
    assert_eq!(request(&mut driver, IN, 1, &[], 512).status, IOERR);
    file.set_len(0).unwrap();
    assert_eq!(request(&mut driver, IN, 0, &[], 5120).status, IOERR);
}

/// CVE-2026-45782: a request outlived the reset of its device. Here none is in flight when the reset returns.
fn cve_2026_45782_a_reset_with_requests_in_the_ring_forgets_them(backend: Backend) {
    let file = file_with(&sectors(10));
    let mut driver = backend.disk(DiskAccess::ReadWrite, &file);
    let header = driver.put(&header(OUT, 0));
    driver.add(0, &[readable(header, 16), readable(header, 512), writable(header + 512, 1)]);
    driver.kick(0);
    driver.set(STATUS, 0);
    driver.settle();
    assert!(contents(&file) == sectors(10));
    driver.start(u64::MAX);
    assert_eq!(request(&mut driver, IN, 0, &[], 512).status, OK);
}

#[derive(Clone, Debug)]
struct Operation {
    kind: u32,
    sector: u64,
    pieces: Vec<usize>,
    seed: u8,
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let pieces = prop::collection::vec(prop_oneof![Just(512_usize), Just(1), Just(511), 0..3000_usize], 1..6);
    let operation = (prop_oneof![Just(IN), Just(OUT)], 0..70_u64, pieces, any::<u8>());
    prop::collection::vec(
        operation.prop_map(|(kind, sector, pieces, seed)| Operation { kind, sector, pieces, seed }),
        1..30,
    )
}

/// Any requests over any extents, scattered in any way: the disk is what a plain array would be, and the files outside
/// of the extents are untouched.
fn the_disk_is_an_array_of_sectors(backend: Backend) {
    let layouts = prop::collection::vec((0..4_u64, 1..12_u64), 1..6);
    let mut runner = TestRunner::new(ProptestConfig::with_cases(64));
    let result = runner.run(&(layouts, operations()), |(layout, operations)| {
        let files: Vec<File> = layout.iter().map(|_| file_with(&sectors(20))).collect();
        let extents: Vec<(u64, u64)> =
            layout.iter().map(|(offset, length)| (offset * 512, length * 512)).collect();
        let block =
            backend.block(&config(DiskAccess::ReadWrite, &extents), fds(&files.iter().collect::<Vec<_>>()));
        let mut driver = Driver::running(Box::new(block), MEMORY);
        let range = |(offset, length): &(u64, u64)| {
            usize::try_from(*offset).unwrap()..usize::try_from(offset + length).unwrap()
        };
        let mut model: Vec<u8> =
            extents.iter().flat_map(|extent| sectors(20)[range(extent)].to_vec()).collect();
        for Operation { kind, sector, pieces, seed } in operations {
            let length: usize = pieces.iter().sum();
            let data: Vec<u8> = (0..length).map(|at| u8::try_from(at % 256).unwrap() ^ seed).collect();
            let head = driver.put(&header(kind, sector));
            let buffer = driver.put(&data);
            let status = driver.put(&[0xee]);
            let mut at = buffer;
            let mut chain = vec![readable(head, 16)];
            for piece in &pieces {
                let length = u32::try_from(*piece).unwrap();
                chain.push(if kind == IN { writable(at, length) } else { readable(at, length) });
                at += *piece as u64;
            }
            chain.push(writable(status, 1));
            driver.add(0, &chain);
            driver.notify(0);
            driver.wait_used(0, 1);
            let start = usize::try_from(sector).unwrap() * 512;
            let valid = length.is_multiple_of(512) && start + length <= model.len();
            prop_assert_eq!(driver.peek(status, 1)[0], if valid { OK } else { IOERR });
            if valid && kind == IN {
                prop_assert!(driver.peek(buffer, length) == model[start..start + length]);
            } else if valid {
                model[start..start + length].copy_from_slice(&data);
            }
        }
        let mut at = 0;
        for (file, extent) in files.iter().zip(&extents) {
            let mut expected = sectors(20);
            let range = range(extent);
            let length = range.len();
            expected[range].copy_from_slice(&model[at..at + length]);
            at += length;
            prop_assert!(contents(file) == expected);
        }
        Ok(())
    });
    result.unwrap();
}
