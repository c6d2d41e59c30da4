//! What a thread that serves a shared directory needs: it asks the broker for everything that names or owns a file, and
//! reads and writes files that the broker has opened.

use super::{Rule, always};

pub(super) const RULES: &[Rule] = &[
    always(libc::SYS_sendmsg, "asks the broker"),
    always(libc::SYS_recvmsg, "the broker's answers, with files it has opened"),
    always(libc::SYS_preadv, "reads into the guest's buffers"),
    always(libc::SYS_pwritev, "writes out of the guest's buffers"),
    always(libc::SYS_pwritev2, "writes to the end of a file, wherever that is by then"),
];
