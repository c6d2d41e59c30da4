//! Frames that come in by one link are sent out by another, before the host's own network sees them: an ingress queue with one
//! filter that matches everything (tc(8), tc-u32(8), tc-mirred(8)).

use nix::errno::Errno;

use crate::message::{Message, attributes, text, u32_at};
use crate::{Error, Socket};

const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const U32_SELECTION: u16 = 5;
const U32_ACTION: u16 = 7;
const ACTION_KIND: u16 = 1;
const ACTION_OPTIONS: u16 = 2;
const MIRRED_PARAMETERS: u16 = 2;
/// Where in `struct tc_mirred` the link is.
const MIRRED_LINK: usize = 24;
/// The handle of an ingress queue, and where it hangs.
const INGRESS: u32 = 0xffff_0000;
const INGRESS_PARENT: u32 = 0xffff_fff1;
/// The filter's place in its queue. What others put there runs before it or after it, but not in its place.
const PRIORITY: u32 = 0x4855;
/// `TC_U32_TERMINAL`.
const TERMINAL: u8 = 1;
/// `TC_ACT_STOLEN`: who redirects a frame keeps it.
const STOLEN: u32 = 4;
/// `TCA_EGRESS_REDIR`.
const SEND_OUT: u32 = 1;
const FIXED: usize = 20;

/// Whose an ingress queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// It was made for the redirection.
    Ours,
    /// It was there before.
    Found,
}

/// `struct tcmsg`.
fn fixed(link: u32, handle: u32, parent: u32, info: u32) -> [u8; FIXED] {
    let mut bytes = [0; FIXED];
    for (place, value) in [(4, link), (8, handle), (12, parent), (16, info)] {
        bytes[place..place + 4].copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}

/// `tcm_info` of the filter: its priority, and `ETH_P_ALL` in network order.
fn place() -> u32 {
    let protocol = u16::try_from(libc::ETH_P_ALL).unwrap_or_default();
    PRIORITY << 16 | u32::from(protocol.to_be())
}

/// Sends what comes in by `from` out by `to`. Nothing is left when that fails.
pub fn add(socket: &Socket, from: u32, to: u32) -> Result<Queue, Error> {
    let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut queue = Message::new(libc::RTM_NEWQDISC, flags, &fixed(from, INGRESS, INGRESS_PARENT, 0));
    queue.add_text(KIND, "ingress");
    let owner = match socket.request(queue) {
        Ok(()) => Queue::Ours,
        Err(Error { errno: Errno::EEXIST, .. }) => Queue::Found,
        Err(error) => return Err(error),
    };
    let mut filter = Message::new(libc::RTM_NEWTFILTER, flags, &fixed(from, 0, INGRESS, place()));
    filter.add_text(KIND, "u32").nest(OPTIONS, |options| {
        options.add(U32_SELECTION, &match_everything()).nest(U32_ACTION, |actions| {
            actions.nest(1, |action| {
                action.add_text(ACTION_KIND, "mirred").nest(ACTION_OPTIONS, |options| {
                    options.add(MIRRED_PARAMETERS, &send_out(to));
                });
            });
        });
    });
    socket.request(filter).inspect_err(|_| {
        // The first error is the one to report.
        let _ = remove(socket, from, owner);
    })?;
    Ok(owner)
}

/// Ends a redirection. One that is not there any more, or whose link is gone, is as good.
pub fn remove(socket: &Socket, from: u32, queue: Queue) -> Result<(), Error> {
    let message = match queue {
        Queue::Ours => {
            let mut message =
                Message::new(libc::RTM_DELQDISC, libc::NLM_F_ACK, &fixed(from, INGRESS, INGRESS_PARENT, 0));
            message.add_text(KIND, "ingress");
            message
        }
        Queue::Found => {
            let mut message =
                Message::new(libc::RTM_DELTFILTER, libc::NLM_F_ACK, &fixed(from, 0, INGRESS, place()));
            message.add_text(KIND, "u32");
            message
        }
    };
    gone_is_good(socket.request(message))
}

fn gone_is_good(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error { errno: Errno::ENOENT | Errno::ENODEV | Errno::EINVAL, .. }) => Ok(()),
        result => result,
    }
}

/// The links that have an ingress queue.
pub fn queues(socket: &Socket) -> Result<Vec<u32>, Error> {
    let message = Message::new(libc::RTM_GETQDISC, libc::NLM_F_DUMP, &fixed(0, 0, 0, 0));
    socket.list(&message, |body| {
        let kind = text(find(body.get(FIXED..)?, KIND)?);
        (kind == "ingress" || kind == "clsact").then_some(u32_at(body, 4)?)
    })
}

/// Takes away what is left of redirections by `from` whose other end is gone, or that were broken off half made. What others
/// have put into the queue stays, and so does a queue that was found.
pub fn sweep(socket: &Socket, from: u32, queue: Queue) -> Result<(), Error> {
    let message = Message::new(libc::RTM_GETTFILTER, libc::NLM_F_DUMP, &fixed(from, 0, INGRESS, 0));
    let filters = socket.list(&message, Filter::parse)?;
    let (dead, alive): (Vec<_>, Vec<_>) = filters.iter().partition(|filter| filter.is_ours_and_dead());
    let is_shared = alive.iter().any(|filter| filter.info == place());
    for filter in dead {
        // Without a handle the whole place is given up.
        let handle = if is_shared { filter.handle } else { 0 };
        let fixed = fixed(from, handle, INGRESS, filter.info);
        let mut message = Message::new(libc::RTM_DELTFILTER, libc::NLM_F_ACK, &fixed);
        message.add_text(KIND, "u32");
        gone_is_good(socket.request(message))?;
    }
    if queue == Queue::Ours && alive.is_empty() { remove(socket, from, Queue::Ours) } else { Ok(()) }
}

/// A filter in an ingress queue; the tables that a u32 filter brings along are not.
struct Filter {
    handle: u32,
    /// Priority and protocol.
    info: u32,
    /// The number of the link that it redirects to, where it does that; 0 is one that is gone.
    target: Option<u32>,
}

impl Filter {
    fn parse(body: &[u8]) -> Option<Self> {
        let attributes = body.get(FIXED..)?;
        let options = find(attributes, OPTIONS).unwrap_or_default();
        if text(find(attributes, KIND)?) == "u32" && find(options, U32_SELECTION).is_none() {
            return None;
        }
        // The first and only action of ours.
        let action = find(options, U32_ACTION).and_then(|actions| find(actions, 1));
        let parameters = action
            .filter(|action| find(action, ACTION_KIND).is_some_and(|kind| text(kind) == "mirred"))
            .and_then(|action| find(find(action, ACTION_OPTIONS)?, MIRRED_PARAMETERS));
        let target = parameters.and_then(|parameters| u32_at(parameters, MIRRED_LINK));
        Some(Self { handle: u32_at(body, 8)?, info: u32_at(body, 16)?, target })
    }

    fn is_ours_and_dead(&self) -> bool {
        self.info == place() && self.target == Some(0)
    }
}

fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// `struct tc_u32_sel` with one `struct tc_u32_key` whose mask is empty.
fn match_everything() -> [u8; 32] {
    let mut selection = [0; 32];
    selection[0] = TERMINAL;
    // nkeys
    selection[2] = 1;
    selection
}

/// `struct tc_mirred`: five numbers of `tc_gen`, of which the third is what becomes of the frame, then what to do and where.
fn send_out(to: u32) -> Vec<u8> {
    [0, 0, STOLEN, 0, 0, SEND_OUT, to].iter().flat_map(|number| number.to_ne_bytes()).collect()
}
