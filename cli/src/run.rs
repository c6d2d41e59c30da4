//! Running a process and staying with it: what `hull run` and `hull exec` have in common.
//!
//! - `prepare`: from arguments to a bundle on disk.
//! - `start`: from a bundle to a running container, and back when that fails.
//! - `session`: the attached process: streams, signals, terminal, exit status.

pub mod image;
mod prepare;
mod session;
mod signals;
mod start;

pub use image::{pull_options, user_database};
pub use prepare::prepare;
pub use session::{End, Session, exit_byte};
pub use signals::Signals;
pub use start::{start_attached, start_detached};
