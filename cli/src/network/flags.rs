//! The flags of `run` that are about the network, as docker spells them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use serde::{Deserialize, Serialize};

/// The most ports that one range may have.
const RANGE_MAX: u32 = 1024;

/// Why such a flag is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// `--network`.
    #[error("{0:?} is no network: known are none, bridge and ns:PATH")]
    Network(String),
    /// `--network host`.
    #[error("a VM cannot be in the host's network: use bridge, and -p for what the host shall reach")]
    Host,
    /// `-p`.
    #[error("expected [[IP:]HOST:]CONTAINER[/PROTOCOL], for example 8080:80 or 127.0.0.1:5353:53/udp")]
    Publish,
    /// A range of ports.
    #[error("the ranges of ports must have the same length, at most 1024")]
    Range,
    /// `--add-host`.
    #[error("expected NAME:IP or NAME:host-gateway")]
    AddHost,
}

/// The flags.
#[derive(Debug, Clone, Default, Args)]
pub struct NetworkArgs {
    /// The network: none, bridge, or ns:PATH for a namespace that is there [default: bridge where the CNI plugins are]
    #[arg(long, visible_alias = "net", value_name = "NETWORK", env = "HULL_NETWORK")]
    pub network: Option<Network>,
    /// Make a port of the container reachable by one of the host: [[IP:]HOST:]CONTAINER[/PROTOCOL]
    #[arg(short, long, value_name = "PORTS")]
    pub publish: Vec<PublishFlag>,
    /// A name that the container shall know: NAME:IP, or NAME:host-gateway
    #[arg(long, value_name = "NAME:IP")]
    pub add_host: Vec<Host>,
    /// A DNS server, instead of the host's
    #[arg(long, value_name = "IP")]
    pub dns: Vec<IpAddr>,
    /// A domain that DNS names are looked for in
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,
    /// An option for resolv.conf
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    pub dns_option: Vec<String>,
}

/// `--network`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// Nothing but the loopback.
    None,
    /// A bridge of the host, by the CNI plugins.
    Bridge,
    /// What somebody has set up in this namespace.
    Namespace(PathBuf),
}

impl FromStr for Network {
    type Err = FlagError;

    fn from_str(text: &str) -> Result<Self, FlagError> {
        match text {
            "none" => Ok(Self::None),
            "bridge" | "default" => Ok(Self::Bridge),
            "host" => Err(FlagError::Host),
            other => match other.strip_prefix("ns:").filter(|path| path.starts_with('/')) {
                Some(path) => Ok(Self::Namespace(PathBuf::from(path))),
                None => Err(FlagError::Network(other.to_owned())),
            },
        }
    }
}

/// TCP, UDP or SCTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// The host's address; all of them where there is none.
    pub address: Option<IpAddr>,
    /// The host's port; one that is free where there is none.
    pub host: Option<u16>,
    /// The container's port.
    pub container: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// `-p`: one port, or a range of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishFlag(pub Vec<Port>);

impl FromStr for PublishFlag {
    type Err = FlagError;

    fn from_str(text: &str) -> Result<Self, FlagError> {
        let (ports, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some((ports, "sctp")) => (ports, Protocol::Sctp),
            Some(_) => return Err(FlagError::Publish),
        };
        let (rest, container) =
            ports.rsplit_once(':').map_or((None, ports), |(rest, port)| (Some(rest), port));
        let container = range(container)?;
        let (address, host) = match rest {
            None => (None, None),
            Some(rest) => match rest.rsplit_once(':') {
                None => (None, Some(range(rest)?)),
                Some((address, host)) => {
                    let address =
                        address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
                    let host = if host.is_empty() { None } else { Some(range(host)?) };
                    (Some(address.parse().map_err(|_| FlagError::Publish)?), host)
                }
            },
        };
        if host.as_ref().is_some_and(|host| host.len() != container.len()) {
            return Err(FlagError::Range);
        }
        let ports = container.iter().enumerate().map(|(place, container)| Port {
            address,
            host: host.as_ref().map(|host| host[place]),
            container: *container,
            protocol,
        });
        Ok(Self(ports.collect()))
    }
}

/// `80`, or `80-89`.
fn range(text: &str) -> Result<Vec<u16>, FlagError> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or(FlagError::Publish);
    let Some((first, last)) = text.split_once('-') else { return Ok(vec![port(text)?]) };
    let (first, last) = (port(first)?, port(last)?);
    if last < first || u32::from(last - first) >= RANGE_MAX {
        return Err(FlagError::Range);
    }
    Ok((first..=last).collect())
}

/// `--add-host`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The name.
    pub name: String,
    /// Its address; the host's own, as the container sees it, where there is none.
    pub address: Option<IpAddr>,
}

impl FromStr for Host {
    type Err = FlagError;

    fn from_str(text: &str) -> Result<Self, FlagError> {
        let (name, address) = text.split_once([':', '=']).ok_or(FlagError::AddHost)?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || !name.chars().all(is_name) {
            return Err(FlagError::AddHost);
        }
        let address = match address {
            "host-gateway" => None,
            text => {
                let text = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
                Some(text.parse().map_err(|_| FlagError::AddHost)?)
            }
        };
        Ok(Self { name: name.to_owned(), address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        assert_eq!("none".parse(), Ok(Network::None));
        assert_eq!("bridge".parse(), Ok(Network::Bridge));
        assert_eq!("ns:/run/netns/x".parse(), Ok(Network::Namespace("/run/netns/x".into())));
        assert_eq!("host".parse::<Network>(), Err(FlagError::Host));
        for other in ["", "ns:x", "container:x", "mynet"] {
            assert_eq!(other.parse::<Network>(), Err(FlagError::Network(other.into())));
        }
    }

    #[test]
    fn ports() {
        let port = |address: Option<&str>, host, container, protocol| Port {
            address: address.map(|text| text.parse().unwrap()),
            host,
            container,
            protocol,
        };
        for (text, expected) in [
            ("80", vec![port(None, None, 80, Protocol::Tcp)]),
            ("8080:80", vec![port(None, Some(8080), 80, Protocol::Tcp)]),
            ("127.0.0.1:53:53/udp", vec![port(Some("127.0.0.1"), Some(53), 53, Protocol::Udp)]),
            ("127.0.0.1::80", vec![port(Some("127.0.0.1"), None, 80, Protocol::Tcp)]),
            ("[::1]:80:81", vec![port(Some("::1"), Some(80), 81, Protocol::Tcp)]),
            (
                "8000-8001:80-81",
                vec![port(None, Some(8000), 80, Protocol::Tcp), port(None, Some(8001), 81, Protocol::Tcp)],
            ),
        ] {
            assert_eq!(text.parse(), Ok(PublishFlag(expected)), "{text}");
        }
        for text in ["", "x", "0:80", "80:65536", "a:80:80", "80:80/icmp", ":80"] {
            assert_eq!(text.parse::<PublishFlag>(), Err(FlagError::Publish), "{text}");
        }
        for text in ["8000-8002:80-81", "80-79", "1-2000"] {
            assert_eq!(text.parse::<PublishFlag>(), Err(FlagError::Range), "{text}");
        }
    }

    #[test]
    fn hosts() {
        let host = |name: &str, address: Option<&str>| Host {
            name: name.into(),
            address: address.map(|text| text.parse().unwrap()),
        };
        assert_eq!("db:10.0.0.1".parse(), Ok(host("db", Some("10.0.0.1"))));
        assert_eq!("db:fd00::1".parse(), Ok(host("db", Some("fd00::1"))));
        assert_eq!("db=[::1]".parse(), Ok(host("db", Some("::1"))));
        assert_eq!("host.docker.internal:host-gateway".parse(), Ok(host("host.docker.internal", None)));
        for text in ["", "db", "db:", ":10.0.0.1", "a b:10.0.0.1", "db:x", "a\nb:10.0.0.1"] {
            assert_eq!(text.parse::<Host>(), Err(FlagError::AddHost), "{text:?}");
        }
    }
}
