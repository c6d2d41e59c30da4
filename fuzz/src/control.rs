//! The control API: what a shim that was taken over may say to the monitor before it boots a VM.

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use arbitrary::{Result, Unstructured};
use hull_protocol::vmm::{Channel, ChannelError, Message, Received, Request};
use hull_vmm::control::testing::Conversation;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::Body;
use crate::devices::file;

/// Requests as JSON, with numbers and words to be filled in.
const REQUESTS: [&str; 17] = [
    r#"{"request":"hello","with":{"version":N}}"#,
    r#"{"request":"jail","with":{"level":"full","uid":N,"gid":N,"network":"empty"}}"#,
    r#"{"request":"machine","with":{"vcpus":N,"memory_mib":N,"kernel_args":"W","console_limit_bytes":N}}"#,
    r#"{"request":"add_disk","with":{"serial":"W","access":"read_only","extents":[{"offset":N,"length":N}]}}"#,
    r#"{"request":"add_disk","with":{"serial":"W","access":"read_write","extents":[{"offset":N,"length":N},{"offset":N,"length":N}],"discard":"off","limits":{"bandwidth":{"size":N,"refill_ms":N,"one_time_burst":N}}}}"#,
    r#"{"request":"add_vsock","with":{"guest_cid":N,"guest_to_host_ports":[N]}}"#,
    r#"{"request":"add_network","with":{"name":"W","mac":[2,0,0,0,0,1],"mtu":N}}"#,
    r#"{"request":"add_fs","with":{"tag":"W","cache":"auto"}}"#,
    r#"{"request":"add_entropy"}"#,
    r#"{"request":"add_pmem","with":{"name":"W","length":N,"access":"read_only"}}"#,
    r#"{"request":"add_hotplug_memory","with":{"mib":N}}"#,
    r#"{"request":"set_hotplug_memory","with":{"mib":N}}"#,
    r#"{"request":"add_balloon"}"#,
    r#"{"request":"unplug","with":{"name":"W","how":"forced"}}"#,
    r#"{"request":"boot"}"#,
    r#"{"request":"stats"}"#,
    r#"{"request":"pause"}"#,
];
const WORDS: [&str; 5] = ["a", "", "name-of-more-than-twenty-letters", "console=ttyS0 quiet", "\\u0000"];
const MESSAGES: usize = 12;

/// Messages with descriptors, through a socket.
pub fn requests() -> Body {
    let files: Vec<OwnedFd> = [
        Some(file(1 << 20).into()),
        Some(file(0).into()),
        // Where there is none, no machine can be described.
        File::options().read(true).write(true).open("/dev/kvm").ok().map(OwnedFd::from),
        Some(File::open("/dev/null").unwrap().into()),
        Some(File::open("/").unwrap().into()),
    ]
    .into_iter()
    .flatten()
    .collect();
    Box::new(move |input| {
        let _ended: Result<()> = converse(&mut Unstructured::new(input), &files);
    })
}

fn converse(u: &mut Unstructured<'_>, files: &[OwnedFd]) -> Result<()> {
    let (ours, theirs) = Channel::pair().unwrap();
    let mut conversation = Conversation::default();
    if u.ratio(7, 8)? {
        for text in [
            r#"{"request":"hello","with":{"version":1}}"#,
            r#"{"request":"jail","with":{"level":"unprivileged"}}"#,
        ] {
            assert_eq!(
                conversation.answer(serde_json::from_str(text).unwrap(), Vec::new()),
                Some(Message::Done)
            );
        }
    }
    for _ in 0..MESSAGES {
        if u.is_empty() {
            break;
        }
        let bytes = message(u)?;
        let count = if u.ratio(15, 16)? { u.int_in_range(0..=4)? } else { u.int_in_range(0..=60)? };
        let fds =
            (0..count).map(|_| u.choose(files).map(AsRawFd::as_raw_fd)).collect::<Result<Vec<RawFd>>>()?;
        let rights = [ControlMessage::ScmRights(&fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<()>(ours.as_raw_fd(), &[IoSlice::new(&bytes)], rights, MsgFlags::empty(), None).unwrap();
        match theirs.receive::<Request>() {
            Ok(Some(Received { message, fds })) => match conversation.answer(message, fds) {
                // What the monitor says can be said.
                Some(answer) => theirs.send(&answer, &[]).unwrap(),
                None => break,
            },
            Ok(None) => break,
            Err(ChannelError::Malformed(_) | ChannelError::TooLarge) => continue,
            Err(error) => panic!("{error}"),
        }
        ours.receive::<Message>().unwrap().unwrap();
    }
    Ok(())
}

fn message(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    if u.ratio(1, 16)? {
        let length = u.int_in_range(1..=200)?;
        return Ok(u.bytes(length)?.to_vec());
    }
    let mut text = String::new();
    for part in u.choose(&REQUESTS)?.split_inclusive(['N', 'W']) {
        match part.strip_suffix('N') {
            Some(head) => {
                text.push_str(head);
                text.push_str(&number(u)?);
            }
            None => match part.strip_suffix('W') {
                Some(head) => {
                    text.push_str(head);
                    text.push_str(u.choose(&WORDS)?);
                }
                None => text.push_str(part),
            },
        }
    }
    let mut bytes = text.into_bytes();
    if u.ratio(1, 16)? {
        let at = u.choose_index(bytes.len())?;
        bytes[at] = u.arbitrary()?;
    }
    Ok(bytes)
}

fn number(u: &mut Unstructured<'_>) -> Result<String> {
    Ok(match u.int_in_range(0..=7)? {
        0 => u.arbitrary::<i64>()?.to_string(),
        1 => u.arbitrary::<u32>()?.to_string(),
        2 => (512 * u.int_in_range(0..=4096_u32)?).to_string(),
        3 => (1_u64 << u.int_in_range(0..=63)?).to_string(),
        4 => "1e99".to_owned(),
        _ => u.int_in_range(0..=256_u32)?.to_string(),
    })
}
