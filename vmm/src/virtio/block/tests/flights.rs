//! Requests that take time: any order of completion, short and failed transfers, resets and drains in between.

use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::virtio::Quiet;
use engine::{Action, Finished};

for_each_engine! {
    a_full_disk_is_an_error_for_the_guest_and_is_counted
}

/// An engine that does what the test says.
#[derive(Debug)]
struct Scripted(Arc<Script>);

#[derive(Debug)]
struct Script {
    state: Mutex<State>,
    event: EventFd,
}

#[derive(Debug, Default)]
struct State {
    started: Vec<(u16, Step)>,
    finished: VecDeque<Finished>,
    waits: usize,
}

impl Script {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Finishes one of the started steps, after writing `data` into its buffer.
    fn finish(&self, position: usize, data: &[u8], result: io::Result<usize>) {
        let (token, step) = self.lock().started.remove(position);
        if let Action::Read { buffer, .. } = &step.action {
            buffer.copy_from(data);
        }
        self.lock().finished.push_back(Finished { token, step, result });
        self.event.write(1).unwrap();
    }

    fn started(&self) -> usize {
        self.lock().started.len()
    }

    /// Offset and length of a started read or write.
    fn transfer(&self, position: usize) -> (u64, usize) {
        match &self.lock().started[position].1.action {
            Action::Read { buffer, offset } | Action::Write { buffer, offset } => (*offset, buffer.len()),
            Action::Sync => panic!("a sync"),
        }
    }
}

impl Engine for Scripted {
    fn start(&mut self, token: u16, step: Step) {
        let mut state = self.0.lock();
        assert!(state.started.iter().all(|(other, _)| *other != token));
        state.started.push((token, step));
    }

    fn submit(&mut self) -> io::Result<Submitted> {
        Ok(Submitted::All)
    }

    fn finished(&mut self) -> Option<Finished> {
        self.0.lock().finished.pop_front()
    }

    /// The last step first; the host is still writing when it is waited for.
    fn wait(&mut self) {
        self.0.lock().waits += 1;
        let (started, finished) = (self.0.started(), self.0.lock().finished.len());
        if finished == 0 && started > 0 {
            let (_, length) = self.0.transfer(started - 1);
            self.0.finish(started - 1, &vec![0x77; length], Ok(length));
        }
    }

    fn event(&self) -> Option<RawFd> {
        Some(self.0.event.as_raw_fd())
    }

    fn acknowledge(&self) {
        let _ = self.0.event.read();
    }
}

/// Three extents of four sectors each.
fn scripted() -> (Driver, Arc<Script>) {
    let script = Arc::new(Script { state: Mutex::default(), event: EventFd::new(EFD_NONBLOCK).unwrap() });
    let file = file_with(&sectors(20));
    let config = config(DiskAccess::ReadWrite, &[(0, 2048), (4096, 2048), (512, 2048)]);
    let engine = Scripted(Arc::clone(&script));
    let block =
        Block::with(&config, fds(&[&file, &file, &file]), |_| Box::new(engine), Box::new(Instant::now))
            .unwrap();
    (Driver::running(Box::new(block), MEMORY), script)
}

/// A request for data to the guest; answers its head and where data and status go.
fn add_read(driver: &mut Driver, sector: u64, count: u64) -> (u16, u64) {
    let header = driver.put(&header(IN, sector));
    let length = count * 512;
    let to = driver.put(&vec![0xee; usize::try_from(length + 1).unwrap()]);
    let data = writable(to, u32::try_from(length).unwrap());
    (driver.add(0, &[readable(header, 16), data, writable(to + length, 1)]), to)
}

fn add_write(driver: &mut Driver, sector: u64, data: &[u8]) -> (u16, u64) {
    let header = driver.put(&header(OUT, sector));
    let from = driver.put(data);
    let status = driver.put(&[0xee]);
    let length = u32::try_from(data.len()).unwrap();
    (driver.add(0, &[readable(header, 16), readable(from, length), writable(status, 1)]), status)
}

#[test]
fn requests_end_in_any_order() {
    let (mut driver, script) = scripted();
    let reads: Vec<_> = (0..4).map(|sector| add_read(&mut driver, sector, 1)).collect();
    driver.notify(0);
    driver.settle();
    assert_eq!(script.started(), 4);
    assert!(driver.used(0).is_empty() && !driver.interrupted());
    // Positions move up as steps finish: third, first, fourth, second.
    for (position, which) in [(2, 2), (0, 0), (1, 3), (0, 1)] {
        let byte = u8::try_from(which).unwrap();
        script.finish(position, &[byte; 512], Ok(512));
        driver.settle();
        let (head, to) = reads[which];
        assert_eq!(driver.used(0), [(head, 513)]);
        assert!(driver.interrupted());
        assert_eq!(driver.peek(to, 513), [vec![byte; 512], vec![OK]].concat());
    }
}

#[test]
fn what_is_cut_short_goes_on_where_it_stopped() {
    let (mut driver, script) = scripted();
    // Two sectors of the first extent, all of the second, one of the third.
    let (head, to) = add_read(&mut driver, 2, 7);
    driver.notify(0);
    driver.settle();
    let mut expected = Vec::new();
    for (offset, length, moved) in [
        (1024, 1024, 100),
        (1124, 924, 923),
        (2047, 1, 1),
        (4096, 2048, 2048),
        (512, 512, 500),
        (1012, 12, 12),
    ] {
        assert_eq!(script.started(), 1);
        assert_eq!(script.transfer(0), (offset, length));
        let data = vec![u8::try_from(offset % 200).unwrap(); moved];
        script.finish(0, &data, Ok(moved));
        expected.extend_from_slice(&data);
        driver.settle();
    }
    assert_eq!(driver.used(0), [(head, 7 * 512 + 1)]);
    expected.push(OK);
    assert!(driver.peek(to, 7 * 512 + 1) == expected);
    assert_eq!(driver.transport.counters().bytes_to_guest, 7 * 512);
}

#[test]
fn half_a_success_is_a_failure() {
    let (mut driver, script) = scripted();
    let full = || io::Error::from_raw_os_error(libc::ENOSPC);
    let ends: [&dyn Fn() -> io::Result<usize>; 3] =
        [&|| Err(full()), &|| Ok(0), &|| Err(io::Error::from_raw_os_error(libc::EIO))];
    for (count, end) in ends.iter().enumerate() {
        // A part was written before.
        let (head, status) = add_write(&mut driver, 2, &[1; 4 * 512]);
        driver.notify(0);
        driver.settle();
        script.finish(0, &[], Ok(1024));
        driver.settle();
        assert_eq!(script.transfer(0), (4096, 1024));
        script.finish(0, &[], end());
        driver.settle();
        assert_eq!(driver.used(0), [(head, 1)]);
        assert_eq!(driver.peek(status, 1), [IOERR]);
        assert_eq!(driver.transport.counters().host_errors, count as u64 + 1);
    }
    assert_eq!(driver.transport.counters().bytes_from_guest, 0);
    assert_eq!(script.started(), 0);
}

#[test]
fn an_interrupted_step_is_repeated_but_not_for_ever() {
    let (mut driver, script) = scripted();
    let interrupted = || io::Error::from_raw_os_error(libc::EAGAIN);
    let (head, to) = add_read(&mut driver, 0, 1);
    driver.notify(0);
    driver.settle();
    for _ in 0..8 {
        script.finish(0, &[], Err(interrupted()));
        driver.settle();
        assert_eq!((script.started(), script.transfer(0)), (1, (0, 512)));
    }
    script.finish(0, &[], Err(interrupted()));
    driver.settle();
    assert_eq!((driver.used(0), driver.peek(to + 512, 1)), (vec![(head, 1)], vec![IOERR]));
}

#[test]
fn a_flush_syncs_every_file_and_one_failure_is_enough() {
    let (mut driver, script) = scripted();
    for (failing, status) in [(None, OK), (Some(1), IOERR)] {
        let header = driver.put(&header(FLUSH, 0));
        let to = driver.put(&[0xee]);
        driver.submit(0, &[readable(header, 16), writable(to, 1)]);
        let mut synced = Vec::new();
        while script.started() > 0 {
            let file = script.lock().started[0].1.file;
            synced.push(file);
            let fails = failing == Some(file);
            script.finish(0, &[], if fails { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(0) });
            driver.settle();
        }
        assert_eq!(synced, if failing.is_some() { vec![0, 1] } else { vec![0, 1, 2] });
        assert_eq!((driver.used(0).len(), driver.peek(to, 1)), (1, vec![status]));
    }
}

#[test]
fn no_more_are_in_flight_than_may_be_and_none_is_forgotten() {
    let (mut driver, script) = scripted();
    let header = driver.put(&header(IN, 0));
    let to = driver.allocate(513);
    let chain = [readable(header, 16), writable(to, 513)];
    let heads: Vec<u16> = (0..200).map(|_| driver.add_indirect(0, &chain)).collect();
    driver.kick(0);
    driver.settle();
    assert_eq!(script.started(), usize::from(engine::STEPS_MAX));
    let mut all = Vec::new();
    while script.started() > 0 {
        script.finish(0, &[], Ok(512));
        driver.settle();
        all.extend(driver.used(0).into_iter().map(|(head, _)| head));
        assert_eq!(script.started(), (200 - all.len()).min(usize::from(engine::STEPS_MAX)));
    }
    assert_eq!(all, heads);
}

/// CVE-2026-45782: a request outlived the reset of its device, and its data went into memory that was somebody else's.
#[test]
fn cve_2026_45782_a_reset_waits_for_what_is_in_flight() {
    let (mut driver, script) = scripted();
    let reads: Vec<_> = (0..3).map(|sector| add_read(&mut driver, sector, 5)).collect();
    driver.notify(0);
    driver.settle();
    driver.set(STATUS, 0);
    // The host's writes came before the end of the reset, and nothing is left that could write later: not even the
    // rest of a request that was going to touch a second file.
    assert_eq!((script.started(), script.lock().waits), (0, 3));
    for (_, to) in &reads {
        assert_eq!(driver.peek(*to, 1), [0x77]);
        assert_eq!(driver.peek(to + 5 * 512, 1), [0xee], "an answer after a reset");
    }
    assert!(driver.used(0).is_empty());
    driver.start(u64::MAX);
    let (head, _) = add_read(&mut driver, 0, 1);
    driver.notify(0);
    driver.settle();
    script.finish(0, &[], Ok(512));
    driver.settle();
    assert_eq!(driver.used(0), [(head, 513)]);
}

/// The driver broke the ring: the device stops, and that is a reset too.
#[test]
fn a_broken_ring_waits_for_what_is_in_flight() {
    let (mut driver, script) = scripted();
    add_read(&mut driver, 0, 1);
    driver.notify(0);
    driver.settle();
    driver.set_available_index(0, 5000);
    driver.kick(0);
    driver.settle();
    assert_eq!(driver.get(STATUS), RUNNING | NEEDS_RESET);
    assert_eq!((script.started(), driver.used(0).len()), (0, 0));
}

#[test]
fn a_quiet_disk_has_answered_what_was_in_flight_and_left_the_rest() {
    let (mut driver, script) = scripted();
    let reads: Vec<_> = (0..3).map(|sector| add_read(&mut driver, sector, 5)).collect();
    driver.notify(0);
    driver.settle();
    let (late, to) = add_read(&mut driver, 0, 1);
    assert_eq!(driver.transport.quiesce(), Quiet::Yes);
    assert_eq!(script.started(), 0);
    let mut heads: Vec<u16> = driver.used(0).into_iter().map(|(head, _)| head).collect();
    heads.sort_unstable();
    assert_eq!(heads, reads.iter().map(|(head, _)| *head).collect::<Vec<_>>());
    for (_, to) in &reads {
        assert_eq!(driver.peek(to + 5 * 512, 1), [OK]);
    }
    assert_eq!(driver.peek(to + 512, 1), [0xee]);
    driver.kick(0);
    driver.settle();
    script.finish(0, &[], Ok(512));
    driver.settle();
    assert_eq!(driver.used(0), [(late, 513)]);
}

#[test]
fn what_was_left_for_want_of_room_comes_after_the_quiet() {
    let (mut driver, script) = scripted();
    let header = driver.put(&header(IN, 0));
    let to = driver.allocate(513);
    for _ in 0..200 {
        driver.add_indirect(0, &[readable(header, 16), writable(to, 513)]);
    }
    driver.kick(0);
    driver.settle();
    assert_eq!(driver.transport.quiesce(), Quiet::Yes);
    assert_eq!((script.started(), driver.used(0).len()), (0, 128));
    driver.settle();
    assert_eq!(script.started(), 72);
}

/// A disk of whatever can be opened.
fn anything(backend: Backend, files: Vec<(OwnedFd, u64)>) -> Driver {
    let config = config(DiskAccess::ReadWrite, &[(0, 512)]);
    let some = file_with(&sectors(1));
    let mut block = backend.block(&config, fds(&[&some]));
    block.disk = Disk::new(Extents::of_anything(files), DiskAccess::ReadWrite, [0; SERIAL_LENGTH]);
    block.in_flight = InFlight::new(backend.engine(block.disk.extents()));
    Driver::running(Box::new(block), MEMORY)
}

fn a_full_disk_is_an_error_for_the_guest_and_is_counted(backend: Backend) {
    let full = File::options().read(true).write(true).open("/dev/full").unwrap();
    let room = file_with(&sectors(2));
    let mut driver = anything(backend, vec![(room.try_clone().unwrap().into(), 1024), (full.into(), 4096)]);
    assert_eq!(request(&mut driver, OUT, 0, &[7; 1024], 0).status, OK);
    let answer = request(&mut driver, OUT, 2, &[7; 512], 0);
    assert_eq!((answer.status, answer.used), (IOERR, 1));
    assert_eq!(request(&mut driver, OUT, 1, &[8; 1024], 0).status, IOERR);
    assert_eq!(request(&mut driver, IN, 0, &[], 512).status, OK);
    let counters = driver.transport.counters();
    assert_eq!((counters.host_errors, counters.bytes_from_guest), (2, 1024));
    assert_eq!(driver.get(STATUS), RUNNING);
}

#[test]
fn writes_are_durable_for_a_driver_that_cannot_flush() {
    for features in [u64::MAX, !FEATURE_FLUSH] {
        let (mut driver, script) = scripted();
        driver.start(features);
        // Into the first and the second file.
        let (head, status) = add_write(&mut driver, 2, &[1; 4 * 512]);
        driver.notify(0);
        driver.settle();
        let mut synced = Vec::new();
        while script.started() > 0 {
            assert_eq!(driver.peek(status, 1), [0xee], "an answer before all is done");
            let (sync, file) = match &script.lock().started[0].1 {
                Step { action: Action::Sync, file } => (true, *file),
                Step { file, .. } => (false, *file),
            };
            if sync {
                synced.push(file);
            }
            script.finish(0, &[], Ok(if sync { 0 } else { 1024 }));
            driver.settle();
        }
        assert_eq!(synced, if features == u64::MAX { vec![] } else { vec![0, 1] });
        assert_eq!((driver.used(0), driver.peek(status, 1)), (vec![(head, 1)], vec![OK]));
    }
}

/// Whoever drops the ring gets guest memory back only when the kernel is done with it.
#[test]
fn dropping_the_ring_waits_for_the_kernel() {
    if !Backend::Uring.exists() {
        return;
    }
    let (reader, mut writer) = io::pipe().unwrap();
    let mut driver = anything(Backend::Uring, vec![(reader.into(), 4096)]);
    let (_, to) = add_read(&mut driver, 0, 1);
    driver.notify(0);
    driver.settle();
    let Driver { transport, memory, .. } = driver;
    let dropping = std::thread::spawn(move || drop(transport));
    writer.write_all(&[0x55; 512]).unwrap();
    dropping.join().unwrap();
    let mut bytes = [0; 512];
    vm_memory::Bytes::read_slice(&memory.guest, &mut bytes, vm_memory::GuestAddress(to)).unwrap();
    assert_eq!(bytes, [0x55; 512]);
}
