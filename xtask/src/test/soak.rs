//! `make soak`: what must not grow, by the thousand. Not a part of `make test`: it takes hours where the host is emulated.

use std::process::ExitCode;

use clap::ValueEnum;

use super::{
    Error, Place, build, executable, fixtures, library_tests, packages, run as finish, say, with_artifacts,
    with_vhost,
};

/// Containers from one agent.
const ROUNDS: u32 = 10_000;
/// The shim's test of devices.
pub(super) const PLUG: &str = "pod::hotplug::soak::a_day_of_devices_in_a_real_guest";
/// How long a part may take.
const SECONDS: u32 = 12 * 60 * 60;

/// What is made by the thousand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Containers from one agent.
    Agent,
    /// Containers in one real guest.
    Guest,
    /// Pods.
    Pods,
    /// Execs in one pod.
    Execs,
    /// Containers of `true`, and their events.
    Trues,
    /// Output, a hundred megabytes at a time.
    Output,
    /// Devices that come and go in a guest, once a minute for a day.
    Plug,
}

impl Part {
    /// The end-to-end test that it is; those of the agent, of one guest and of devices are none.
    fn test(self) -> Option<&'static str> {
        match self {
            Self::Agent | Self::Guest | Self::Plug => None,
            Self::Pods => Some("soak::a_thousand_pods_twenty_at_a_time"),
            Self::Execs => Some("soak::a_thousand_execs_in_one_pod"),
            Self::Trues => Some("soak::a_thousand_trues_and_their_events"),
            Self::Output => Some("soak::a_hundred_megabytes_a_hundred_times"),
        }
    }
}

/// Makes `percent` of the thousands; `at_once` pods at a time.
pub fn run(only: &[Part], percent: u32, at_once: u32) -> Result<ExitCode, Error> {
    packages::install(&[])?;
    build::all()?;
    fixtures()?;
    let parts = if only.is_empty() { Part::value_variants() } else { only };
    for part in parts {
        say(&format!("soak: {part:?}"));
        match part.test() {
            None if *part == Part::Plug => plug(percent)?,
            None if *part == Part::Guest => guest(percent)?,
            None => agent(percent)?,
            Some(test) => {
                let mut host = Place::find()?.beside_a_registry(SECONDS, "6144");
                host.env("HULL_SOAK", percent.to_string()).env("HULL_SOAK_AT_ONCE", at_once.to_string());
                host.arg(executable("tests", "e2e")?);
                finish(host.args(["--ignored", "--nocapture", "--exact", test]))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Containers one after the other, from one agent, the one that is shipped.
fn agent(percent: u32) -> Result<(), Error> {
    let binary = executable("agent", "rounds")?;
    let mut host = Place::find()?.host(SECONDS, "2048");
    host.env("HULL_ROUNDS", (ROUNDS / 100 * percent).to_string());
    host.env("HULL_AGENT", build::target().join("release/hull-agent"));
    finish(host.arg(binary).arg("--nocapture"))
}

/// Containers one after the other, in one microVM, by the shim's own test.
fn guest(percent: u32) -> Result<(), Error> {
    const TEST: &str = "pod::rounds::containers_come_and_go_in_a_real_guest";
    let tests = library_tests("shim", "hull_shim")?;
    let mut host = Place::find()?.host(SECONDS, "2048");
    host.env("HULL_ROUNDS", (ROUNDS / 100 * percent).to_string());
    finish(with_artifacts(&mut host).arg(tests).args(["--ignored", "--nocapture", "--exact", TEST]))
}

/// Devices in one guest, by the shim's own test.
fn plug(percent: u32) -> Result<(), Error> {
    let tests = library_tests("shim", "hull_shim")?;
    let place = Place::find()?;
    let mut host = place.host(SECONDS, "2048");
    host.env("HULL_SOAK", percent.to_string());
    with_vhost(place, with_artifacts(&mut host));
    finish(host.arg(tests).args(["--ignored", "--nocapture", "--exact", PLUG]))
}
