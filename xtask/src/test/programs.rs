//! Where cargo has put the programs that it built: there is no cargo in the test host's path.

use serde_json::Value;

use crate::shell::{Error, cargo, output};

/// What a cargo command built.
pub struct Programs(Vec<Value>);

impl Programs {
    /// Runs a cargo command that builds.
    pub fn of(build: &[&str]) -> Result<Self, Error> {
        let messages = output(cargo().args(build).args(["--message-format", "json"]))?;
        Ok(Self(messages.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()))
    }

    /// The test programs of all crates: built as the unit tests are, all at once, so that nothing is built twice.
    pub fn of_tests() -> Result<Self, Error> {
        Self::of(&["test", "--workspace", "--all-features", "--no-run"])
    }

    /// The program `name` of the crate in `folder`; of a library, the one of its tests.
    pub fn path(&self, folder: &str, name: &str) -> Result<String, Error> {
        let manifest = format!("/{folder}/Cargo.toml");
        self.0
            .iter()
            .filter(|message| message["target"]["name"] == name)
            .filter(|message| message["manifest_path"].as_str().is_some_and(|path| path.ends_with(&manifest)))
            .find_map(|message| message["executable"].as_str().map(str::to_owned))
            .ok_or_else(|| Error::Other(format!("cargo did not build {name}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_by_its_crate_and_its_name() {
        let message = |name: &str, folder: &str, executable: Option<&str>| {
            serde_json::json!({
                "target": {"name": name}, "manifest_path": format!("/hull/{folder}/Cargo.toml"), "executable": executable,
            })
        };
        let programs = Programs(vec![
            message("network", "shim", Some("/target/shim-network")),
            message("hull_agent", "agent", None),
            message("network", "agent", Some("/target/agent-network")),
            message("hull_agent", "agent", Some("/target/agent-unit")),
        ]);
        assert_eq!(programs.path("agent", "network").unwrap(), "/target/agent-network");
        assert_eq!(programs.path("agent", "hull_agent").unwrap(), "/target/agent-unit");
        assert!(programs.path("vmm", "network").is_err());
    }
}
