//! The Container Network Interface (CNI specification 1.0): a list of plugins, run one after the other, each given what the
//! one before it has made.

use std::fs;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::flags::{Port, Protocol};

/// Where plugins are: the specification's place, and Debian's.
const FOLDERS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];
/// Whose first `*.conflist` replaces the built-in network.
const CONFIGURATIONS: &str = "/etc/hull/net.d";
/// What the built-in network needs.
const NEEDED: [&str; 3] = ["bridge", "host-local", "portmap"];
const VERSION: &str = "1.0.0";
/// The interface's name in the container.
const INTERFACE: &str = "eth0";
/// The longest answer of a plugin, in bytes.
const ANSWER_MAX: u64 = 1 << 20;

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// A plugin is not installed.
    #[error(
        "the CNI plugin {0} is neither in /opt/cni/bin nor in /usr/lib/cni: install it (Debian and Ubuntu: apt install containernetworking-plugins iptables), or use --network none"
    )]
    Missing(String),
    /// A configuration.
    #[error("the network configuration {path} cannot be used: {reason}", path = path.display())]
    Configuration {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A plugin could not be run.
    #[error("the CNI plugin {plugin} cannot be run: {source}")]
    Run {
        /// Its name.
        plugin: String,
        /// Why.
        source: io::Error,
    },
    /// A plugin refused.
    #[error("the CNI plugin {plugin} failed: {message}")]
    Failed {
        /// Its name.
        plugin: String,
        /// In its words.
        message: String,
    },
}

/// A network: a list of plugins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Its name.
    name: String,
    /// The plugins' configurations.
    plugins: Vec<Map<String, Value>>,
}

/// A published port, as the plugins take it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mapping {
    /// The host's port.
    pub host_port: u16,
    /// The container's.
    pub container_port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// The host's address.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

/// To whom a network is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// The container's id.
    pub id: String,
    /// Its namespace.
    pub namespace: PathBuf,
    /// The network.
    pub network: Network,
    /// Its ports.
    pub ports: Vec<Mapping>,
    /// What the last plugin answered; needed to take it away.
    #[serde(default)]
    pub result: Value,
}

/// Whether the built-in network can be had.
pub fn available() -> Result<(), CniError> {
    NEEDED.iter().try_for_each(|name| plugin(name).map(drop))
}

fn plugin(name: &str) -> Result<PathBuf, CniError> {
    // A name, not a way out of the folder.
    let found = FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file());
    found
        .filter(|_| !name.contains('/') && !name.is_empty())
        .ok_or_else(|| CniError::Missing(name.to_owned()))
}

impl Network {
    /// The administrator's network, or the built-in one.
    pub fn find() -> Result<Self, CniError> {
        let mut files: Vec<PathBuf> = fs::read_dir(CONFIGURATIONS)
            .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
            .unwrap_or_default();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "conflist"));
        files.sort();
        match files.into_iter().next() {
            Some(path) => Self::read(&path),
            None => Ok(Self::built_in(has_ipv6(), plugin("firewall").is_ok())),
        }
    }

    fn read(path: &Path) -> Result<Self, CniError> {
        let unusable = |reason: String| CniError::Configuration { path: path.to_owned(), reason };
        let bytes = fs::read(path).map_err(|error| unusable(error.to_string()))?;
        let network: Self = serde_json::from_slice(&bytes).map_err(|error| unusable(error.to_string()))?;
        if network.plugins.is_empty() {
            return Err(unusable("it has no plugins".to_owned()));
        }
        Ok(network)
    }

    /// A bridge with masquerading, addresses from a range of its own, and published ports.
    fn built_in(ipv6: bool, firewall: bool) -> Self {
        let mut ranges = vec![json!([{"subnet": "10.87.0.0/16"}])];
        let mut routes = vec![json!({"dst": "0.0.0.0/0"})];
        if ipv6 {
            ranges.push(json!([{"subnet": "fd87:6875:6c6c::/64"}]));
            routes.push(json!({"dst": "::/0"}));
        }
        let mut plugins = vec![
            json!({
                "type": "bridge", "bridge": "hull0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                "ipam": {"type": "host-local", "dataDir": "/run/hull-networks", "ranges": ranges, "routes": routes},
            }),
            json!({"type": "portmap", "capabilities": {"portMappings": true}}),
        ];
        if firewall {
            plugins.push(json!({"type": "firewall"}));
        }
        let plugins = plugins.into_iter().filter_map(|plugin| plugin.as_object().cloned()).collect();
        Self { name: "hull".to_owned(), plugins }
    }
}

fn has_ipv6() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6").is_ok_and(|text| text.trim() == "0")
}

impl Mapping {
    /// Chooses a port of the host where the user left it open. Another process may be faster; then the start fails.
    pub fn of(port: &Port) -> io::Result<Self> {
        let host_port = match port.host {
            Some(port) => port,
            None => {
                let address = port.address.unwrap_or(IpAddr::from([0, 0, 0, 0]));
                std::net::TcpListener::bind((address, 0))?.local_addr()?.port()
            }
        };
        let host_ip = port.address.filter(|address| !address.is_unspecified());
        Ok(Self { host_port, container_port: port.container, protocol: port.protocol, host_ip })
    }
}

impl Attachment {
    /// Runs the plugins. When one fails, what the others did is to be taken away by [`remove`](Self::remove).
    pub fn add(&mut self) -> Result<(), CniError> {
        let mut previous = Value::Null;
        for configuration in self.plugins() {
            previous = self.run("ADD", configuration, &previous)?;
        }
        self.result = previous;
        Ok(())
    }

    /// Runs the plugins backwards. All of them are run; the first error is reported.
    pub fn remove(&self) -> Result<(), CniError> {
        let mut first = Ok(());
        for configuration in self.plugins().into_iter().rev() {
            let removed = self.run("DEL", configuration, &self.result).map(drop);
            first = first.and(removed);
        }
        first
    }

    /// A plugin that is there for ports has nothing to do without any.
    fn plugins(&self) -> Vec<&Map<String, Value>> {
        let idle = |plugin: &&Map<String, Value>| {
            self.ports.is_empty() && plugin.get("type").is_some_and(|kind| kind == "portmap")
        };
        self.network.plugins.iter().filter(|plugin| !idle(plugin)).collect()
    }

    fn run(
        &self,
        command: &str,
        configuration: &Map<String, Value>,
        previous: &Value,
    ) -> Result<Value, CniError> {
        let name = configuration.get("type").and_then(Value::as_str).unwrap_or_default();
        let path = plugin(name)?;
        let mut input = configuration.clone();
        let wants =
            |capability: &str| configuration.get("capabilities").is_some_and(|all| all[capability] == true);
        if wants("portMappings") {
            input.insert("runtimeConfig".to_owned(), json!({ "portMappings": self.ports }));
        }
        input.remove("capabilities");
        input.insert("cniVersion".to_owned(), VERSION.into());
        input.insert("name".to_owned(), self.network.name.clone().into());
        if !previous.is_null() {
            input.insert("prevResult".to_owned(), previous.clone());
        }
        let failed = |source| CniError::Run { plugin: name.to_owned(), source };
        let namespace = super::namespace::exists(&self.namespace);
        let mut child = Command::new(&path)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.id)
            .env("CNI_NETNS", if namespace { self.namespace.as_os_str() } else { "".as_ref() })
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_PATH", FOLDERS.join(":"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(Value::Object(input).to_string().as_bytes()) {
                // It says why on its output.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(failed(error)),
                _ => {}
            }
        }
        let mut answer = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(ANSWER_MAX).read_to_end(&mut answer).map_err(failed)?;
        }
        let status = child.wait().map_err(failed)?;
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        if status.success() {
            return Ok(answer);
        }
        let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        let message: String = format!("{} {}", text("msg"), text("details"));
        let message = if message.trim().is_empty() { status.to_string() } else { message.trim().to_owned() };
        Err(CniError::Failed { plugin: name.to_owned(), message })
    }

    /// The container's addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let ips = self.result["ips"].as_array().into_iter().flatten();
        ips.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok()).collect()
    }

    /// The first way out, which is the host's own address where the host is the gateway.
    pub fn gateway(&self) -> Option<IpAddr> {
        let mut ips = self.result["ips"].as_array().into_iter().flatten();
        ips.find_map(|ip| ip["gateway"].as_str()?.parse().ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_network_is_whole() {
        let network = Network::built_in(true, true);
        let kinds: Vec<_> = network.plugins.iter().map(|plugin| plugin["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["bridge", "portmap", "firewall"]);
        assert_eq!(network.plugins[0]["ipam"]["ranges"].as_array().unwrap().len(), 2);
        assert_eq!(Network::built_in(false, false).plugins.len(), 2);
    }

    #[test]
    fn results_are_read() {
        let result = json!({"ips": [
            {"address": "10.87.0.2/16", "gateway": "10.87.0.1"}, {"address": "fd87::2/64"}, {"address": "x"}
        ]});
        let attachment = Attachment {
            id: "c".into(),
            namespace: "/run/netns/none".into(),
            network: Network::built_in(false, false),
            ports: Vec::new(),
            result,
        };
        assert_eq!(attachment.addresses().len(), 2);
        assert_eq!(attachment.gateway(), Some("10.87.0.1".parse().unwrap()));
        assert_eq!(attachment.plugins().len(), 1, "no ports, no portmap");
    }

    #[test]
    fn a_missing_plugin_is_named_with_its_package() {
        for name in ["no-such-plugin", "../bin/sh", ""] {
            let error = plugin(name).unwrap_err().to_string();
            assert!(error.contains("containernetworking-plugins"), "{error}");
        }
    }

    #[test]
    fn mappings_are_what_plugins_take() {
        let mapping = Mapping {
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Tcp,
            host_ip: Some("127.0.0.1".parse().unwrap()),
        };
        let json = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"});
        assert_eq!(serde_json::to_value(mapping).unwrap(), json);
        let free = Port { address: None, host: None, container: 80, protocol: Protocol::Tcp };
        assert_ne!(Mapping::of(&free).unwrap().host_port, 0);
    }
}
