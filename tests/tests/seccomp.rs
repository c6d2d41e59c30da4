//! Our filters against libseccomp's: for the same profile, the same verdict on every call.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use hull_seccomp::{Architecture, Call, Condition, Instruction, Operator, Profile, Rule, Verdict, evaluate};
use hull_tests::libseccomp::{Comparison, LibSeccomp};
use proptest::prelude::*;
use serde_json::Value;

const DEFAULT: &str = include_str!("../../cli/src/spec/seccomp/default.json");
const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;
const X32_TOKEN: u32 = 0x4000_003e;
const X32_BIT: u32 = 0x4000_0000;

fn reference(library: &LibSeccomp, profile: &Profile) -> Vec<Instruction> {
    let mut context = library.context(profile.default.0);
    for architecture in &profile.architectures {
        match architecture {
            Architecture::X86_64 => {}
            Architecture::X86 => context.add_architecture(X86),
            Architecture::X32 => context.add_architecture(X32_TOKEN),
        }
    }
    for rule in profile.rules.iter().filter(|rule| rule.verdict != profile.default) {
        let comparisons: Vec<Comparison> = rule.conditions.iter().map(comparison).collect();
        for name in &rule.names {
            context.add_rule(name, rule.verdict.0, &comparisons);
        }
    }
    context.program().into_iter().map(|(code, jt, jf, k)| Instruction { code, jt, jf, k }).collect()
}

fn comparison(condition: &Condition) -> Comparison {
    let operator = match condition.operator {
        Operator::NotEqual => 1,
        Operator::Less => 2,
        Operator::AtMost => 3,
        Operator::Equal => 4,
        Operator::AtLeast => 5,
        Operator::Greater => 6,
        Operator::MaskedEqual => 7,
    };
    let Condition { index, value, value_two, .. } = *condition;
    Comparison { argument: index.into(), operator, value, value_two }
}

/// Compares the two on every call number, with each of `arguments`. Returns our and their greatest number of steps.
fn compare(library: &LibSeccomp, profile: &Profile, arguments: &[[u64; 6]]) -> (usize, usize) {
    let theirs = reference(library, profile);
    let (ours, notes) = hull_seccomp::compile(profile).unwrap();
    assert_eq!(notes, Vec::<String>::new());
    let numbers = (0..600).chain(X32_BIT..X32_BIT + 600).chain([u32::MAX]);
    let mut steps = (0, 0);
    for number in numbers {
        for arch in [X86_64, X86, 0xc000_00b7] {
            for args in arguments {
                let call = Call { arch, number, args: *args };
                let (our_verdict, our_steps) = evaluate(&ours.instructions, &call).unwrap();
                let (their_verdict, their_steps) = evaluate(&theirs, &call).unwrap();
                assert_eq!(our_verdict, their_verdict, "{our_verdict:#x} {their_verdict:#x} {call:x?}");
                steps = (steps.0.max(our_steps), steps.1.max(their_steps));
            }
        }
    }
    steps
}

/// Around every value that the profile compares with, as every argument.
fn interesting(profile: &Profile) -> Vec<[u64; 6]> {
    let mut values = BTreeSet::from([0, 1, u64::from(u32::MAX), 1 << 32, u64::MAX]);
    for condition in profile.rules.iter().flat_map(|rule| &rule.conditions) {
        for value in [condition.value, condition.value_two] {
            values.extend([
                value.wrapping_sub(1),
                value,
                value.wrapping_add(1),
                value ^ 1 << 32,
                value | 1 << 63,
            ]);
            values.extend((0..64).map(|bit| value & 1 << bit));
        }
    }
    values.into_iter().map(|value| [value; 6]).collect()
}

/// docker's default for a container that has `capabilities`, or all of them, without what this libseccomp is too old for.
fn default_profile(library: &LibSeccomp, capabilities: Option<&[&str]>) -> Profile {
    let mut profile: Value = serde_json::from_str(DEFAULT).unwrap();
    let has = |name: &Value| capabilities.is_none_or(|set| set.contains(&name.as_str().unwrap()));
    let any = |list: &Value, all: bool| {
        let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
        if all { list.iter().all(has) } else { list.iter().any(has) }
    };
    let rules = profile["syscalls"].as_array_mut().unwrap();
    rules.retain(|rule| any(&rule["includes"]["caps"], true) && !any(&rule["excludes"]["caps"], false));
    for rule in rules {
        rule["names"].as_array_mut().unwrap().retain(|name| library.knows(name.as_str().unwrap()));
    }
    let mut profile = Profile::from_json(profile.to_string().as_bytes()).unwrap();
    profile.architectures = vec![Architecture::X86_64, Architecture::X86, Architecture::X32];
    // runc's addition, not libseccomp's.
    profile.newer_is_missing = false;
    profile
}

#[test]
fn dockers_default_profile_means_the_same_to_both() {
    let library = LibSeccomp::open();
    let few = ["CAP_CHOWN", "CAP_SYS_CHROOT", "CAP_AUDIT_WRITE"];
    for capabilities in [Some(&[][..]), Some(&few[..]), Some(&["CAP_SYS_ADMIN"][..]), None] {
        for architectures in [1, 2, 3] {
            let mut profile = default_profile(&library, capabilities);
            profile.architectures.truncate(architectures);
            let (ours, theirs) = compare(&library, &profile, &interesting(&profile));
            assert!(ours < 40, "{ours} steps for one call; libseccomp takes up to {theirs}");
        }
    }
}

#[test]
fn every_call_that_the_default_profile_names_exists() {
    let profile = Profile::from_json(
        serde_json::to_string(&serde_json::from_str::<Value>(DEFAULT).unwrap()).unwrap().as_bytes(),
    )
    .unwrap();
    let (_, notes) = hull_seccomp::compile(&profile).unwrap();
    assert_eq!(notes, Vec::<String>::new());
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        prop::sample::select(vec![0, 1, 2, 40, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff]),
        0..u64::from(u32::MAX)
    ]
}

/// Calls of all three architectures; none that 32-bit programs may also reach through socketcall or ipc, where we are
/// stricter.
const NAMES: [&str; 24] = [
    "read",
    "open",
    "close",
    "mmap",
    "ioctl",
    "execve",
    "clone",
    "personality",
    "prctl",
    "mount",
    "unshare",
    "openat",
    "readv",
    "writev",
    "kill",
    "futex",
    "fcntl",
    "ptrace",
    "sendfile",
    "preadv2",
    "clone3",
    "landlock_restrict_self",
    "getpid",
    "waitid",
];

fn conditions() -> impl Strategy<Value = Vec<Condition>> {
    let operators = vec![
        Operator::NotEqual,
        Operator::Less,
        Operator::AtMost,
        Operator::Equal,
        Operator::AtLeast,
        Operator::Greater,
        Operator::MaskedEqual,
    ];
    let condition = (prop::sample::select(operators), value(), value());
    prop::collection::btree_map(0u8..6, condition, 0..3).prop_map(|map| {
        map.into_iter()
            .map(|(index, (operator, value, value_two))| Condition { index, operator, value, value_two })
            .collect()
    })
}

type Draft = (Vec<&'static str>, Vec<Condition>);

/// Leaves of several rules with conditions for one call only those that test one argument for values: libseccomp 2.5 loses
/// rules where they test different arguments.
fn comparable(mut rules: Vec<Draft>) -> Vec<Draft> {
    let simple = |conditions: &[Condition]| {
        matches!(conditions, [Condition { index: 0, operator: Operator::Equal, .. }])
    };
    for at in 1..rules.len() {
        let (before, rest) = rules.split_at_mut(at);
        let (names, conditions) = &mut rest[0];
        if !conditions.is_empty() {
            names.retain(|name| {
                before
                    .iter()
                    .filter(|(others, _)| others.contains(name))
                    .all(|(_, others)| others.is_empty() || simple(others) && simple(conditions))
            });
        }
    }
    rules.retain(|(names, _)| !names.is_empty());
    rules
}

fn profile() -> impl Strategy<Value = Profile> {
    let value = (value(), value()).prop_map(|(value, value_two)| {
        vec![Condition { index: 0, operator: Operator::Equal, value, value_two }]
    });
    let rule = (prop::sample::subsequence(NAMES.to_vec(), 1..8), prop_oneof![conditions(), value]);
    let verdicts = vec![Verdict::ALLOW, Verdict::errno(2), Verdict(0x7ffc_0000)];
    (prop::collection::vec(rule, 1..8), prop::sample::select(verdicts)).prop_map(|(rules, verdict)| Profile {
        default: Verdict::errno(1),
        newer_is_missing: false,
        architectures: vec![Architecture::X86_64, Architecture::X86, Architecture::X32],
        flags: 0,
        // Rules with conditions for one call have one verdict: which of two comes first is for libseccomp's tree to say, and
        // for us the profile's order.
        rules: comparable(rules)
            .into_iter()
            .map(|(names, conditions)| Rule {
                names: names.into_iter().map(str::to_owned).collect(),
                verdict,
                conditions,
            })
            .collect(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_profiles_mean_the_same_to_both(
        profile in profile(),
        random in prop::collection::vec(prop::array::uniform6(value()), 8),
    ) {
        let library = LibSeccomp::open();
        let mut arguments = random;
        arguments.extend(interesting(&profile).into_iter().step_by(7));
        compare(&library, &profile, &arguments);
    }
}
