//! A device that gives every chain its own bytes back.

use std::sync::{Arc, Mutex};

use crate::virtio::device::{Activated, DeviceError, VirtioDevice};
use crate::virtio::queue::{Handled, RunningQueue};

/// What the device was told and how it shall behave, shared with the test.
#[derive(Default)]
pub struct Script {
    pub activations: usize,
    pub resets: usize,
    pub notified: Vec<usize>,
    pub features: u64,
    /// What it answers next; [`Answer::Echo`] when there is none.
    pub answers: Vec<Answer>,
    /// Heads of deferred chains.
    pub deferred: Vec<u16>,
    /// Called while a chain is handled, as if another vCPU ran meanwhile.
    pub meanwhile: Option<Box<dyn FnMut() + Send>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Echo,
    Defer,
    Stop,
    More,
    /// Fills so many bytes, all of them with the number of chains.
    Fill(u32),
}

pub struct Echo {
    pub script: Arc<Mutex<Script>>,
    queues: Vec<Option<RunningQueue>>,
}

impl Echo {
    pub fn new() -> (Box<Self>, Arc<Mutex<Script>>) {
        let script = Arc::new(Mutex::new(Script::default()));
        (Box::new(Self { script: Arc::clone(&script), queues: Vec::new() }), script)
    }
}

/// Device-specific feature bits it offers.
pub const FEATURES: u64 = 0b101;

impl VirtioDevice for Echo {
    fn name(&self) -> &str {
        "echo"
    }

    fn device_type(&self) -> u32 {
        42
    }

    fn max_queue_sizes(&self) -> &[u16] {
        &[16, 4]
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            let at = offset + index as u64;
            if at < 10 {
                *byte = u8::try_from(at).unwrap() + 1;
            }
        }
    }

    fn activate(&mut self, activated: Activated) {
        let mut script = self.script.lock().unwrap();
        script.activations += 1;
        script.features = activated.features;
        self.queues = activated.queues;
    }

    fn reset(&mut self) {
        self.script.lock().unwrap().resets += 1;
        self.queues.clear();
    }

    fn queue_notified(&mut self, queue: usize) -> Result<(), DeviceError> {
        let mut script = self.script.lock().unwrap();
        script.notified.push(queue);
        let running = self.queues[queue].as_mut().unwrap();
        // A second notification completes what was deferred before, last first.
        while let Some(head) = script.deferred.pop() {
            running.complete(head, 7).map_err(|source| DeviceError::Queue { queue, source })?;
        }
        running
            .process(|chain| {
                if let Some(meanwhile) = &mut script.meanwhile {
                    meanwhile();
                }
                match script.answers.pop().unwrap_or(Answer::Echo) {
                    Answer::Echo => {
                        let mut bytes = vec![0; chain.readable.len()];
                        assert_eq!(chain.readable.copy_to(&mut bytes), bytes.len());
                        Handled::Done(u32::try_from(chain.writable.copy_from(&bytes)).unwrap())
                    }
                    Answer::Defer => {
                        script.deferred.push(chain.head());
                        Handled::Deferred
                    }
                    Answer::Stop => Handled::Stop,
                    Answer::More => Handled::More,
                    Answer::Fill(length) => {
                        let bytes = vec![u8::try_from(chain.chains()).unwrap(); length.try_into().unwrap()];
                        assert_eq!(chain.writable.copy_from(&bytes), bytes.len());
                        Handled::Done(length)
                    }
                }
            })
            .map_err(|source| DeviceError::Queue { queue, source })
    }
}
