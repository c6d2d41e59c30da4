//! Which containerd or docker a module of the end-to-end tests runs with: those of this machine's Debian, and later ones that
//! `tests/fixtures/engines` fetches.

use std::path::PathBuf;
use std::process::Command;

use crate::shell::{Error, output, root};

/// How the tests are told where containerd's programs are.
const CONTAINERD: &str = "HULL_CONTAINERD_DIR";

/// Who has packages of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// Debian 13: containerd 1.7, docker 26.
    Trixie,
    /// Debian's unstable: containerd 2.1, docker 28.
    Sid,
    /// Ubuntu 26.04: containerd 2.2.
    Resolute,
    /// Ubuntu 26.10: containerd 2.3, docker 29.
    Stonking,
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Self::Trixie => "trixie",
            Self::Sid => "sid",
            Self::Resolute => "resolute",
            Self::Stonking => "stonking",
        }
    }

    /// Whether the tests can do without: who can reach Debian's archive need not reach Ubuntu's.
    fn may_be_missing(self) -> bool {
        matches!(self, Self::Resolute | Self::Stonking)
    }
}

/// An engine that tests run with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The containerd that is installed.
    Installed,
    /// One that was fetched: how the tests are told, and the folder with its programs.
    Fetched { suite: Suite, variable: &'static str, folder: PathBuf },
}

impl Engine {
    /// What it adds to the name of a job.
    pub fn title(&self) -> String {
        match self {
            Self::Installed => String::new(),
            Self::Fetched { suite, .. } => format!(" ({})", suite.name()),
        }
    }

    /// What the tests find in their environment.
    pub fn variable(&self) -> Option<(&'static str, PathBuf)> {
        match self {
            Self::Installed => None,
            Self::Fetched { variable, folder, .. } => Some((variable, folder.clone())),
        }
    }

    /// Whether it has what this test is about. Where it has not, the test would be one that cannot fail.
    pub fn runs(&self, test: &str) -> bool {
        let has_sandboxes = !matches!(self, Self::Installed | Self::Fetched { suite: Suite::Trixie, .. });
        has_sandboxes || !(test.contains("::by_the_sandbox_api::") || test.starts_with("sandboxes::"))
    }
}

/// The engines that can be had.
#[derive(Debug, Default)]
pub struct Engines {
    /// What is not tested because an engine cannot be had.
    pub left_out: Vec<String>,
    missing: Vec<Suite>,
}

impl Engines {
    /// The engines that a module's tests run with.
    pub fn of(&mut self, module: &str) -> Result<Vec<Engine>, Error> {
        use Suite::{Resolute, Sid, Stonking, Trixie};
        match module {
            "containerd" | "cri" => self.installed_and(module, &[Trixie, Sid, Stonking]),
            "restarts" => self.installed_and(module, &[Trixie, Sid]),
            "cgroups" => {
                let newest = self.newest()?;
                self.installed_and(module, &[Trixie, newest])
            }
            // What lies between the oldest and the newest is much like one of them here.
            "devices" | "kubelet" | "resize" => {
                let newest = self.newest()?;
                self.installed_and(module, &[newest])
            }
            "traces" => self.installed_and(module, &[Sid, Stonking]),
            "sandboxes" => self.fetched(module, CONTAINERD, &[Sid, Stonking]),
            "layers" => match self.fetched(module, CONTAINERD, &[Resolute, Stonking])? {
                none if none.is_empty() => Ok(vec![Engine::Installed]),
                some => Ok(some),
            },
            "docker" => self.fetched(module, "HULL_DOCKER_DIR", &[Trixie, Sid, Stonking]),
            _ => Ok(vec![Engine::Installed]),
        }
    }

    /// Fetches each that can be had.
    pub fn fetch_all(&mut self) {
        for suite in [Suite::Trixie, Suite::Sid, Suite::Resolute, Suite::Stonking] {
            let _ = self.fetch(suite);
        }
    }

    /// The newest that can be had.
    fn newest(&mut self) -> Result<Suite, Error> {
        Ok(if self.fetch(Suite::Stonking)?.is_some() { Suite::Stonking } else { Suite::Sid })
    }

    fn installed_and(&mut self, module: &str, suites: &[Suite]) -> Result<Vec<Engine>, Error> {
        Ok([vec![Engine::Installed], self.fetched(module, CONTAINERD, suites)?].concat())
    }

    fn fetched(
        &mut self,
        module: &str,
        variable: &'static str,
        suites: &[Suite],
    ) -> Result<Vec<Engine>, Error> {
        let mut engines = Vec::new();
        for &suite in suites {
            match self.fetch(suite)? {
                Some(folder) => engines.push(Engine::Fetched { suite, variable, folder }),
                None => self.left_out.push(format!("{module}, {}: it cannot be fetched", suite.name())),
            }
        }
        Ok(engines)
    }

    /// The folder with its programs, fetched unless it is there; `None` if it cannot be had and may be missing.
    fn fetch(&mut self, suite: Suite) -> Result<Option<PathBuf>, Error> {
        if self.missing.contains(&suite) {
            return Ok(None);
        }
        match output(Command::new(root().join("tests/fixtures/engines")).arg(suite.name())) {
            Ok(folder) => Ok(Some(PathBuf::from(folder.trim()).join("bin"))),
            Err(Error::Failed { .. }) if suite.may_be_missing() => {
                self.missing.push(suite);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(suite: Suite) -> Engine {
        Engine::Fetched { suite, variable: CONTAINERD, folder: "/engines/bin".into() }
    }

    #[test]
    fn tests_of_the_sandbox_api_are_left_to_engines_that_have_it() {
        for test in ["sandboxes::pods_of_both_kinds", "cri::by_the_sandbox_api::processes_can_be_shared"] {
            assert!(!Engine::Installed.runs(test) && !of(Suite::Trixie).runs(test));
            assert!(of(Suite::Sid).runs(test) && of(Suite::Stonking).runs(test));
        }
        assert!(Engine::Installed.runs("cri::with_a_pause_container::processes_can_be_shared"));
    }

    #[test]
    fn an_engine_that_cannot_be_had_is_said_to_be_left_out() {
        let mut engines = Engines { missing: vec![Suite::Stonking, Suite::Resolute], ..Engines::default() };
        assert!(matches!(engines.of("layers").unwrap().as_slice(), [Engine::Installed]));
        assert_eq!(
            engines.left_out,
            ["layers, resolute: it cannot be fetched", "layers, stonking: it cannot be fetched"]
        );
    }
}
