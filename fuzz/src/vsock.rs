//! The socket device: packets of a guest gone mad, and hosts that come and go meanwhile.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use arbitrary::{Result, Unstructured};
use hull_protocol::vmm::{Channel, PortConnection, VsockConfig};
use hull_vmm::virtio::vsock::Vsock;
use hull_vmm::virtio::vsock::packet::{HEADER_LENGTH, Header, Operation};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tempfile::TempDir;

use crate::Body;
use crate::guest::{Guest, Peer};

const CID: u32 = 3;
/// The port on which the host takes connections from the guest.
const PORT: u32 = 1024;
/// The first port of connections that the host makes.
const FIRST: u32 = 1 << 30;
const STREAMS_MAX: usize = 8;

/// The host's side.
pub struct Host {
    folder: TempDir,
    channel: Channel,
    streams: Vec<UnixStream>,
}

/// A device, and what it talks to.
pub fn socket() -> (Vsock, Host) {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let (channel, theirs) = Channel::pair().unwrap();
    fcntl(&channel, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let config = VsockConfig { guest_cid: CID, guest_to_host_ports: vec![PORT] };
    let device = Vsock::new(&config, OwnedFd::from(listener), vec![theirs.into()]).unwrap();
    (device, Host { folder, channel, streams: Vec::new() })
}

fn header(u: &mut Unstructured<'_>) -> Result<(Header, usize)> {
    let length: u16 = if u.ratio(3, 4)? { u.int_in_range(0..=64)? } else { u.int_in_range(0..=9000)? };
    let lie = u.ratio(1, 16)?;
    let header = Header {
        src_cid: if u.ratio(15, 16)? { CID.into() } else { u.arbitrary()? },
        dst_cid: if u.ratio(15, 16)? { 2 } else { u.arbitrary()? },
        src_port: if u.ratio(15, 16)? { u.int_in_range(0..=3)? } else { u.arbitrary()? },
        dst_port: match u.int_in_range(0..=7)? {
            0 => u.arbitrary()?,
            1..=3 => PORT,
            _ => FIRST + u.int_in_range(0..=3_u32)?,
        },
        len: if lie { u.arbitrary()? } else { length.into() },
        kind: if u.ratio(15, 16)? { 1 } else { u.arbitrary()? },
        op: if u.ratio(15, 16)? { u.int_in_range(0..=8)? } else { u.arbitrary()? },
        flags: if u.ratio(7, 8)? { u.int_in_range(0..=3)? } else { u.arbitrary()? },
        buf_alloc: if u.ratio(3, 4)? { 65536 } else { u.arbitrary()? },
        fwd_cnt: if u.ratio(3, 4)? { 0 } else { u.arbitrary()? },
    };
    Ok((header, length.into()))
}

impl Peer for Host {
    fn message(&mut self, u: &mut Unstructured<'_>, _queue: usize) -> Result<Vec<u8>> {
        let (header, length) = header(u)?;
        let mut packet = header.to_bytes().to_vec();
        packet.resize(HEADER_LENGTH + length, 0x5a);
        Ok(packet)
    }

    fn act(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        match u.int_in_range(0..=5)? {
            0..=1 if self.streams.len() < STREAMS_MAX => {
                if let Ok(mut stream) = UnixStream::connect(self.folder.path().join("s")) {
                    stream.set_nonblocking(true).unwrap();
                    let port = u.int_in_range(0..=3_u8)?;
                    let line = match u.int_in_range(0..=7)? {
                        0 => u.bytes(3)?.to_vec(),
                        1 => format!("CONNECT {}\n", u.arbitrary::<u64>()?).into_bytes(),
                        _ => format!("CONNECT {port}\n").into_bytes(),
                    };
                    stream.write_all(&line).unwrap();
                    self.streams.push(stream);
                }
            }
            2 => drop(self.streams.pop()),
            3 => {
                if let Ok(received) = self.channel.receive::<PortConnection>() {
                    let mut fds = received.unwrap().fds;
                    let stream = UnixStream::from(fds.pop().unwrap());
                    stream.set_nonblocking(true).unwrap();
                    if self.streams.len() < STREAMS_MAX {
                        self.streams.push(stream);
                    }
                }
            }
            _ => {
                let length: u16 = u.int_in_range(0..=5000)?;
                if let Some(stream) = self.streams.last_mut() {
                    // Whether anybody reads is the guest's affair.
                    let _written = stream.write(&vec![1; length.into()]);
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self) {
        self.streams.clear();
        while let Ok(Some(_dropped)) = self.channel.receive::<PortConnection>() {}
    }
}

/// The device.
pub fn device() -> Body {
    let (device, host) = socket();
    let mut guest = Guest::new(Box::new(device), host);
    Box::new(move |input| guest.run(input))
}

/// Headers of packets: what is read is written again as it was.
pub fn packet() -> Body {
    Box::new(|input| {
        let mut bytes = [0; HEADER_LENGTH];
        for (to, from) in bytes.iter_mut().zip(input) {
            *to = *from;
        }
        let header = Header::parse(&bytes);
        assert_eq!(header.to_bytes(), bytes);
        assert_eq!(Header::parse(&header.reset().to_bytes()), header.reset());
        if let Some(operation) = Operation::from_code(header.op) {
            assert_eq!(operation.code(), header.op);
        }
    })
}
