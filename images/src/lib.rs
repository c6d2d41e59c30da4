//! Images: from a reference in a registry, or a file, to one read-only disk for a microVM.
//!
//! [`Store::pull`] and [`Store::load`] put images into a [`Store`], [`Store::find`] gives an [`Image`] back, and
//! [`ImageDisk`] names the files that make up its disk. The crate never unpacks a tree on the host: a layer goes from its
//! tar stream straight into an EROFS blob. It is synchronous, with threads inside, and knows nothing of VMs.

mod compression;
mod credentials;
mod digest;
pub mod erofs;
mod image;
mod install;
pub mod layer;
mod load;
mod manifest;
mod platform;
mod progress;
mod pull;
mod reference;
mod registry;
mod store;

pub use credentials::{CredentialError, CredentialFiles, Credentials};
pub use digest::{Algorithm, Digest, DigestError};
pub use image::{Image, ImageDisk};
pub use install::{InstallError, LayerError};
pub use load::LoadError;
pub use manifest::{MAX_LAYERS, ManifestError};
pub use oci_spec::image::ImageConfiguration;
pub use platform::{Platform, PlatformError};
pub use progress::{LayerInfo, Progress, ProgressEvent, Silent};
pub use pull::{PullError, PullOptions};
pub use reference::{Reference, ReferenceError};
pub use registry::{PlainHttp, RegistryError, RetryPolicy};
pub use store::{Collected, Removed, Store, StoreError};

#[cfg(test)]
mod testing;
