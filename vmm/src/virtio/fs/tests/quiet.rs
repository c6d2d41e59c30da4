//! A device that is held in the middle of its work, and a thread that serves one device after another.

use std::sync::mpsc;
use std::time::Duration;

use hull_protocol::fs::{BrokerChannel, Reply, Request};
use hull_protocol::vmm::FsCache;
use nix::poll::PollTimeout;

use super::client::*;
use super::*;
use crate::virtio::Quiet;
use crate::virtio::testing::*;

fn config() -> FsConfig {
    FsConfig { tag: "volumes".into(), cache: FsCache::Auto }
}

/// A broker that answers only when it is told to, and says what it was asked.
struct SlowBroker {
    asked: mpsc::Receiver<Request>,
    answers: mpsc::Sender<()>,
}

impl SlowBroker {
    fn start() -> (Self, OwnedFd) {
        let (ours, theirs) = BrokerChannel::pair().unwrap();
        let (asks, asked) = mpsc::channel();
        let (answers, may_answer) = mpsc::channel();
        std::thread::spawn(move || {
            let mut channel = ours;
            while let Ok((request, _)) = channel.receive::<Request>() {
                if asks.send(request).is_err() || may_answer.recv().is_err() {
                    return;
                }
                channel.send(&Reply::Done, None).unwrap();
            }
        });
        (Self { asked, answers }, theirs.into())
    }

    fn wait_asked(&self) {
        self.asked.recv_timeout(Duration::from_secs(20)).unwrap();
    }
}

/// `FUSE_FSYNC`, of which the broker has to be asked.
fn add_sync(driver: &mut Driver, unique: u64) -> u16 {
    let message = body().u32(56).u32(20).u64(unique).u64(1).u64(0).u64(0).u64(5).u32(0).u32(0).0;
    let message = driver.put(&message);
    let answer = driver.allocate(16);
    driver.add_indirect(REQUESTS, &[readable(message, 56), writable(answer, 16)])
}

#[test]
fn what_is_in_flight_is_finished_and_the_rest_waits_for_the_end_of_the_pause() {
    let (broker, socket) = SlowBroker::start();
    let thread = FileThread::start().unwrap();
    let mut driver = Driver::running(Box::new(Fs::new(&config(), socket, &thread).unwrap()), 0x40_0000);
    for round in 0..20 {
        driver.free_buffers();
        let heads: Vec<u16> = (0..3).map(|unique| add_sync(&mut driver, unique)).collect();
        driver.kick(REQUESTS);
        driver.settle();
        broker.wait_asked();
        let answers = broker.answers.clone();
        let helper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(5));
            answers.send(()).unwrap();
        });
        assert_eq!(driver.transport.quiesce(), Quiet::Yes);
        helper.join().unwrap();
        assert_eq!(driver.used(REQUESTS), [(heads[0], 16)], "round {round}");
        // Nothing is begun, however long it takes, nor what came shortly before.
        assert!(broker.asked.recv_timeout(Duration::from_millis(10)).is_err());
        // The event loop goes on: nobody has to notify what was left.
        broker.answers.send(()).unwrap();
        broker.answers.send(()).unwrap();
        let mut used = driver.wait_interrupt(REQUESTS);
        while used.len() < 2 {
            used.extend(driver.wait_interrupt(REQUESTS));
        }
        assert_eq!(used, [(heads[1], 16), (heads[2], 16)]);
        broker.wait_asked();
        broker.wait_asked();
    }
}

#[test]
fn a_notification_that_the_thread_has_not_seen_is_not_forgotten() {
    let (broker, socket) = SlowBroker::start();
    let thread = FileThread::start().unwrap();
    let mut driver = Driver::running(Box::new(Fs::new(&config(), socket, &thread).unwrap()), 0x40_0000);
    for _ in 0..500 {
        driver.free_buffers();
        let head = add_sync(&mut driver, 7);
        broker.answers.send(()).unwrap();
        driver.kick(REQUESTS);
        // The thread may or may not be at it by now.
        driver.turn(PollTimeout::ZERO);
        assert_eq!(driver.transport.quiesce(), Quiet::Yes);
        assert_eq!(driver.wait_interrupt(REQUESTS), [(head, 16)]);
        broker.wait_asked();
    }
}

#[test]
fn a_host_that_does_not_answer_is_not_lost_by_a_pause() {
    let (broker, socket) = SlowBroker::start();
    let thread = FileThread::start().unwrap();
    let mut driver = Driver::running(Box::new(Fs::new(&config(), socket, &thread).unwrap()), 0x40_0000);
    let head = add_sync(&mut driver, 1);
    driver.kick(REQUESTS);
    driver.settle();
    broker.wait_asked();
    assert_eq!(driver.transport.quiesce(), Quiet::NotYet);
    broker.answers.send(()).unwrap();
    assert_eq!(driver.wait_interrupt(REQUESTS), [(head, 16)]);
    assert_eq!(driver.get(STATUS), RUNNING);
}

#[test]
fn one_thread_serves_one_device_after_another() {
    let thread = FileThread::start().unwrap();
    for round in 0..200 {
        let (broker, socket) = SlowBroker::start();
        let mut driver = Driver::running(Box::new(Fs::new(&config(), socket, &thread).unwrap()), 0x40_0000);
        let second = Fs::new(&config(), SlowBroker::start().1, &thread);
        assert!(matches!(second, Err(FsError::Second)), "{second:?}");
        let head = add_sync(&mut driver, 1);
        driver.kick(REQUESTS);
        driver.settle();
        broker.wait_asked();
        if round % 2 == 0 {
            broker.answers.send(()).unwrap();
            assert_eq!(driver.wait_interrupt(REQUESTS), [(head, 16)]);
        }
        // In the other rounds the device goes while the thread waits for the broker.
    }
}
