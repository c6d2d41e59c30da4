//! The register layout (virtio 1.3 §4.2.2).

/// Where the device's configuration space begins in the window.
pub const CONFIG: u64 = 0x100;

/// "virt", little-endian.
pub const MAGIC: u32 = 0x7472_6976;
/// The version of the interface: not legacy.
pub const VERSION: u32 = 2;
/// "HULL", little-endian.
pub const VENDOR: u32 = 0x4c4c_5548;

/// A register of the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names are the specification's.
pub enum Register {
    MagicValue,
    Version,
    DeviceId,
    VendorId,
    DeviceFeatures,
    DeviceFeaturesSel,
    DriverFeatures,
    DriverFeaturesSel,
    QueueSel,
    QueueNumMax,
    QueueNum,
    QueueReady,
    QueueNotify,
    InterruptStatus,
    InterruptAck,
    Status,
    QueueDescLow,
    QueueDescHigh,
    QueueDriverLow,
    QueueDriverHigh,
    QueueDeviceLow,
    QueueDeviceHigh,
    ShmSel,
    ShmLenLow,
    ShmLenHigh,
    ShmBaseLow,
    ShmBaseHigh,
    QueueReset,
    ConfigGeneration,
}

impl Register {
    /// The register at an offset, where there is one.
    pub fn at(offset: u64) -> Option<Self> {
        Some(match offset {
            0x00 => Self::MagicValue,
            0x04 => Self::Version,
            0x08 => Self::DeviceId,
            0x0c => Self::VendorId,
            0x10 => Self::DeviceFeatures,
            0x14 => Self::DeviceFeaturesSel,
            0x20 => Self::DriverFeatures,
            0x24 => Self::DriverFeaturesSel,
            0x30 => Self::QueueSel,
            0x34 => Self::QueueNumMax,
            0x38 => Self::QueueNum,
            0x44 => Self::QueueReady,
            0x50 => Self::QueueNotify,
            0x60 => Self::InterruptStatus,
            0x64 => Self::InterruptAck,
            0x70 => Self::Status,
            0x80 => Self::QueueDescLow,
            0x84 => Self::QueueDescHigh,
            0x90 => Self::QueueDriverLow,
            0x94 => Self::QueueDriverHigh,
            0xa0 => Self::QueueDeviceLow,
            0xa4 => Self::QueueDeviceHigh,
            0xac => Self::ShmSel,
            0xb0 => Self::ShmLenLow,
            0xb4 => Self::ShmLenHigh,
            0xb8 => Self::ShmBaseLow,
            0xbc => Self::ShmBaseHigh,
            0xc0 => Self::QueueReset,
            0xfc => Self::ConfigGeneration,
            _ => return None,
        })
    }
}
