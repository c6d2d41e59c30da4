//! `linux.resources` as cgroup v2 settings: file name and content (kernel: admin-guide/cgroup-v2; conversions as runc's).

use super::{SpecError, schema};

/// One line to write to one file of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The file's name.
    pub file: String,
    /// What is written.
    pub value: String,
    /// When the guest's kernel has no such file.
    pub missing: Missing,
}

/// What it means that a cgroup lacks the file of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The limit cannot be kept: an error.
    Fails,
    /// There is nothing to limit.
    Harmless,
}

/// All settings of a container, in the order in which they are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// In order.
    pub settings: Vec<Setting>,
}

impl Limits {
    /// Parses the JSON of a `LinuxResources` object. Also returns remarks for the log.
    pub fn from_json(json: &[u8]) -> Result<(Self, Vec<String>), SpecError> {
        let mut notes = Vec::new();
        let limits = Self::parse(&serde_json::from_slice(json)?, &mut notes)?;
        Ok((limits, notes))
    }

    pub(super) fn parse(resources: &schema::Resources, notes: &mut Vec<String>) -> Result<Self, SpecError> {
        if !resources.devices.is_empty() {
            notes.push("linux.resources.devices: device rules are not enforced by this agent".to_owned());
        }
        if resources.block_io.as_ref().is_some_and(says_something) {
            return Err(SpecError::unsupported("linux.resources.blockIO", "not supported by this agent"));
        }
        if !resources.hugepage_limits.is_empty() {
            return Err(SpecError::unsupported(
                "linux.resources.hugepageLimits",
                "not supported by this agent",
            ));
        }
        if !resources.rdma.is_empty() {
            return Err(SpecError::unsupported("linux.resources.rdma", "the guest has no RDMA device"));
        }
        let mut limits = Self::default();
        if let Some(memory) = &resources.memory {
            limits.memory(memory)?;
        }
        if let Some(cpu) = &resources.cpu {
            limits.cpu(cpu)?;
        }
        if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) {
            // 0 and negative numbers are no limit, as in docker and runc before 1.4.
            let value = if limit <= 0 { "max".to_owned() } else { limit.to_string() };
            limits.push("pids.max", value);
        }
        for (file, value) in &resources.unified {
            let named =
                file.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
            if !named || !file.contains('.') || file.starts_with('.') || file.starts_with("cgroup.") {
                return Err(SpecError::invalid(
                    "linux.resources.unified",
                    format!("{file:?} is not a controller's file"),
                ));
            }
            limits.push(file, value.clone());
        }
        Ok(limits)
    }

    fn push(&mut self, file: &str, value: String) {
        self.settings.push(Setting { file: file.to_owned(), value, missing: Missing::Fails });
    }

    fn memory(&mut self, memory: &schema::Memory) -> Result<(), SpecError> {
        // 0 is "not set" for every field of this object.
        let set = |value: Option<i64>| value.filter(|value| *value != 0);
        let text = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
        let limit = set(memory.limit);
        if let Some(swap) = set(memory.swap) {
            let value = swap_max(limit, swap)?;
            // A guest without swap keeps any swap limit.
            self.settings.push(Setting {
                file: "memory.swap.max".to_owned(),
                value,
                missing: Missing::Harmless,
            });
        }
        if let Some(limit) = limit {
            self.push("memory.max", text(limit));
        }
        if let Some(reservation) = set(memory.reservation) {
            self.push("memory.low", text(reservation));
        }
        Ok(())
    }

    fn cpu(&mut self, cpu: &schema::Cpu) -> Result<(), SpecError> {
        if cpu.realtime_runtime.is_some_and(|runtime| runtime != 0) {
            return Err(SpecError::unsupported(
                "linux.resources.cpu.realtimeRuntime",
                "cgroup v2 cannot limit it",
            ));
        }
        if !cpu.cpus.is_empty() {
            self.push("cpuset.cpus", cpu.cpus.clone());
        }
        if !cpu.mems.is_empty() {
            self.push("cpuset.mems", cpu.mems.clone());
        }
        if let Some(idle) = cpu.idle {
            self.push("cpu.idle", idle.to_string());
        }
        if let Some(shares) = cpu.shares.filter(|shares| *shares != 0)
            && cpu.idle.is_none_or(|idle| idle == 0)
        {
            self.push("cpu.weight", weight(shares).to_string());
        }
        let quota = cpu.quota.filter(|quota| *quota != 0);
        let period = cpu.period.filter(|period| *period != 0);
        if quota.is_some() || period.is_some() {
            let quota =
                quota.filter(|quota| *quota > 0).map_or_else(|| "max".to_owned(), |quota| quota.to_string());
            self.push("cpu.max", format!("{quota} {}", period.unwrap_or(100_000)));
        }
        if let Some(burst) = cpu.burst {
            // After cpu.max: a burst may not be more than the quota.
            self.push("cpu.max.burst", burst.to_string());
        }
        Ok(())
    }
}

/// Whether a block I/O object holds anything but zeros and empty lists, as clients send it by default.
fn says_something(value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_i64() != Some(0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => map.values().any(says_something),
    }
}

/// The spec's swap limit counts memory and swap together; memory.swap.max counts swap alone.
fn swap_max(limit: Option<i64>, swap: i64) -> Result<String, SpecError> {
    const FIELD: &str = "linux.resources.memory.swap";
    if swap < 0 {
        return Ok("max".to_owned());
    }
    match limit {
        None => {
            Err(SpecError::invalid(FIELD, "needs memory.limit, because it counts memory and swap together"))
        }
        Some(limit) if limit < 0 => Err(SpecError::invalid(FIELD, "is limited while memory.limit is not")),
        Some(limit) if swap < limit => {
            Err(SpecError::invalid(FIELD, format!("{swap} is less than memory.limit {limit}")))
        }
        Some(limit) => Ok((swap - limit).to_string()),
    }
}

/// cgroup v1 shares (2 to 262144, default 1024) as a v2 weight (1 to 10000, default 100): runc's formula, which
/// maps both defaults onto each other.
fn weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    #[allow(clippy::cast_precision_loss, reason = "below 2^18")]
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 10000")]
    let weight = 10f64.powf(exponent).ceil() as u64;
    weight.clamp(1, 10_000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(json: &str) -> Vec<(String, String)> {
        let (limits, _) = Limits::from_json(json.as_bytes()).unwrap();
        limits.settings.into_iter().map(|setting| (setting.file, setting.value)).collect()
    }

    fn pair(file: &str, value: &str) -> (String, String) {
        (file.to_owned(), value.to_owned())
    }

    #[test]
    fn memory_is_converted() {
        let json = r#"{"memory":{"limit":1048576,"swap":1048576,"reservation":4096}}"#;
        assert_eq!(
            settings(json),
            [pair("memory.swap.max", "0"), pair("memory.max", "1048576"), pair("memory.low", "4096")]
        );
        assert_eq!(
            settings(r#"{"memory":{"limit":-1,"swap":-1}}"#),
            [pair("memory.swap.max", "max"), pair("memory.max", "max")]
        );
        assert_eq!(settings(r#"{"memory":{"limit":0,"swap":0}}"#), []);
    }

    #[test]
    fn swap_that_cannot_be_right_is_refused() {
        for json in [
            r#"{"memory":{"swap":5}}"#,
            r#"{"memory":{"limit":10,"swap":5}}"#,
            r#"{"memory":{"limit":-1,"swap":5}}"#,
        ] {
            assert!(matches!(Limits::from_json(json.as_bytes()), Err(SpecError::Invalid { .. })), "{json}");
        }
    }

    #[test]
    fn cpu_and_pids_are_converted() {
        assert_eq!(
            settings(r#"{"cpu":{"quota":150000,"period":100000}}"#),
            [pair("cpu.max", "150000 100000")]
        );
        assert_eq!(settings(r#"{"cpu":{"quota":-1}}"#), [pair("cpu.max", "max 100000")]);
        assert_eq!(settings(r#"{"cpu":{"period":50000}}"#), [pair("cpu.max", "max 50000")]);
        assert_eq!(settings(r#"{"cpu":{"cpus":"0-1"}}"#), [pair("cpuset.cpus", "0-1")]);
        assert_eq!(settings(r#"{"pids":{"limit":-1}}"#), [pair("pids.max", "max")]);
        assert_eq!(settings(r#"{"pids":{"limit":10}}"#), [pair("pids.max", "10")]);
    }

    #[test]
    fn unified_names_files_of_controllers_only() {
        assert_eq!(settings(r#"{"unified":{"memory.high":"1000"}}"#), [pair("memory.high", "1000")]);
        for file in ["../memory.max", "a/memory.max", "cgroup.procs", ".x", "procs", ""] {
            let json = serde_json::json!({"unified": {file: "1"}}).to_string();
            assert!(Limits::from_json(json.as_bytes()).is_err(), "{file}");
        }
    }

    #[test]
    fn zeros_in_block_io_say_nothing() {
        assert_eq!(settings(r#"{"blockIO":{"weight":0,"throttleReadBpsDevice":[]}}"#), []);
        assert!(Limits::from_json(br#"{"blockIO":{"weight":500}}"#).is_err());
    }

    #[test]
    fn known_weights() {
        for (shares, expected) in [(2, 1), (1024, 100), (262_144, 10_000), (1, 1), (512, 59), (2048, 174)] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }

    proptest! {
        #[test]
        fn weight_is_in_range_and_never_falls(shares in 0u64..400_000) {
            prop_assert!((1..=10_000).contains(&weight(shares)));
            prop_assert!(weight(shares) <= weight(shares + 1));
        }

        #[test]
        fn no_resources_panic(json in "\\PC*") {
            let _ = Limits::from_json(json.as_bytes());
        }
    }
}
