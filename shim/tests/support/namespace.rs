//! A network namespace as CNI makes it. Needs root.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::netns::{self, Holder, Reference};

pub fn run(program: &str, words: &str) -> String {
    attempt(program, words).unwrap_or_else(|error| panic!("{program} {words}: {error}"))
}

/// What a program says, or what it complains of.
fn attempt(program: &str, words: &str) -> Result<String, String> {
    let output = Command::new(program).args(words.split(' ')).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
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

    /// Who holds it besides its name.
    pub fn holders(&self) -> Vec<Reference> {
        let name = format!("net:[{}]", fs::metadata(self.path()).unwrap().ino());
        let mut all = netns::references();
        all.retain(|one| one.namespace == name && !matches!(one.by, Holder::Mount(..)));
        all.into_iter().collect()
    }

    /// Which links there are, and which of them redirect.
    pub fn links(&self) -> String {
        // A tap goes with the last process that has it, which may be ending now.
        const ATTEMPTS: usize = 50;
        let seen = std::iter::repeat_with(|| self.links_at_once()).take(ATTEMPTS).find_map(Result::ok);
        seen.unwrap_or_else(|| self.links_at_once().unwrap())
    }

    /// An error where a link goes while one looks.
    fn links_at_once(&self) -> Result<String, String> {
        let links = self.ip("-o link");
        let names: Vec<_> = links.lines().map(|line| line.split(": ").nth(1).unwrap()).collect();
        let mut redirecting = Vec::new();
        for name in &names {
            let device = name.split('@').next().unwrap();
            let tc = |words: &str| attempt("ip", &format!("netns exec {} tc {words}", self.0));
            let filters = tc(&format!("filter show dev {device} parent ffff:"))?;
            let queues = tc(&format!("qdisc show dev {device}"))?;
            if filters.is_empty() == queues.contains("ingress") {
                return Err(format!("{name}: {filters} {queues}"));
            }
            if filters.contains("Egress Redirect to device") {
                redirecting.push(name);
            }
        }
        Ok(format!("{names:?} {redirecting:?}"))
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
