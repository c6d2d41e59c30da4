//! The name server that docker keeps on the loopback of a namespace, where containers of a network know one another by name.

use std::io;
use std::net::{TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use hull_protocol::agent::resolver::{ADDRESS, PORT};

use super::{Namespace, NetworkError};

/// How long a connection may take to be made: it is to the same kernel.
const CONNECTED_WITHIN: Duration = Duration::from_secs(2);

/// Whether the namespace that this thread has entered has one.
pub fn is_there() -> bool {
    // The thread's own, as it alone has entered the namespace.
    match std::fs::read_to_string("/proc/thread-self/net/udp") {
        Ok(sockets) => is_served(&sockets),
        Err(error) => {
            log::warn!("whether the pod's network has a name server is not known: {error}");
            false
        }
    }
}

/// A socket that is connected to the namespace's name server; it does not block.
///
/// docker's listens on a port of its choice, to which the namespace's own rules lead what is sent to the usual one.
pub async fn name_server(namespace: &Arc<Namespace>) -> Result<UdpSocket, NetworkError> {
    let connect = || {
        let socket = UdpSocket::bind(("127.0.0.1", 0))?;
        socket.connect((ADDRESS, PORT))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    namespace.run(move |_| connect().map_err(failed)).await
}

/// A connection to the namespace's name server; it does not block.
pub async fn name_server_stream(namespace: &Arc<Namespace>) -> Result<TcpStream, NetworkError> {
    let connect = || {
        let stream = TcpStream::connect_timeout(&(ADDRESS, PORT).into(), CONNECTED_WITHIN)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    namespace.run(move |_| connect().map_err(failed)).await
}

fn failed(source: io::Error) -> NetworkError {
    NetworkError::Namespace { what: "connect to the name server in it".to_owned(), source }
}

/// Whether a socket of the kernel's table is bound to the address. Addresses are there as numbers in the machine's order.
fn is_served(sockets: &str) -> bool {
    let address = format!("{:08X}:", u32::from_ne_bytes(ADDRESS.octets()));
    sockets
        .lines()
        .skip(1)
        .any(|line| line.split_whitespace().nth(1).is_some_and(|local| local.starts_with(&address)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_at_the_address_is_one() {
        let heading = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        let line = |address: &str| {
            format!(
                "{heading} 1234: {address} 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 0\n"
            )
        };
        assert!(is_served(&line("0B00007F:A1B2")));
        assert!(!is_served(&line("0100007F:0035")) && !is_served(heading) && !is_served(""));
    }

    #[tokio::test]
    async fn a_namespace_without_one_has_none() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let namespace = Arc::new(Namespace::fresh().await.unwrap());
        assert!(!namespace.run(|_| Ok(is_there())).await.unwrap());
        let serve = || {
            UdpSocket::bind((ADDRESS, PORT))
                .map_err(|source| NetworkError::Namespace { what: String::new(), source })
        };
        let server = namespace.run(move |_| serve()).await.unwrap();
        assert!(namespace.run(|_| Ok(is_there())).await.unwrap());
        let socket = name_server(&namespace).await.unwrap();
        socket.send(b"a question").unwrap();
        let mut buffer = [0; 64];
        let (length, asker) = server.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], asker), (&b"a question"[..], socket.local_addr().unwrap()));
        // By datagrams only, this one.
        assert!(name_server_stream(&namespace).await.is_err());
    }
}
