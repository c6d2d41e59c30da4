//! Every target with every kept case, and with random inputs for a while.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests, with helpers outside of test functions")]

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

use hull_fuzz::{TARGETS, allocation, target};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

#[global_allocator]
static ALLOCATOR: allocation::Counting = allocation::Counting;

/// Random inputs for each target.
const CASES: u32 = 1000;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn check(name: &str) {
    let target = target(name).unwrap();
    let body = RefCell::new((target.make)());
    let bounded = |input: &[u8]| {
        let before = allocation::held();
        allocation::take_peak();
        body.borrow_mut()(input);
        let peak = allocation::take_peak().saturating_sub(before);
        assert!(peak <= target.peak_max(), "{peak} bytes were held at once");
    };
    for entry in fs::read_dir(corpus().join(name)).unwrap() {
        let path = entry.unwrap().path();
        // The last line before an end says which case it was.
        eprintln!("{}", path.display());
        bounded(&fs::read(&path).unwrap());
    }
    let config = ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() };
    let result = TestRunner::new(config).run(&prop::collection::vec(any::<u8>(), 0..600), |input| {
        bounded(&input);
        Ok(())
    });
    result.unwrap();
}

/// A test for each target, so that they run side by side.
macro_rules! targets {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                check(stringify!($name));
            }
        )*

        const TESTED: &[&str] = &[$(stringify!($name)),*];
    };
}

targets! {
    mmio blk blk_ring net vsock vsock_packet fs fuse rng balloon mem pmem console control kernel broker layer sidecar
    erofs agent_message agent_spec agent_spec_values
}

#[test]
fn every_target_is_tested_has_a_corpus_and_is_known_to_cargo_fuzz() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names, TESTED);
    let manifest = fs::read_to_string(corpus().with_file_name("libfuzzer").join("Cargo.toml")).unwrap();
    let known: Vec<&str> = manifest.lines().filter_map(|line| line.strip_prefix("name = ")).skip(1).collect();
    assert_eq!(known, names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>());
    for name in names {
        assert!(fs::read_dir(corpus().join(name)).unwrap().count() > 0, "{name} has no case");
    }
}
