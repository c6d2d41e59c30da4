//! Any value in any place: parsing says yes or no, and what it has accepted keeps its promises.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{minimal, parse};
use crate::spec::{Limits, ProcessSpec};
use crate::testing::{check_limits, check_spec};

/// Every place of config.json that means something here, and some around them.
const PLACES: [&str; 48] = [
    "ociVersion",
    "hostname",
    "domainname",
    "root",
    "hooks",
    "mounts",
    "annotations",
    "process",
    "process.args",
    "process.env",
    "process.cwd",
    "process.terminal",
    "process.consoleSize",
    "process.user",
    "process.user.uid",
    "process.user.umask",
    "process.user.additionalGids",
    "process.capabilities",
    "process.capabilities.bounding",
    "process.rlimits",
    "process.oomScoreAdj",
    "process.noNewPrivileges",
    "process.scheduler",
    "process.ioPriority",
    "process.execCPUAffinity",
    "linux",
    "linux.namespaces",
    "linux.uidMappings",
    "linux.timeOffsets",
    "linux.devices",
    "linux.netDevices",
    "linux.sysctl",
    "linux.seccomp",
    "linux.maskedPaths",
    "linux.readonlyPaths",
    "linux.rootfsPropagation",
    "linux.personality",
    "linux.intelRdt",
    "linux.memoryPolicy",
    "linux.resources",
    "linux.resources.devices",
    "linux.resources.memory",
    "linux.resources.cpu",
    "linux.resources.pids",
    "linux.resources.blockIO",
    "linux.resources.hugepageLimits",
    "linux.resources.unified",
    "nonsense",
];

/// JSON with the words and the numbers that matter more often than chance has them.
fn any_json() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        Just(String::new()),
        Just("/".to_owned()),
        Just("../..".to_owned()),
        Just("a\u{0}b".to_owned()),
        Just("/proc".to_owned()),
        Just("max".to_owned()),
        Just("rbind".to_owned()),
        Just("RLIMIT_CORE".to_owned()),
        Just("CAP_CHOWN".to_owned()),
        "[a-zA-Z0-9/._:=-]{0,20}",
    ];
    let number = prop_oneof![
        Just(json!(0)),
        Just(json!(-1)),
        Just(json!(u64::MAX)),
        Just(json!(i64::MIN)),
        any::<i32>().prop_map(|number| json!(number)),
        any::<f64>().prop_map(|number| json!(number)),
    ];
    let key = prop_oneof![
        prop::sample::select(vec![
            "type",
            "path",
            "destination",
            "source",
            "options",
            "limit",
            "major",
            "minor",
            "weight",
            "rate",
            "soft",
            "hard",
            "containerID",
            "hostID",
            "size",
            "boottime",
            "secs",
            "policy",
            "nice",
            "allow",
            "access",
            "pageSize",
            "shares",
            "quota",
            "period",
            "swap",
            "cpus",
            "uid",
            "memory.max",
        ])
        .prop_map(str::to_owned),
        "[a-zA-Z/.]{0,12}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number,
        word.prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

fn set(spec: &mut Value, place: &str, value: Value) {
    let mut at = spec;
    for key in place.split('.') {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[key];
    }
    *at = value;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn any_value_in_any_place_is_accepted_or_refused(
        changes in prop::collection::vec((prop::sample::select(PLACES.to_vec()), any_json()), 1..4),
    ) {
        let mut json = minimal();
        for (place, value) in changes {
            set(&mut json, place, value);
        }
        if let Ok(spec) = parse(&json) {
            check_spec(&spec);
        }
        if let Some(process) = json.get("process") {
            // An exec's process is parsed by itself.
            let _ = ProcessSpec::from_json(process.to_string().as_bytes());
        }
    }

    #[test]
    fn any_resources_are_accepted_or_refused(resources in any_json()) {
        if let Ok((limits, _)) = Limits::from_json(resources.to_string().as_bytes()) {
            check_limits(&limits);
        }
    }
}
