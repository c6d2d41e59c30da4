use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;

use proptest::prelude::*;

use super::*;

#[test]
fn a_name_is_one_component() {
    for good in [&b"a"[..], b"...", b".x", b" ", b"\xff\xfe", &[b'n'; NAME_MAX]] {
        assert_eq!(Name::new(good).unwrap().as_bytes(), good);
    }
    for bad in [&b""[..], b".", b"..", b"/", b"a/b", b"../x", b"/etc", b"a\0", b"\0"] {
        assert_eq!(Name::new(bad), Err(InvalidName::NotAComponent), "{bad:?}");
    }
    assert_eq!(Name::new(&[b'n'; NAME_MAX + 1]), Err(InvalidName::TooLong));
}

/// A monitor that was taken over encodes whatever it likes.
#[test]
fn a_name_that_is_a_path_cannot_be_decoded() {
    #[derive(Serialize)]
    enum Forged {
        #[allow(dead_code)]
        Init {
            version: u32,
        },
        Lookup {
            parent: NodeId,
            name: Bytes,
        },
    }
    let forge = |name: &[u8]| {
        let forged = Forged::Lookup { parent: ROOT, name: Bytes(name.to_vec()) };
        postcard::from_bytes::<Request>(&postcard::to_allocvec(&forged).unwrap())
    };
    assert_eq!(forge(b"ok").unwrap(), Request::Lookup { parent: ROOT, name: Name::new(b"ok").unwrap() });
    for bad in [&b""[..], b"..", b"/etc/passwd", b"a/../..", b"a\0b", &[b'n'; 256]] {
        assert!(forge(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn messages_and_descriptors_arrive() {
    let (a, mut b) = BrokerChannel::pair().unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    a.send(&Reply::Opened(HandleId(7)), Some(writer.as_fd())).unwrap();
    drop(writer);
    let (reply, fd) = b.receive::<Reply>().unwrap();
    assert_eq!(reply, Reply::Opened(HandleId(7)));
    File::from(fd.unwrap()).write_all(b"x").unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "x");
    drop(a);
    assert!(matches!(b.receive::<Reply>(), Err(ChannelError::Closed)));
}

#[test]
fn what_is_no_message_is_refused_and_its_descriptor_is_closed() {
    let (a, mut b) = BrokerChannel::pair().unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    a.send_bytes(b"\xff nonsense", Some(writer.as_fd())).unwrap();
    drop(writer);
    assert!(matches!(b.receive::<Request>(), Err(ChannelError::Malformed)));
    // Our copy of the write end was the last one: the pipe is at its end.
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    let trailing = [postcard::to_allocvec(&Reply::Done).unwrap(), vec![0]].concat();
    a.send_bytes(&trailing, None).unwrap();
    assert!(matches!(b.receive::<Reply>(), Err(ChannelError::Malformed)));
    a.send_bytes(&vec![0; MESSAGE_MAX + 1], None).unwrap();
    assert!(matches!(b.receive::<Reply>(), Err(ChannelError::TooLarge)));
}

#[test]
fn the_longest_data_fits() {
    let (a, mut b) = BrokerChannel::pair().unwrap();
    let reply = Reply::Data(Bytes(vec![7; DATA_MAX]));
    a.send(&reply, None).unwrap();
    assert_eq!(b.receive::<Reply>().unwrap().0, reply);
}

proptest! {
    /// Neither end believes the other: no bytes make the decoder panic or allocate more than they are long.
    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(request) = postcard::from_bytes::<Request>(&bytes) {
            let short = postcard::to_allocvec(&request).unwrap().len() <= bytes.len();
            prop_assert!(short, "more was decoded than there was");
        }
        if let Ok(reply) = postcard::from_bytes::<Reply>(&bytes) {
            let short = postcard::to_allocvec(&reply).unwrap().len() <= bytes.len();
            prop_assert!(short, "more was decoded than there was");
        }
    }
}
