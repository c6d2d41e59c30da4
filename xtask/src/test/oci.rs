//! What is run with the agent's command line, the agent alone and a checker inside its containers: the OCI table and its
//! neighbours, and the long run.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use super::jobs::{Job, names_of};
use super::{Place, built, executable};
use crate::shell::{Error, cargo, root, run};
use crate::{build, packages};

/// Rounds of create, start and delete in the long run.
const ROUNDS: u32 = 10_000;

/// The job of `make test`.
pub(super) fn job(place: Place) -> Result<Job, Error> {
    let binary = executable("tests", "oci")?;
    let checker = checker()?;
    let names = names_of(&binary, None)?;
    Ok(Job::tests("the OCI runtime-spec", names, move |names| {
        let mut host = place.host(1200, "3072");
        host.arg("env").arg(format!("HULL_CHECKER={}", checker.display()));
        host.arg(&binary).args(["--test-threads", "1", "--exact"]).args(names);
        host
    }))
}

/// Writes the tables of docs/ that those tests check, with the reference's column.
pub fn tables() -> Result<ExitCode, Error> {
    packages::install(&[])?;
    build::all()?;
    let (binary, checker, docs) = (executable("tests", "oci")?, checker()?, root().join("docs"));
    let mut host = Command::new(root().join("tests/host/run"));
    match Place::find()? {
        Place::Here => host.arg("--native"),
        Place::Emulated => host.args(["--mem", "3072"]).arg("--share").arg(&docs),
    };
    host.args(["--timeout", "1200", "--", "env"]).current_dir(root());
    host.arg(format!("HULL_CHECKER={}", checker.display()));
    host.arg(format!("HULL_WRITE_TABLES={}", docs.display()));
    run(host.arg(binary).args(["--test-threads", "1", "--nocapture"]))?;
    Ok(ExitCode::SUCCESS)
}

/// Thousands of containers, one after the other, from one agent.
pub fn soak() -> Result<ExitCode, Error> {
    packages::install(&[])?;
    let binary = executable("agent", "rounds")?;
    let mut host = Place::find()?.host(7200, "2048");
    run(host.arg("env").arg(format!("HULL_ROUNDS={ROUNDS}")).arg(binary).arg("--nocapture"))?;
    Ok(ExitCode::SUCCESS)
}

/// The agent beside other runtimes.
pub fn bench() -> Result<(), Error> {
    const NAME: &str = "hull-bench-runtime";
    let binary = built(&["build", "--package", "hull-tests", "--bin", NAME], "tests", NAME)?;
    run(Place::find()?.host(1800, "3072").arg(binary))
}

/// Builds the checker, which runs where there is no library.
pub(super) fn checker() -> Result<PathBuf, Error> {
    run(cargo().env("RUSTFLAGS", "-C target-feature=+crt-static").args([
        "build",
        "--quiet",
        "--package",
        "hull-checker",
        "--target",
        build::TARGET,
    ]))?;
    Ok(build::target().join(Path::new(build::TARGET)).join("debug/hull-checker"))
}
