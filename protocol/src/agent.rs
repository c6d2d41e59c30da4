//! The agent's API and the conventions around it that protobuf cannot express.

use std::time::Duration;

/// The version of this API. Both sides refuse to talk to another.
pub const API_VERSION: u32 = 1;

/// The vsock context id of the host (virtio 1.3 §5.10.4).
pub const HOST_CID: u32 = 2;

/// The vsock context id of every guest: the device is user-space and private to its VM.
pub const GUEST_CID: u32 = 3;

/// Host port to which the agent connects once it is ready. The agent serves ttrpc on that connection.
pub const CONTROL_PORT: u32 = 1024;

/// Every call but `WaitProcess` and `NextEvent`, which wait, and `Shutdown`, which says how long it takes, is answered within this time.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(50);

/// Guest port on which the agent accepts standard streams, and connections to TCP ports of the pod: one connection for each.
///
/// The shim sends one line, [`Opening`], and the agent answers `OK\n` or `ERR <reason>\n`. Raw bytes follow.
/// Output ends with a half-close by the agent, input with a half-close by the shim.
pub const STREAM_PORT: u32 = 1025;

/// The longest line either side may send on [`STREAM_PORT`], the newline included, in bytes.
pub const STREAM_LINE_MAX: usize = 512;

/// A word on the kernel's command line that asks the agent for a debug console.
pub const DEBUG_ARGUMENT: &str = "hull.debug_console";

/// The longest container or exec id, in bytes.
pub const ID_MAX: usize = 128;

/// I/O port by which the agent ends the VM: see [`EXIT_ORDERLY`].
pub const EXIT_PORT: u16 = 0x600;

/// Written to [`EXIT_PORT`] when the guest has shut down in good order.
pub const EXIT_ORDERLY: u8 = 0x01;

/// Serial number of the virtio-blk disk that holds the image.
pub const ROOTFS_SERIAL: &str = "rootfs";

/// Serial number of the virtio-blk disk that holds the writable upper, where there is one.
pub const UPPER_SERIAL: &str = "upper";

/// Tag of the virtio-fs device, by which the agent mounts the pod's volumes: one folder or file for each.
pub const VOLUMES_TAG: &str = "volumes";

/// The type of a mount in a container's spec whose source is a volume's name.
pub const VOLUME_MOUNT: &str = "hull-volume";

/// The type of a mount in a container's spec whose source is the name of a file that came with the request.
pub const FILE_MOUNT: &str = "hull-file";

/// The most file systems on the disk of a root file system.
pub const LAYERS_MAX: usize = 253;
/// Each of them is this or a multiple of it, in bytes.
pub const LAYER_BLOCK: u64 = 4096;

/// The most files that come with a request, and the longest of them in bytes.
pub const FILES_MAX: usize = 16;
/// See [`FILES_MAX`].
pub const FILE_SIZE_MAX: usize = 64 << 10;
/// The type of a mount in a container's spec that is a tmpfs of the pod: whoever mounts the same source, a name like an id's
/// ([`is_valid_id`]), mounts the same files. They live as long as the pod.
///
/// Of its options, `size`, `mode`, `nr_inodes`, `uid` and `gid` shape the tmpfs when it is mounted first, and mean nothing
/// afterwards; `size` must be given. For the pod's /dev/shm and for volumes in memory.
pub const SHARED_TMPFS_MOUNT: &str = "hull-shared-tmpfs";

/// Generated messages, client and server traits.
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::restriction, unused_qualifications)]
pub mod api {
    include!(concat!(env!("OUT_DIR"), "/agent_api/api.rs"));
}

pub mod memory;
mod stream;

pub use stream::{Opening, StreamHeader, StreamHeaderError, StreamKind, is_valid_id};
