//! `-info`: what containerd may know of the runtime without a container.

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::{Message, MessageField};

/// The runtime's name in containerd's configuration.
pub const RUNTIME: &str = "io.containerd.hull.v2";

/// By which a shim says which mounts of a root file system containerd (2.2 and newer) is to leave to it.
const ALLOWED_MOUNTS: (&str, &str) = ("containerd.io/runtime-allow-mounts", "mkdir/*,format/*,erofs");

/// A `RuntimeInfo`, encoded.
pub fn runtime_info() -> Result<Vec<u8>, protobuf::Error> {
    let version =
        RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), ..RuntimeVersion::default() };
    let (name, mounts) = ALLOWED_MOUNTS;
    RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: MessageField::some(version),
        annotations: [(name.to_owned(), mounts.to_owned())].into(),
        ..RuntimeInfo::default()
    }
    .write_to_bytes()
}
