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
    /// Parses the JSON of a `LinuxResources` object for an update. Also returns remarks for the log.
    pub fn from_json(json: &[u8]) -> Result<(Self, Vec<String>), SpecError> {
        let mut notes = Vec::new();
        let resources: schema::Resources = serde_json::from_slice(json)?;
        if !resources.devices.is_empty() {
            // Clients send the whole object of the creation again; runc leaves them alone too.
            notes.push("linux.resources.devices ignored: it is what it was at the creation".to_owned());
        }
        let limits = Self::parse(&resources, &mut notes)?;
        Ok((limits, notes))
    }

    pub(super) fn parse(resources: &schema::Resources, notes: &mut Vec<String>) -> Result<Self, SpecError> {
        if !resources.rdma.is_empty() {
            notes.push("linux.resources.rdma ignored: the guest has no RDMA device".to_owned());
        }
        let mut limits = Self::default();
        if let Some(memory) = &resources.memory {
            limits.memory(memory, notes)?;
        }
        if let Some(cpu) = &resources.cpu {
            limits.cpu(cpu)?;
        }
        if let Some(block_io) = &resources.block_io {
            limits.block_io(block_io, notes)?;
        }
        for limit in &resources.hugepage_limits {
            limits.huge_pages(limit)?;
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

    fn memory(&mut self, memory: &schema::Memory, notes: &mut Vec<String>) -> Result<(), SpecError> {
        let outdated = [
            ("kernel", memory.kernel.is_some_and(|value| value != 0)),
            ("kernelTCP", memory.kernel_tcp.is_some_and(|value| value != 0)),
            ("swappiness", memory.swappiness.is_some()),
            ("disableOOMKiller", memory.disable_oom_killer == Some(true)),
        ];
        for (field, _) in outdated.iter().filter(|(_, given)| *given) {
            notes.push(format!("linux.resources.memory.{field} ignored: cgroup v2 has no such control"));
        }
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
        let realtime = [
            ("linux.resources.cpu.realtimeRuntime", cpu.realtime_runtime.is_some_and(|runtime| runtime != 0)),
            ("linux.resources.cpu.realtimePeriod", cpu.realtime_period.is_some_and(|period| period != 0)),
        ];
        if let Some((field, _)) = realtime.into_iter().find(|(_, given)| *given) {
            return Err(SpecError::unsupported(field, "cgroup v2 cannot limit it"));
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
            if cpu.burst.is_some() {
                // The kernel refuses a quota below the burst of before.
                self.push("cpu.max.burst", "0".to_owned());
            }
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

    fn block_io(&mut self, block_io: &schema::BlockIo, notes: &mut Vec<String>) -> Result<(), SpecError> {
        if block_io.leaf_weight.is_some_and(|weight| weight != 0) {
            notes
                .push("linux.resources.blockIO.leafWeight ignored: cgroup v2 has no such control".to_owned());
        }
        if let Some(weight) = block_io.weight.filter(|weight| *weight != 0) {
            self.push("io.weight", format!("default {}", io_weight(weight)?));
        }
        for device in block_io.weight_device.iter().flatten() {
            if let Some(weight) = device.weight.filter(|weight| *weight != 0) {
                let weight = io_weight(weight)?;
                self.push("io.weight", format!("{}:{} {weight}", device.major, device.minor));
            }
        }
        for (key, devices) in [
            ("rbps", &block_io.throttle_read_bps_device),
            ("wbps", &block_io.throttle_write_bps_device),
            ("riops", &block_io.throttle_read_iops_device),
            ("wiops", &block_io.throttle_write_iops_device),
        ] {
            for device in devices.iter().flatten() {
                // 0 takes the limit away, as in cgroup v1.
                let rate = if device.rate == 0 { "max".to_owned() } else { device.rate.to_string() };
                self.push("io.max", format!("{}:{} {key}={rate}", device.major, device.minor));
            }
        }
        Ok(())
    }

    fn huge_pages(&mut self, limit: &schema::HugepageLimit) -> Result<(), SpecError> {
        let size = &limit.page_size;
        let number = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit));
        if number.is_none_or(|number| number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()))
        {
            return Err(SpecError::invalid(
                "linux.resources.hugepageLimits",
                format!("{size:?} is not a page size like 2MB"),
            ));
        }
        self.push(&format!("hugetlb.{size}.max"), limit.limit.to_string());
        self.settings.push(Setting {
            file: format!("hugetlb.{size}.rsvd.max"),
            value: limit.limit.to_string(),
            missing: Missing::Harmless,
        });
        Ok(())
    }
}

impl Setting {
    /// What to write to take this setting back, where the file said `before`.
    pub fn undo(&self, before: &str) -> String {
        // Files with a line for each device: the lines of other devices stay.
        let (key, nothing) = match (self.file.as_str(), self.value.split_once(' ')) {
            ("io.max", Some((key, _))) => (key, "rbps=max wbps=max riops=max wiops=max"),
            ("io.weight", Some((key, _))) => (key, "default"),
            _ => return before.trim_end().to_owned(),
        };
        let line = before.lines().find(|line| line.split(' ').next() == Some(key));
        line.map_or_else(|| format!("{key} {nothing}"), str::to_owned)
    }
}

/// cgroup v1's weight of block I/O (10 to 1000) as a v2 weight (1 to 10000): runc's formula.
fn io_weight(weight: u16) -> Result<u64, SpecError> {
    if (10..=1000).contains(&weight) {
        Ok(1 + (u64::from(weight) - 10) * 9999 / 990)
    } else {
        Err(SpecError::invalid("linux.resources.blockIO", format!("weight {weight} is not in 10..=1000")))
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
    fn block_io_is_converted_and_zeros_in_it_say_nothing() {
        assert_eq!(settings(r#"{"blockIO":{"weight":0,"throttleReadBpsDevice":[]}}"#), []);
        let json = r#"{"blockIO":{"weight":500,"weightDevice":[{"major":8,"minor":0,"weight":1000}],
            "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1000}],
            "throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":0}]}}"#;
        assert_eq!(
            settings(json),
            [
                pair("io.weight", "default 4950"),
                pair("io.weight", "8:0 10000"),
                pair("io.max", "8:0 rbps=1000"),
                pair("io.max", "8:16 wiops=max")
            ]
        );
        assert!(Limits::from_json(br#"{"blockIO":{"weight":5}}"#).is_err());
    }

    #[test]
    fn taking_back_a_devices_limit_leaves_the_others() {
        let setting = |file: &str, value: &str| Setting {
            file: file.to_owned(),
            value: value.to_owned(),
            missing: Missing::Fails,
        };
        let before = "8:0 rbps=1 wbps=max riops=max wiops=max\n8:16 rbps=2 wbps=max riops=max wiops=max\n";
        assert_eq!(setting("io.max", "8:16 rbps=9").undo(before), before.lines().nth(1).unwrap());
        assert_eq!(
            setting("io.max", "8:32 rbps=9").undo(before),
            "8:32 rbps=max wbps=max riops=max wiops=max"
        );
        assert_eq!(setting("io.weight", "default 7").undo("default 100\n"), "default 100");
        assert_eq!(setting("io.weight", "8:0 7").undo("default 100\n"), "8:0 default");
        assert_eq!(setting("memory.max", "1").undo("max\n"), "max");
    }

    #[test]
    fn huge_pages_and_bursts_are_converted() {
        assert_eq!(
            settings(r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#),
            [pair("hugetlb.2MB.max", "4194304"), pair("hugetlb.2MB.rsvd.max", "4194304")]
        );
        for size in ["", "MB", "2M", "../2MB", "2.MB"] {
            let json = serde_json::json!({"hugepageLimits": [{"pageSize": size, "limit": 1}]}).to_string();
            assert!(Limits::from_json(json.as_bytes()).is_err(), "{size}");
        }
        assert_eq!(
            settings(r#"{"cpu":{"quota":1000,"burst":500}}"#),
            [pair("cpu.max.burst", "0"), pair("cpu.max", "1000 100000"), pair("cpu.max.burst", "500")]
        );
        assert_eq!(settings(r#"{"cpu":{"burst":500}}"#), [pair("cpu.max.burst", "500")]);
    }

    #[test]
    fn what_cgroup_v2_lacks_is_noted() {
        let json = br#"{"memory":{"kernel":5,"swappiness":60,"disableOOMKiller":true},"rdma":{"x":{}},"devices":[]}"#;
        let (limits, notes) = Limits::from_json(json).unwrap();
        assert_eq!((limits.settings.len(), notes.len()), (0, 4));
        let devices = br#"{"devices":[{"allow":true,"access":"rwm"}]}"#;
        assert_eq!(Limits::from_json(devices).unwrap().1.len(), 1);
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
        fn io_weight_is_in_range_and_never_falls(weight in 10u16..1000) {
            let (this, next) = (io_weight(weight).unwrap(), io_weight(weight + 1).unwrap());
            prop_assert!((1..=10_000).contains(&this) && this < next);
        }

        #[test]
        fn memory_and_swap_are_told_apart(limit in 1i64..i64::MAX / 2, extra in 0i64..i64::MAX / 2) {
            prop_assert_eq!(swap_max(Some(limit), limit + extra).unwrap(), extra.to_string());
            prop_assert!(swap_max(Some(limit), limit - 1).is_err() || limit == 1);
        }

        #[test]
        fn no_resources_panic(json in "\\PC*") {
            let _ = Limits::from_json(json.as_bytes());
        }
    }
}
