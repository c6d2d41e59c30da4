//! What a disk on io_uring needs while it runs. Rings are made, and their files and operations restricted, before the
//! filter: what a ring does is not seen by it, so `io_uring_setup` and `io_uring_register` stay outside.

use super::{Rule, always};

pub(super) const RULES: &[Rule] =
    &[always(libc::SYS_io_uring_enter, "disks: submits and waits, also when a reset drains")];
