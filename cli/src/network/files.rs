//! What a container finds in /etc/hosts, /etc/hostname and /etc/resolv.conf.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::flags::Host;

/// The files in the bundle, and where they are in the container.
pub const FILES: [(&str, &str); 3] =
    [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")];

/// What every machine knows, as docker writes it.
const LOCAL: &str = "127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
";
/// Asked where the host itself has no server that a container could reach; docker's choice.
const PUBLIC: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

/// /etc/hosts. A name for the host's own address is left out where there is no way to it.
pub fn hosts(hostname: &str, addresses: &[IpAddr], extra: &[Host], gateway: Option<IpAddr>) -> String {
    let mut text = LOCAL.to_owned();
    let known = extra.iter().filter_map(|host| Some((host.address.or(gateway)?, host.name.as_str())));
    for (address, name) in known.chain(addresses.iter().map(|address| (*address, hostname))) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{address}\t{name}");
    }
    text
}

/// What of DNS was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Dns<'a> {
    /// `--dns`.
    pub servers: &'a [IpAddr],
    /// `--dns-search`.
    pub search: &'a [String],
    /// `--dns-option`.
    pub options: &'a [String],
}

/// /etc/resolv.conf: what was asked for, and for the rest the host's. A server on the host's loopback is none to the container.
pub fn resolv_conf(host: &str, dns: Dns<'_>) -> String {
    let of_host = |keyword: &str| {
        let lines = host.lines().filter_map(|line| line.strip_prefix(keyword));
        lines
            .filter(|rest| rest.starts_with([' ', '\t']))
            .map(|rest| rest.trim().to_owned())
            .collect::<Vec<_>>()
    };
    let mut servers: Vec<String> = dns.servers.iter().map(ToString::to_string).collect();
    if servers.is_empty() {
        servers = of_host("nameserver");
        servers.retain(|server| server.parse::<IpAddr>().is_ok_and(|address| !address.is_loopback()));
    }
    if servers.is_empty() {
        servers = PUBLIC.map(str::to_owned).into();
    }
    let search = if dns.search.is_empty() { of_host("search") } else { vec![dns.search.join(" ")] };
    let options = if dns.options.is_empty() { of_host("options") } else { vec![dns.options.join(" ")] };
    let mut text = String::new();
    let lines = [("search", search), ("nameserver", servers), ("options", options)];
    for (keyword, value) in
        lines.iter().flat_map(|(keyword, values)| values.iter().map(move |v| (keyword, v)))
    {
        // Writing to a string cannot fail. A line of its own is what nobody may smuggle in.
        let _ = writeln!(text, "{keyword} {}", value.replace(['\n', '\r'], " "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_know_themselves_and_what_they_are_told() {
        let extra = ["db:10.0.0.9".parse().unwrap(), "outside:host-gateway".parse().unwrap()];
        let text = hosts("box", &["10.87.0.2".parse().unwrap()], &extra, Some("10.87.0.1".parse().unwrap()));
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("10.0.0.9\tdb\n10.87.0.1\toutside\n10.87.0.2\tbox\n"), "{text}");
        assert!(!hosts("box", &[], &extra, None).contains("outside"));
    }

    #[test]
    fn dns_is_the_hosts_unless_told_otherwise() {
        let host =
            "# comment\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nsearch example.org\noptions edns0\n";
        let none = Dns { servers: &[], search: &[], options: &[] };
        assert_eq!(resolv_conf(host, none), "search example.org\nnameserver 192.0.2.1\noptions edns0\n");
        assert_eq!(resolv_conf("nameserver ::1\n", none), "nameserver 8.8.8.8\nnameserver 8.8.4.4\n");
        let search = ["a\nnameserver 6.6.6.6".to_owned()];
        let told = Dns { servers: &["192.0.2.7".parse().unwrap()], search: &search, options: &[] };
        assert_eq!(resolv_conf("", told), "search a nameserver 6.6.6.6\nnameserver 192.0.2.7\n");
    }
}
