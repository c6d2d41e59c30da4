//! The Debian packages that building and testing need, each named in one list with its reason.

use std::fs;
use std::process::{Command, Stdio};

use clap::ValueEnum;

use crate::shell::{Error, at, output, root, run, say};

/// A list of packages beside what needs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum List {
    /// The guest kernel's build.
    Build,
    /// The test host.
    Host,
    /// Peers and fixtures of the tests.
    Tests,
}

impl List {
    fn path(self) -> &'static str {
        match self {
            Self::Build => "guest-kernel/packages",
            Self::Host => "tests/host/packages",
            Self::Tests => "tests/packages",
        }
    }
}

/// Installs what is missing of the lists, of all lists when none is named.
pub fn install(lists: &[List]) -> Result<(), Error> {
    let lists = if lists.is_empty() { List::value_variants() } else { lists };
    let mut missing = Vec::new();
    for list in lists {
        let path = root().join(list.path());
        for package in names(&at(&path, fs::read_to_string(&path))?) {
            if !is_installed(&package)? && !missing.contains(&package) {
                missing.push(package);
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    say(&format!("installing {}", missing.join(" ")));
    if output(Command::new("id").arg("-u"))?.trim() != "0" {
        return Err(Error::Other(format!("not root: install these packages first: {}", missing.join(" "))));
    }
    // The progress of a package manager belongs to stderr: stdout is for what the caller asked for.
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq").args(words);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    };
    run(&mut apt(&["update"]))?;
    run(apt(&["install", "--yes", "--no-install-recommends"]).args(&missing))
}

fn is_installed(package: &str) -> Result<bool, Error> {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .output()
        .map_err(|source| Error::Spawn { program: "dpkg-query".into(), source })?;
    Ok(output.status.success() && output.stdout == b"installed")
}

/// One package a line; `#` begins a comment.
fn names(list: &str) -> Vec<String> {
    list.lines()
        .filter_map(|line| line.split('#').next().and_then(|line| line.split_whitespace().next()))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_not_packages() {
        assert_eq!(names("# why\nflex # lexer\n\n  bc\n"), ["flex", "bc"]);
    }

    #[test]
    fn every_list_exists_and_names_something() {
        for list in List::value_variants() {
            let text = fs::read_to_string(root().join(list.path())).unwrap();
            assert!(!names(&text).is_empty(), "{list:?}");
        }
    }
}
