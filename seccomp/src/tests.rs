#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::arch::{AUDIT_X86, AUDIT_X86_64, X32_BIT};

const KILL: u32 = 0;
const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;

fn filter(profile: &Value) -> Filter {
    compile(&Profile::from_json(profile.to_string().as_bytes()).unwrap()).unwrap().0
}

fn verdict(filter: &Filter, arch: u32, number: u32, args: [u64; 6]) -> u32 {
    evaluate(&filter.instructions, &Call { arch, number, args }).unwrap().0
}

/// The verdict on a 64-bit call with a first argument.
fn native(filter: &Filter, name: &str, first: u64) -> u32 {
    let number = Architecture::X86_64.number(name).unwrap();
    verdict(filter, AUDIT_X86_64, number, [first, 0, 0, 0, 0, 0])
}

fn rule(name: &str, action: &str, args: &Value) -> Value {
    json!({"names": [name], "action": action, "args": args})
}

#[test]
fn calls_get_the_verdict_of_their_rule_and_others_the_default() {
    let filter = filter(&json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": ["read", "write", "openat2"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
            {"names": ["ptrace"], "action": "SCMP_ACT_TRACE", "errnoRet": 7},
            {"names": ["kexec_load"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["reboot"], "action": "SCMP_ACT_TRAP"},
            {"names": ["syslog"], "action": "SCMP_ACT_LOG"}]}));
    for (name, expected) in [
        ("read", ALLOW),
        ("mount", 0x0005_000d),
        ("ptrace", 0x7ff0_0007),
        ("kexec_load", 0x8000_0000),
        ("reboot", 0x0003_0000),
        ("syslog", 0x7ffc_0000),
        ("open", EPERM),
        ("setns", EPERM),
        // Newer than anything the profile knows.
        ("faccessat2", ENOSYS),
    ] {
        assert_eq!(native(&filter, name, 0), expected, "{name}");
    }
}

#[test]
fn other_ways_into_the_kernel_are_closed_unless_listed() {
    let rules = json!([{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]);
    let closed = filter(&json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}));
    let none = [0; 6];
    assert_eq!(verdict(&closed, AUDIT_X86, 3, none), KILL);
    assert_eq!(verdict(&closed, AUDIT_X86_64, X32_BIT, none), KILL);
    assert_eq!(verdict(&closed, AUDIT_X86_64, X32_BIT | 520, none), KILL);
    assert_eq!(verdict(&closed, 0xc000_00b7, 0, none), KILL, "another machine's calls");
    assert_eq!(verdict(&closed, AUDIT_X86_64, u32::MAX, none), ALLOW, "a call that a tracer skips");

    let open = filter(&json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"],
        "syscalls": [{"names": ["read", "execve", "openat2"], "action": "SCMP_ACT_ALLOW"}]}));
    assert_eq!(verdict(&open, AUDIT_X86, 3, none), ALLOW);
    assert_eq!(verdict(&open, AUDIT_X86, 4, none), EPERM);
    assert_eq!(verdict(&open, AUDIT_X86_64, X32_BIT, none), ALLOW);
    assert_eq!(verdict(&open, AUDIT_X86_64, X32_BIT | 520, none), ALLOW, "x32 execve");
    assert_eq!(verdict(&open, AUDIT_X86_64, X32_BIT | 59, none), EPERM, "no x32 call");
    assert_eq!(verdict(&open, AUDIT_X86_64, 59, none), ALLOW);
}

#[test]
fn a_multiplexer_is_no_way_around_a_rule() {
    let allowing = |rules: Value| {
        filter(
            &json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "syscalls": rules}),
        )
    };
    const SOCKETCALL: u32 = 102;
    let of = |filter: &Filter, which| verdict(filter, AUDIT_X86, SOCKETCALL, [which, 0, 0, 0, 0, 0]);
    let refused = allowing(json!([{"names": ["socket"], "action": "SCMP_ACT_ERRNO"}]));
    assert_eq!((of(&refused, 1), of(&refused, 2)), (EPERM, ALLOW));
    let conditional = allowing(json!([rule(
        "socket",
        "SCMP_ACT_ERRNO",
        &json!([{"index": 0, "value": 40, "op": "SCMP_CMP_EQ"}])
    )]));
    assert_eq!((of(&conditional, 1), of(&conditional, 2)), (EPERM, ALLOW));
    let conditional = filter(&json!({
        "defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"],
        "syscalls": [rule("socket", "SCMP_ACT_ALLOW", &json!([{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]))]}));
    assert_eq!(of(&conditional, 1), EPERM);
    assert_eq!(verdict(&conditional, AUDIT_X86, 359, [1, 0, 0, 0, 0, 0]), ALLOW, "the call itself");
}

#[test]
fn a_rule_without_conditions_stands_above_those_with() {
    let when = json!([{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]);
    let rules =
        [rule("personality", "SCMP_ACT_LOG", &when), rule("personality", "SCMP_ACT_ALLOW", &Value::Null)];
    for rules in [json!(rules), json!([rules[1], rules[0]])] {
        let filter = filter(&json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}));
        assert_eq!(native(&filter, "personality", 1), ALLOW);
    }
}

#[test]
fn two_conditions_on_one_argument_are_two_rules() {
    let either =
        json!([{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 5, "op": "SCMP_CMP_EQ"}]);
    let both =
        json!([{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 5, "op": "SCMP_CMP_EQ"}]);
    let profile =
        |args| json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule("kill", "SCMP_ACT_ALLOW", args)]});
    let either = filter(&profile(&either));
    assert_eq!([1, 5, 6].map(|first| native(&either, "kill", first)), [ALLOW, ALLOW, EPERM]);
    let both = filter(&profile(&both));
    assert_eq!(verdict(&both, AUDIT_X86_64, 62, [1, 5, 0, 0, 0, 0]), ALLOW);
    assert_eq!(verdict(&both, AUDIT_X86_64, 62, [1, 6, 0, 0, 0, 0]), EPERM);
}

#[test]
fn unknown_names_are_noted_and_skipped() {
    let json = json!({"defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["read", "fly"], "action": "SCMP_ACT_ALLOW"}]});
    let (filter, notes) = compile(&Profile::from_json(json.to_string().as_bytes()).unwrap()).unwrap();
    assert_eq!(native(&filter, "read", 0), ALLOW);
    assert!(notes.len() == 1 && notes[0].contains("\"fly\""), "{notes:?}");
}

#[test]
fn flags_are_the_kernels_and_mitigations_are_left_to_the_profile() {
    let flags = |flags: Value| filter(&json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags})).flags;
    assert_eq!(flags(Value::Null), 4);
    assert_eq!(flags(json!([])), 0);
    assert_eq!(flags(json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"])), 3);
}

#[test]
fn what_cannot_be_done_is_an_error_that_names_the_field() {
    let action = |action: &str| json!({"defaultAction": action});
    let rule = |rule: Value| json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]});
    let flag = |flag: &str| json!({"defaultAction": "SCMP_ACT_ERRNO", "flags": [flag]});
    for (profile, unsupported, text) in [
        (action("SCMP_ACT_NOTIFY"), true, "SCMP_ACT_NOTIFY is not supported"),
        (rule(json!({"names": ["read"], "action": "SCMP_ACT_NOTIFY"})), true, "syscalls: SCMP_ACT_NOTIFY"),
        (flag("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"), true, "flags"),
        (flag("SECCOMP_FILTER_FLAG_NEW"), false, "is not a flag"),
        (action("SCMP_ACT_MAYBE"), false, "defaultAction: \"SCMP_ACT_MAYBE\" is not an action"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}), false, "takes no errno"),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}),
            false,
            "4096 is more than 4095",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_Z80"]}),
            false,
            "architectures",
        ),
        (rule(json!({"names": [], "action": "SCMP_ACT_ALLOW"})), false, "names no system call"),
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]})),
            false,
            "no argument 6",
        ),
    ] {
        let error = Profile::from_json(profile.to_string().as_bytes()).unwrap_err();
        assert_eq!(matches!(error, Error::Unsupported { .. }), unsupported, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
    assert!(matches!(Profile::from_json(b"{\"defaultAction\":1}"), Err(Error::Json(_))));
}

#[test]
fn a_program_that_the_kernel_would_refuse_is_an_error() {
    let conditions: Vec<Value> =
        (0..1500).map(|value| json!({"index": 0, "value": value, "op": "SCMP_CMP_EQ"})).collect();
    let rules: Vec<Value> =
        ["kill", "read"].iter().map(|name| rule(name, "SCMP_ACT_ALLOW", &json!(conditions))).collect();
    let profile = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules});
    let profile = Profile::from_json(profile.to_string().as_bytes()).unwrap();
    assert!(matches!(compile(&profile), Err(Error::TooLong(_))));
}

/// What a profile says about a 64-bit call, by reading its rules one by one.
fn expected(profile: &Profile, name: &str, args: &[u64; 6]) -> Verdict {
    let rules = || {
        profile
            .rules
            .iter()
            .filter(|rule| rule.verdict != profile.default && rule.names.iter().any(|other| other == name))
    };
    if let Some(rule) = rules().find(|rule| rule.conditions.is_empty()) {
        return rule.verdict;
    }
    let holds = |condition: &Condition| {
        let argument = args[usize::from(condition.index)];
        let value = condition.value;
        match condition.operator {
            Operator::NotEqual => argument != value,
            Operator::Less => argument < value,
            Operator::AtMost => argument <= value,
            Operator::Equal => argument == value,
            Operator::AtLeast => argument >= value,
            Operator::Greater => argument > value,
            Operator::MaskedEqual => argument & value == condition.value_two & value,
        }
    };
    rules().find(|rule| rule.conditions.iter().all(holds)).map_or(profile.default, |rule| rule.verdict)
}

/// Values around which comparisons of halves go wrong.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        prop::sample::select(vec![
            0,
            1,
            2,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            0x1_0000_0000,
            0x1_0000_0001,
            0x7_ffff_ffff,
            u64::MAX
        ]),
        any::<u64>(),
    ]
}

fn some_rule() -> impl Strategy<Value = Rule> {
    let operator = prop::sample::select(vec![
        Operator::NotEqual,
        Operator::Less,
        Operator::AtMost,
        Operator::Equal,
        Operator::AtLeast,
        Operator::Greater,
        Operator::MaskedEqual,
    ]);
    let condition = (operator, value(), value());
    let conditions = prop::collection::btree_map(0u8..6, condition, 0..3).prop_map(|map| {
        map.into_iter()
            .map(|(index, (operator, value, value_two))| Condition { index, operator, value, value_two })
            .collect()
    });
    let names = prop::collection::vec(0usize..450, 1..40).prop_map(|numbers| {
        numbers
            .into_iter()
            .filter_map(syscalls::x86_64::Sysno::new)
            .map(|call| call.name().to_owned())
            .collect()
    });
    let verdicts = vec![Verdict::ALLOW, Verdict::errno(1), Verdict::errno(2), Verdict(0x7ffc_0000)];
    (names, prop::sample::select(verdicts), conditions).prop_map(|(names, verdict, conditions)| Rule {
        names,
        verdict,
        conditions,
    })
}

proptest! {
    #[test]
    fn a_filter_says_what_its_profile_says(
        rules in prop::collection::vec(some_rule(), 0..12),
        args in prop::array::uniform6(value()),
    ) {
        let profile = Profile {
            default: Verdict::errno(1),
            newer_is_missing: false,
            architectures: vec![Architecture::X86, Architecture::X32],
            flags: 0,
            rules,
        };
        let (filter, notes) = compile(&profile).unwrap();
        prop_assert!(notes.is_empty());
        for call in syscalls::x86_64::Sysno::iter() {
            let wanted = expected(&profile, call.name(), &args).0;
            let number = call.id().unsigned_abs();
            prop_assert_eq!(verdict(&filter, AUDIT_X86_64, number, args), wanted, "{}", call.name());
        }
    }

    #[test]
    fn no_json_panics(json in "\\PC{0,200}") {
        let _ = Profile::from_json(json.as_bytes());
    }
}
