//! The end-to-end tests: which modules run with which engine, and which of them in a host together.

use std::collections::BTreeMap;

use super::engines::{Engine, Engines};
use super::jobs::{Job, names_of};
use super::programs::Programs;
use super::{Error, Place, fixtures, oci};

/// How many tests a host gets of modules that have fewer: enough that hosts do not spend their time booting, and few enough that
/// the last ones end at about the same time.
const SOME: usize = 10;

/// Tests that run in one host, one after the other.
#[derive(Debug, PartialEq, Eq)]
struct Share {
    modules: Vec<String>,
    engine: Engine,
    /// What their host has besides, where it is emulated.
    options: &'static [&'static str],
    names: Vec<String>,
}

/// The shares of all modules, with each of the engines that they are for; and what is left out because an engine cannot be had.
pub fn jobs(
    place: Place,
    programs: &Programs,
    filter: Option<&str>,
) -> Result<(Vec<Job>, Vec<String>), Error> {
    fixtures()?;
    let (binary, checker) = (programs.path("tests", "e2e")?, oci::checker()?);
    let mut engines = Engines::default();
    let mut shares = Vec::new();
    for (module, names) in modules(names_of(&binary, filter)?) {
        if module == "growth" && place == Place::Emulated && filter.is_none() {
            engines
                .left_out
                .push("growth: two emulated processors hang now and then; FILTER=growth runs it".to_owned());
            continue;
        }
        for engine in engines.of(&module)? {
            let names: Vec<String> = names.iter().filter(|name| engine.runs(name)).cloned().collect();
            let options = special(&module);
            share(&mut shares, Share { modules: vec![module.clone()], engine, options, names });
        }
    }
    let job = |Share { modules, engine, options, names }: Share| {
        let (binary, checker) = (binary.clone(), checker.clone());
        let title = format!("end to end: {}{}", modules.join(", "), engine.title());
        Job::tests(&title, names, move |names| {
            let mut host = place.beside_a_registry(options, seconds(options, names.len()), "6144");
            host.env("HULL_CHECKER", &checker).envs(engine.variable());
            host.arg(&binary).args(["--test-threads", "1", "--exact"]).args(names);
            host
        })
    };
    Ok((shares.into_iter().map(job).collect(), engines.left_out))
}

/// Names of tests by the module that they are in.
fn modules(names: Vec<String>) -> BTreeMap<String, Vec<String>> {
    let mut modules: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in names {
        modules.entry(name.split("::").next().unwrap_or(&name).to_owned()).or_default().push(name);
    }
    modules
}

/// Adds what is next: to a share with the same engine and options where both are small, for a host's boot takes as long as a test.
fn share(shares: &mut Vec<Share>, next: Share) {
    if next.names.is_empty() {
        return;
    }
    let fits = |share: &&mut Share| {
        (&share.engine, share.options) == (&next.engine, next.options)
            && share.names.len() + next.names.len() <= SOME
    };
    match shares.iter_mut().find(fits) {
        Some(share) => {
            share.modules.extend(next.modules);
            share.names.extend(next.names);
        }
        None => shares.push(next),
    }
}

/// What the host of a module has besides where it is emulated, for a reason that tests/host/README.md tells. Others are better off
/// without it.
fn special(module: &str) -> &'static [&'static str] {
    match module {
        // An instruction.
        "processors" => &["--cx16"],
        // A processor for a VM to grow by.
        "growth" => &["--cpus", "2"],
        _ => &[],
    }
}

/// How many seconds so many tests may take: several times what they need, and little enough that `make test` ends in time although
/// a host hangs. Hosts of two processors do now and then: nobody waits long for one.
fn seconds(options: &[&str], tests: usize) -> u32 {
    let seconds = 300 + 60 * u32::try_from(tests).unwrap_or(u32::MAX / 120);
    if options.contains(&"--cpus") { seconds / 2 } else { seconds }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::engines::Suite;

    fn shared(modules: &[(&str, Suite, usize)]) -> Vec<(String, usize)> {
        let mut shares = Vec::new();
        for &(module, suite, tests) in modules {
            let engine = Engine::Fetched { suite, variable: "DIR", folder: "/engine".into() };
            let names = (0..tests).map(|number| format!("{module}::{number}")).collect();
            let (modules, options) = (vec![module.to_owned()], special(module));
            share(&mut shares, Share { modules, engine, options, names });
        }
        shares.into_iter().map(|share| (share.modules.join(" "), share.names.len())).collect()
    }

    #[test]
    fn small_modules_of_an_engine_share_a_host() {
        use Suite::{Sid, Stonking};
        let shares = shared(&[
            ("budget", Sid, 2),
            ("containerd", Sid, 12),
            ("debug", Stonking, 4),
            ("exits", Sid, 7),
            ("growth", Sid, 1),
            ("limits", Sid, 6),
            ("metrics", Sid, 1),
            ("nothing", Sid, 0),
            ("processors", Sid, 1),
            ("streams", Sid, 4),
        ]);
        let wanted = [
            ("budget exits metrics", 10),
            ("containerd", 12),
            ("debug", 4),
            ("growth", 1),
            ("limits streams", 10),
            ("processors", 1),
        ];
        assert_eq!(shares, wanted.map(|(modules, tests)| (modules.to_owned(), tests)));
    }

    #[test]
    fn names_are_told_apart_by_their_modules() {
        let names = ["b::one", "a::in_it::two", "a::one", "alone"].map(str::to_owned).to_vec();
        let modules = modules(names);
        let modules: Vec<_> = modules.iter().map(|(module, names)| (module.as_str(), names.len())).collect();
        assert_eq!(modules, [("a", 2), ("alone", 1), ("b", 1)]);
    }
}
