//! `-info`: what containerd may know of the runtime without a container.

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::{Message, MessageField};

/// The runtime's name in containerd's configuration.
pub const RUNTIME: &str = "io.containerd.hull.v2";

/// A `RuntimeInfo`, encoded.
pub fn runtime_info() -> Result<Vec<u8>, protobuf::Error> {
    let version =
        RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), ..RuntimeVersion::default() };
    RuntimeInfo { name: RUNTIME.to_owned(), version: MessageField::some(version), ..RuntimeInfo::default() }
        .write_to_bytes()
}
