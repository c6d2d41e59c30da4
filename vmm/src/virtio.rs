//! Virtio devices (virtio 1.3) and the MMIO transport that shows them to the guest.
