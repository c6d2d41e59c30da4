//! The network of a container that `hull run` makes: a namespace by the CNI plugins, and the files that speak of it.
//!
//! What has been made is written down in the bundle before it is made ([`Attachment`] in `network.json`), so that it can be
//! given back whoever dies. It is given back by the shim, which runs [`release`] as the container's poststop hook, and by
//! every command that removes the bundle.

mod cni;
mod files;
mod flags;
mod namespace;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hull_shim::record::Record;

pub use cni::{Attachment, CniError, available};
pub use files::FILES;
pub use flags::{Network, NetworkArgs};

use cni::Mapping;
use files::Dns;

/// The hidden command that gives a network back.
pub const RELEASE: &str = "release-network";
/// Where systemd-resolved says which servers it asks itself.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Why a container has no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The plugins.
    #[error(transparent)]
    Cni(#[from] CniError),
    /// Only root can make one.
    #[error("a network needs root: run hull as root, or use --network none")]
    NotRoot,
    /// `-p` where nothing can come in.
    #[error("-p needs a network that hull makes: use --network bridge")]
    Publish,
    /// A file or a namespace.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The record of what was made.
    #[error(transparent)]
    Record(#[from] hull_shim::record::RecordError),
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let what = what.into();
    move |source| NetworkError::Io { what, source }
}

impl Record for Attachment {
    const FILE: &'static str = "network.json";
}

/// What a container gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// Its loopback.
    None,
    /// What is in this namespace.
    Namespace(PathBuf),
    /// A bridge.
    Bridge(Box<cni::Network>),
}

/// Decides before anything is made. What was asked for and cannot be had is an error; what was not asked for is left out.
pub fn plan(args: &NetworkArgs) -> Result<Plan, NetworkError> {
    let is_root = nix::unistd::geteuid().is_root();
    let bridge = || Ok(Plan::Bridge(Box::new(cni::Network::find()?)));
    match &args.network {
        Some(Network::None | Network::Namespace(_)) if !args.publish.is_empty() => Err(NetworkError::Publish),
        Some(Network::None) => Ok(Plan::None),
        Some(Network::Namespace(path)) => Ok(Plan::Namespace(path.clone())),
        Some(Network::Bridge) if !is_root => Err(NetworkError::NotRoot),
        None if !is_root && !args.publish.is_empty() => Err(NetworkError::NotRoot),
        None if args.publish.is_empty() && (!is_root || available().is_err()) => Ok(Plan::None),
        Some(Network::Bridge) | None => available().map_err(Into::into).and_then(|()| bridge()),
    }
}

impl Plan {
    /// The path of the namespace, where it has one by a name.
    pub fn namespace(&self, id: &str) -> Option<PathBuf> {
        match self {
            Self::None => None,
            Self::Namespace(path) => Some(path.clone()),
            Self::Bridge(_) => Some(namespace::path(id)),
        }
    }

    /// Makes the network, and the files for it in the bundle. After an error the caller releases it.
    pub fn set_up(
        &self,
        bundle: &Path,
        id: &str,
        hostname: &str,
        args: &NetworkArgs,
    ) -> Result<(), NetworkError> {
        let (addresses, gateway) = match self {
            Self::None | Self::Namespace(_) => (Vec::new(), None),
            Self::Bridge(network) => {
                let attachment = attach(network, bundle, id, args)?;
                (attachment.addresses(), attachment.gateway())
            }
        };
        write_files(bundle, hostname, &addresses, gateway, args)
    }
}

fn attach(
    network: &cni::Network,
    bundle: &Path,
    id: &str,
    args: &NetworkArgs,
) -> Result<Attachment, NetworkError> {
    let ports = args.publish.iter().flat_map(|flag| &flag.0).map(Mapping::of).collect::<io::Result<Vec<_>>>();
    let mut attachment = Attachment {
        id: id.to_owned(),
        namespace: namespace::path(id),
        network: network.clone(),
        ports: ports.map_err(failed("find a free port"))?,
        result: serde_json::Value::Null,
    };
    // Before it is made: whoever comes after us must know of it.
    attachment.write(bundle)?;
    let path = &attachment.namespace;
    namespace::make(path).map_err(failed(format!("make the network namespace {}", path.display())))?;
    attachment.add()?;
    attachment.write(bundle)?;
    Ok(attachment)
}

fn write_files(
    bundle: &Path,
    hostname: &str,
    addresses: &[IpAddr],
    gateway: Option<IpAddr>,
    args: &NetworkArgs,
) -> Result<(), NetworkError> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut host = read(RESOLV_CONF);
    if host.contains("127.0.0.53") {
        let real = read(RESOLVED);
        host = if real.is_empty() { host } else { real };
    }
    let dns = Dns { servers: &args.dns, search: &args.dns_search, options: &args.dns_option };
    let contents = [
        files::hosts(hostname, addresses, &args.add_host, gateway),
        format!("{hostname}\n"),
        files::resolv_conf(&host, dns),
    ];
    for ((name, _), content) in FILES.iter().zip(contents) {
        let path = bundle.join(name);
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&path);
        file.and_then(|mut file| io::Write::write_all(&mut file, content.as_bytes()))
            .map_err(failed(format!("write {}", path.display())))?;
    }
    Ok(())
}

/// Gives back what was made for a bundle. Nothing made, or given back already, is no error.
pub fn release(bundle: &Path) -> Result<(), NetworkError> {
    let Some(attachment) = Attachment::read(bundle)? else { return Ok(()) };
    let taken = attachment.remove();
    let path = &attachment.namespace;
    namespace::remove(path).map_err(failed(format!("remove the network namespace {}", path.display())))?;
    taken?;
    match fs::remove_file(bundle.join(Attachment::FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("forget the network")(error)),
        _ => Ok(()),
    }
}

/// What a container has, for `ps` and `inspect`; `None` for nothing of Hull's making.
pub fn attachment(bundle: &Path) -> Option<Attachment> {
    Attachment::read(bundle).ok().flatten()
}

impl Attachment {
    /// docker's column: `0.0.0.0:8080->80/tcp`.
    pub fn ports_column(&self) -> String {
        let port = |mapping: &Mapping| {
            let address = mapping.host_ip.map_or_else(
                || "0.0.0.0".to_owned(),
                |address| match address {
                    IpAddr::V4(address) => address.to_string(),
                    IpAddr::V6(address) => format!("[{address}]"),
                },
            );
            format!(
                "{address}:{}->{}/{}",
                mapping.host_port,
                mapping.container_port,
                mapping.protocol.as_str()
            )
        };
        self.ports.iter().map(port).collect::<Vec<_>>().join(", ")
    }

    /// docker's `NetworkSettings`.
    pub fn settings(&self) -> serde_json::Value {
        let addresses = self.addresses();
        let first =
            |v4: bool| addresses.iter().find(|address| address.is_ipv4() == v4).map(ToString::to_string);
        let mut ports = serde_json::Map::new();
        for mapping in &self.ports {
            let key = format!("{}/{}", mapping.container_port, mapping.protocol.as_str());
            let host = serde_json::json!({
                "HostIp": mapping.host_ip.map_or_else(|| "0.0.0.0".to_owned(), |address| address.to_string()),
                "HostPort": mapping.host_port.to_string(),
            });
            if let Some(list) = ports.entry(key).or_insert_with(|| serde_json::json!([])).as_array_mut() {
                list.push(host);
            }
        }
        serde_json::json!({
            "SandboxKey": self.namespace,
            "IPAddress": first(true).unwrap_or_default(),
            "GlobalIPv6Address": first(false).unwrap_or_default(),
            "Gateway": self.gateway().map(|gateway| gateway.to_string()).unwrap_or_default(),
            "Ports": ports,
        })
    }
}
