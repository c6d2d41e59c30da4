//! A guest kernel that is not one: any bytes, in any order, with any lengths.

use libc::O_RDWR;
use proptest::prelude::*;

use super::client::*;
use crate::virtio::testing::*;

#[test]
fn names_that_are_paths_are_refused() {
    let mut client = Client::new();
    let rw = client.rw();
    std::fs::create_dir(client.host("d")).unwrap();
    let long = "n".repeat(256);
    for (name, errno) in [
        ("", libc::EINVAL),
        (".", libc::EINVAL),
        ("..", libc::EINVAL),
        ("/", libc::EINVAL),
        ("/etc/passwd", libc::EINVAL),
        ("d/..", libc::EINVAL),
        ("../x", libc::EINVAL),
        (&long, libc::ENAMETOOLONG),
    ] {
        assert_eq!(client.lookup(rw, name), Err(errno), "{name}");
        assert_eq!(client.lookup(ROOT, name), Err(errno), "{name}");
        assert_eq!(client.create(rw, name, O_RDWR, 0o644), Err(errno), "{name}");
        assert_eq!(client.mkdir(rw, name, 0o755), Err(errno), "{name}");
        assert_eq!(client.entry(6, rw, body().text(name).text("t")), Err(errno), "{name}");
        assert_eq!(client.unlink(rw, name), Err(errno), "{name}");
        assert_eq!(client.call(11, rw, body().text(name), 0), Err(errno), "{name}");
        assert_eq!(client.rename((rw, "d"), (rw, name), 0), Err(errno), "{name}");
        assert_eq!(client.rename((rw, name), (rw, "e"), 0), Err(errno), "{name}");
        assert_eq!(client.entry(13, rw, body().u64(rw).text(name)), Err(errno), "{name}");
    }
    // Without a NUL there is no name.
    assert_eq!(client.call(1, rw, body().bytes(b"d"), 128), Err(libc::EINVAL));
}

#[test]
fn forgetting_too_much_frees_only_ones_own() {
    let mut client = Client::new();
    let rw = client.rw();
    let (a, ..) = client.create(rw, "a", O_RDWR, 0o644).unwrap();
    let (b, ..) = client.create(rw, "b", O_RDWR, 0o644).unwrap();
    assert_eq!(client.lookup(rw, "a").unwrap().0, a);
    client.forget(a, 1);
    assert!(client.getattr(a).is_ok(), "held twice, forgotten once");
    client.forget(a, u64::MAX);
    assert_eq!(client.getattr(a), Err(libc::ESTALE));
    client.forget(a, u64::MAX);
    client.forget(ROOT, u64::MAX);
    client.forget(12345, 1);
    let batch = body().u32(3).u32(0).u64(ROOT).u64(9).u64(b).u64(0).u64(77).u64(1);
    let message = client.message(42, 0, &batch);
    assert!(client.send_raw(REQUESTS, &[&message], 0).is_empty());
    // A count that the message is too short for, and one whose bytes would wrap.
    for count in [4, u32::MAX] {
        let batch = body().u32(count).u32(0).u64(b).u64(1);
        let message = client.message(42, 0, &batch);
        let answer = client.send_raw(REQUESTS, &[&message], 16);
        assert_eq!(client.parse(&answer), Err(libc::EINVAL));
    }
    assert!(client.getattr(b).is_ok() && client.getattr(rw).is_ok() && client.getattr(ROOT).is_ok());
}

#[test]
fn headers_and_lengths_that_lie() {
    let mut client = Client::new();
    let rw = client.rw();
    let (_, handle, _) = client.create(rw, "f", O_RDWR, 0o644).unwrap();
    client.write(handle, 0, &[7; 5000]).unwrap();
    // Less than a header: no answer, since nobody knows to what.
    for length in [0, 1, 39] {
        assert!(client.send_raw(REQUESTS, &[&vec![0; length]], 64).is_empty());
    }
    let message = client.message(3, rw, &body().u32(0).u32(0).u64(0));
    for wrong in [0_u32, 39, 55, 57, u32::MAX] {
        let mut lying = message.clone();
        lying[..4].copy_from_slice(&wrong.to_le_bytes());
        let answer = client.send_raw(REQUESTS, &[&lying], 200);
        assert_eq!(client.parse(&answer), Err(libc::EINVAL), "{wrong}");
    }
    // Too little room: an error, or nothing.
    let answer = client.send_raw(REQUESTS, &[&message], 100);
    assert_eq!(client.parse(&answer), Err(libc::EIO));
    assert!(client.send_raw(REQUESTS, &[&message], 15).is_empty());
    // A read of more than there is room for, of more than is moved at once, behind the last offset.
    let read = |at: u64, size: u32| body().u64(handle).u64(at).u32(size).u32(0).u64(0).u64(0);
    assert_eq!(client.call(15, 0, read(0, 4096), 4095), Err(libc::EINVAL));
    assert_eq!(client.call(15, 0, read(0, (1 << 20) + 1), 2 << 20), Err(libc::EINVAL));
    assert_eq!(client.call(15, 0, read(u64::MAX, 1), 1), Err(libc::EINVAL));
    assert_eq!(client.call(15, 0, read(i64::MAX as u64, 1), 1), Err(libc::EINVAL));
    assert_eq!(client.call(15, 0, body().u64(handle), 1), Err(libc::EINVAL));
    // A write that says more, or less, than it brings.
    for size in [0, 3, 5, u32::MAX] {
        let write = body().u64(handle).u64(0).u32(size).u32(0).u64(0).u64(0).bytes(b"four");
        assert_eq!(client.call(16, 0, write, 8), Err(libc::EINVAL), "{size}");
    }
    // Split anywhere, a message is the same.
    for at in [1, 4, 39, 40, 41, 55] {
        let message = client.message(3, rw, &body().u32(0).u32(0).u64(0));
        let answer = client.send_raw(REQUESTS, &[&message[..at], &message[at..]], 200);
        assert_eq!(client.parse(&answer).unwrap().len(), 104);
    }
    let big = client.message(1, rw, &body().bytes(&vec![b'x'; 100_000]));
    let answer = client.send_raw(REQUESTS, &[&big], 200);
    assert_eq!(client.parse(&answer), Err(libc::E2BIG));
    assert_eq!(client.call(39, rw, body(), 100), Err(libc::ENOSYS), "ioctl");
    assert_eq!(client.call(32, rw, body(), 100), Err(libc::ENOSYS), "locks stay with the guest");
    assert_eq!(client.call(u32::MAX, rw, body(), 100), Err(libc::ENOSYS));
    assert_eq!(client.read(handle, 0, 10).unwrap(), [7; 10]);
}

#[test]
fn a_broken_queue_needs_a_reset_and_gets_over_it() {
    let mut client = Client::new();
    let outside = writable(0xffff_ffff_0000, 64);
    client.driver.add(REQUESTS, &[outside]);
    client.driver.notify(REQUESTS);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while client.driver.get(STATUS) & NEEDS_RESET == 0 {
        assert!(std::time::Instant::now() < deadline, "the device does not notice");
        client.driver.turn(nix::poll::PollTimeout::from(50_u8));
    }
    client.driver.start(u64::MAX);
    client.init();
    client.rw();
}

#[test]
fn without_a_broker_there_are_errors_and_no_more() {
    let mut client = Client::new();
    let rw = client.rw();
    let (_, handle, _) = client.create(rw, "f", O_RDWR, 0o644).unwrap();
    client.write(handle, 0, b"open").unwrap();
    client.shim = Shim::start();
    assert_eq!(client.getattr(rw), Err(libc::EIO));
    client.forget(rw, 1);
    assert_eq!(client.read(handle, 0, 4).unwrap(), b"open", "what is open stays open");
    assert_eq!(client.release(handle), Err(libc::EIO));
}

fn message() -> impl Strategy<Value = (u32, u64, Vec<u8>, u16)> {
    let node = prop_oneof![0_u64..8, any::<u64>()];
    let name = prop_oneof![
        Just(b"f\0".to_vec()),
        Just(b"d\0".to_vec()),
        Just(b"..\0".to_vec()),
        Just(b"/etc\0".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..40),
    ];
    let word = prop_oneof![0_u64..8, any::<u64>()];
    let words = proptest::collection::vec(word, 0..12);
    let body = (words, name.clone(), name).prop_map(|(words, first, second)| {
        let words = words.into_iter().flat_map(u64::to_le_bytes);
        words.chain(first).chain(second).collect::<Vec<u8>>()
    });
    (prop_oneof![0_u32..56, any::<u32>()], node, body, prop_oneof![Just(0_u16), Just(4200), 0_u16..400])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever comes, in whatever order: an answer of at most the room that is there, or none; the device lives, the
    /// broker lives, and nothing outside of the export has changed.
    #[test]
    fn any_requests_in_any_order(messages in proptest::collection::vec(message(), 1..60), queue in 0_usize..2) {
        let mut client = Client::new();
        let sentinel = client.folder.path().parent().unwrap().join("hull-fs-sentinel");
        prop_assert!(!sentinel.exists());
        std::fs::create_dir(client.host("d")).unwrap();
        std::fs::write(client.host("f"), b"file").unwrap();
        let rw = client.rw();
        client.lookup(rw, "f").unwrap();
        for (opcode, node, request, room) in messages {
            let message = client.message(opcode, node, &Body(request));
            let answer = client.send_raw(queue, &[&message], usize::from(room));
            if !answer.is_empty() {
                // Checks header, length and errno.
                let _: Result<Vec<u8>> = client.parse(&answer);
            }
        }
        prop_assert_eq!(client.driver.get(STATUS), RUNNING);
        client.init();
        prop_assert!(client.lookup(ROOT, "rw").is_ok());
    }
}
