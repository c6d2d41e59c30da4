//! What is run with the agent's command line, the agent alone and a checker inside its containers: the OCI table and its
//! neighbours.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::jobs::{Job, names_of};
use super::programs::Programs;
use super::{Place, built, fixtures};
use crate::shell::{Error, cargo, root, run};
use crate::{build, packages};

/// The job of `make test`.
pub(super) fn job(place: Place, programs: &Programs) -> Result<Job, Error> {
    let binary = programs.path("tests", "oci")?;
    let checker = checker()?;
    let names = names_of(&binary, None)?;
    Ok(Job::tests("the OCI runtime-spec", names, move |names| {
        let mut host = place.host(1200, "3072");
        host.arg("env").arg(format!("HULL_CHECKER={}", checker.display()));
        host.arg(&binary).args(["--test-threads", "1", "--exact"]).args(names);
        host
    }))
}

/// Writes the tables of docs/ that tests check: of the runtime-spec, with the reference's column, and of what root in a container
/// can do.
pub fn tables() -> Result<ExitCode, Error> {
    packages::install(&[])?;
    build::all()?;
    fixtures()?;
    let (place, checker, docs) = (Place::find()?, checker()?, root().join("docs"));
    let programs = Programs::of_tests()?;
    for (test, filter) in [("oci", "table::"), ("e2e", "hostile::what")] {
        let mut host = place.beside_a_registry(&["--share", &docs.to_string_lossy()], 1200, "5000");
        host.env("HULL_CHECKER", &checker).env("HULL_WRITE_TABLES", &docs);
        run(host.arg(programs.path("tests", test)?).args(["--test-threads", "1", "--nocapture", filter]))?;
    }
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
