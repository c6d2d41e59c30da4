//! The device status as a state machine (virtio 1.3 §2.1, §3.1). It knows what the driver has configured and what it
//! may still configure; it knows nothing of devices, memory or interrupts.

use super::super::queue::QueueSetup;

pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 64;
pub const FAILED: u32 = 128;

/// `VIRTIO_F_VERSION_1`, without which no driver is served.
pub const FEATURE_VERSION_1: u64 = 1 << 32;

/// A device from reset to reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing has happened, or the driver wrote zero to the status.
    Reset,
    /// The guest has seen the device.
    Acknowledged,
    /// A driver negotiates: the features it has accepted so far.
    Driver(u64),
    /// The features are settled and the driver describes its queues.
    FeaturesOk(Setup),
    /// The device is live. Nothing of its setup can be changed.
    Running(Frozen),
    /// The device could not go on; only a reset helps.
    NeedsReset(Frozen),
    /// The driver gave up; only a reset helps. The status as it reads.
    Failed(u32),
}

/// The queues while they are being configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    pub features: u64,
    pub queues: Vec<QueueSetup>,
}

/// The queues from `DRIVER_OK` on: readable, never writable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frozen(Setup);

impl Frozen {
    pub fn features(&self) -> u64 {
        self.0.features
    }

    pub fn queues(&self) -> &[QueueSetup] {
        &self.0.queues
    }
}

/// What a write to the status register means for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing beyond the state itself.
    None,
    /// The device goes live.
    Activate,
    /// The device stops and forgets.
    Reset,
    /// The device stops; the driver has given up.
    Stop,
    /// The write makes no sense in this state and was ignored.
    Ignored,
}

impl State {
    /// The status register.
    pub fn status(&self) -> u32 {
        match self {
            Self::Reset => 0,
            Self::Acknowledged => ACKNOWLEDGE,
            Self::Driver(_) => ACKNOWLEDGE | DRIVER,
            Self::FeaturesOk(_) => ACKNOWLEDGE | DRIVER | FEATURES_OK,
            Self::Running(_) => ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
            Self::NeedsReset(_) => ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | NEEDS_RESET,
            Self::Failed(status) => *status,
        }
    }

    /// A write to the status register: zero resets, anything else sets exactly one further bit. A driver whose
    /// features are not acceptable finds `FEATURES_OK` still clear.
    pub fn write_status(&mut self, value: u32, offered: u64, max_queue_sizes: &[u16]) -> Effect {
        if value == 0 {
            *self = Self::Reset;
            return Effect::Reset;
        }
        let current = self.status();
        // The device's own bit is not the driver's to set or clear.
        let added = (value & !NEEDS_RESET) ^ (current & !NEEDS_RESET);
        if added == 0 {
            return Effect::None;
        }
        if added == FAILED && value & FAILED != 0 {
            *self = Self::Failed(current | FAILED);
            return Effect::Stop;
        }
        match (&mut *self, added) {
            (Self::Reset, ACKNOWLEDGE) => *self = Self::Acknowledged,
            (Self::Acknowledged, DRIVER) => *self = Self::Driver(0),
            (Self::Driver(accepted), FEATURES_OK) => {
                let features = *accepted;
                if features & !offered == 0 && features & FEATURE_VERSION_1 != 0 {
                    let queues = max_queue_sizes.iter().copied().map(QueueSetup::new).collect();
                    *self = Self::FeaturesOk(Setup { features, queues });
                }
            }
            (Self::FeaturesOk(setup), DRIVER_OK) => {
                let queues = std::mem::take(&mut setup.queues);
                *self = Self::Running(Frozen(Setup { features: setup.features, queues }));
                return Effect::Activate;
            }
            _ => return Effect::Ignored,
        }
        Effect::None
    }

    /// The device cannot go on. Answers whether that is news.
    pub fn need_reset(&mut self) -> bool {
        let Self::Running(frozen) = self else { return false };
        let queues = std::mem::take(&mut frozen.0.queues);
        *self = Self::NeedsReset(Frozen(Setup { features: frozen.features(), queues }));
        true
    }

    /// The features the driver may write now.
    pub fn accepting_features(&mut self) -> Option<&mut u64> {
        match self {
            Self::Driver(accepted) => Some(accepted),
            _ => None,
        }
    }

    /// The queue for reading its registers.
    pub fn queue(&self, index: u32) -> Option<&QueueSetup> {
        let queues = match self {
            Self::FeaturesOk(setup) => &setup.queues,
            Self::Running(frozen) | Self::NeedsReset(frozen) => &frozen.0.queues,
            Self::Reset | Self::Acknowledged | Self::Driver(_) | Self::Failed(_) => return None,
        };
        queues.get(usize::try_from(index).ok()?)
    }

    /// The queue for writing its registers, in the one state that allows it.
    pub fn queue_mut(&mut self, index: u32) -> Option<&mut QueueSetup> {
        match self {
            Self::FeaturesOk(setup) => setup.queues.get_mut(usize::try_from(index).ok()?),
            _ => None,
        }
    }
}
