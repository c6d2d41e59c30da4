//! A network namespace as CNI makes it. Needs root.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

pub fn run(program: &str, words: &str) -> String {
    let output = Command::new(program).args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "{program} {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A network namespace by a name, as CNI makes it, with an interface that is set up.
pub struct Named(String);

impl Named {
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("hs-{}-{number}-{name}", std::process::id());
        run("ip", &format!("netns add {name}"));
        run("ip", &format!("netns add {name}-far"));
        let named = Self(name);
        named.ip("link set lo up");
        named.ip(&format!("link add eth0 mtu 1450 type veth peer name far netns {}-far", named.0));
        run("ip", &format!("-n {}-far link set far up", named.0));
        for words in ["link set eth0 up", "addr add 10.6.0.2/24 dev eth0"] {
            named.ip(words);
        }
        named
    }

    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    /// Its name, and that of the far end's.
    pub fn names(&self) -> [String; 2] {
        [self.0.clone(), format!("{}-far", self.0)]
    }

    pub fn ip(&self, words: &str) -> String {
        run("ip", &format!("-n {} {words}", self.0))
    }

    /// Which links there are, and which of them redirect.
    pub fn links(&self) -> String {
        let links = self.ip("-o link");
        let names: Vec<_> = links.lines().map(|line| line.split(": ").nth(1).unwrap()).collect();
        let redirects = |name: &&&str| {
            let name = name.split('@').next().unwrap();
            let filters = run("ip", &format!("netns exec {} tc filter show dev {name} parent ffff:", self.0));
            let queues = run("ip", &format!("netns exec {} tc qdisc show dev {name}", self.0));
            assert_eq!(filters.is_empty(), !queues.contains("ingress"), "{filters} {queues}");
            filters.contains("Egress Redirect to device")
        };
        let redirecting: Vec<_> = names.iter().filter(redirects).collect();
        format!("{names:?} {redirecting:?}")
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.remove();
    }
}

impl Named {
    /// Takes it away, if that was not done yet.
    pub fn remove(&self) {
        for name in self.names() {
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}
