//! `make soak`: what must not grow, by the thousand. Not a part of `make test`: it takes hours where the host is emulated.

use std::process::{Command, ExitCode};

use clap::ValueEnum;

use super::jobs::{self, Job, Shown};
use super::programs::Programs;
use super::{Error, Place, build, fixtures, packages, with_artifacts, with_vhost};

/// Containers from one agent.
const ROUNDS: u32 = 10_000;
/// The shim's test of devices.
pub(super) const PLUG: &str = "pod::hotplug::soak::a_day_of_devices_in_a_real_guest";
/// How long a part may take.
const SECONDS: u32 = 12 * 60 * 60;

/// What is made by the thousand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Pods.
    Pods,
    /// Containers from one agent.
    Agent,
    /// Containers in one real guest.
    Guest,
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
    /// The test that it is.
    fn test(self) -> &'static str {
        match self {
            // All of that program's.
            Self::Agent => "",
            Self::Guest => "pod::rounds::containers_come_and_go_in_a_real_guest",
            Self::Plug => PLUG,
            Self::Pods => "soak::a_thousand_pods_twenty_at_a_time",
            Self::Execs => "soak::a_thousand_execs_in_one_pod",
            Self::Trues => "soak::a_thousand_trues_and_their_events",
            Self::Output => "soak::a_hundred_megabytes_a_hundred_times",
        }
    }

    /// The program with that test.
    fn binary(self, programs: &Programs) -> Result<String, Error> {
        match self {
            Self::Agent => programs.path("agent", "rounds"),
            Self::Guest | Self::Plug => programs.path("shim", "hull_shim"),
            Self::Pods | Self::Execs | Self::Trues | Self::Output => programs.path("tests", "e2e"),
        }
    }
}

/// Makes `percent` of the thousands; `at_once` pods at a time. As many parts at once as there may be hosts: the pods take as long as
/// the others one after the other.
pub fn run(only: &[Part], percent: u32, at_once: u32) -> Result<ExitCode, Error> {
    packages::install(&[])?;
    build::all()?;
    fixtures()?;
    let (place, programs) = (Place::find()?, Programs::of_tests()?);
    let parts = if only.is_empty() { Part::value_variants() } else { only };
    let job = |part: &Part| {
        let part = *part;
        let binary = part.binary(&programs)?;
        let command = move || command(part, &binary, place, percent, at_once);
        Ok(Job::script(&format!("soak: {part:?}"), command))
    };
    let jobs = parts.iter().map(job).collect::<Result<_, Error>>()?;
    let total = jobs::run_all(place.hosts(), Shown::AsItComes, jobs)?;
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(if total.failed == 0 && total.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The command line of a part.
fn command(part: Part, binary: &str, place: Place, percent: u32, at_once: u32) -> Command {
    let rounds = (ROUNDS / 100 * percent).to_string();
    let soak = percent.to_string();
    let test = part.test();
    match part {
        // Containers one after the other, from one agent, the one that is shipped.
        Part::Agent => {
            let mut host = place.host(SECONDS, "2048");
            host.env("HULL_ROUNDS", rounds).env("HULL_AGENT", build::target().join("release/hull-agent"));
            host.args([binary, "--nocapture"]);
            host
        }
        // Containers one after the other, in one microVM.
        Part::Guest => {
            let mut host = place.host(SECONDS, "2048");
            host.env("HULL_ROUNDS", rounds);
            with_artifacts(&mut host).args([binary, "--ignored", "--nocapture", "--exact", test]);
            host
        }
        // Devices in one guest.
        Part::Plug => {
            let mut host = place.host(SECONDS, "2048");
            host.env("HULL_SOAK", soak);
            with_vhost(place, with_artifacts(&mut host));
            host.args([binary, "--ignored", "--nocapture", "--exact", test]);
            host
        }
        Part::Pods | Part::Execs | Part::Trues | Part::Output => {
            let mut host = place.beside_a_registry(&[], SECONDS, "8192");
            host.env("HULL_SOAK", soak).env("HULL_SOAK_AT_ONCE", at_once.to_string());
            host.args([binary, "--ignored", "--nocapture", "--exact", test]);
            host
        }
    }
}
