//! `linux.resources`: config-linux.md "Control groups", as cgroup v2.

use serde_json::{Value, json};

use super::Expect::{Holds, Is, Probe, Refused};
use super::{Row, ensure, row};

fn resources(resources: &Value) -> Value {
    json!({"linux": {"resources": resources}})
}

pub fn rows() -> Vec<Row> {
    vec![
        row(
            "resources.memory: limit, reservation",
            resources(&json!({"memory": {"limit": 67_108_864, "reservation": 33_554_432}})),
            &["read:/sys/fs/cgroup/memory.max", "read:/sys/fs/cgroup/memory.low"],
            vec![
                Probe("read:/sys/fs/cgroup/memory.max", json!("67108864")),
                Probe("read:/sys/fs/cgroup/memory.low", json!("33554432")),
            ],
        ),
        row(
            "resources.memory.swap",
            resources(&json!({"memory": {"limit": 67_108_864, "swap": 100_663_296}})),
            &["read:/sys/fs/cgroup/memory.swap.max"],
            vec![Probe("read:/sys/fs/cgroup/memory.swap.max", json!("33554432"))],
        )
        .remark("the limit of memory and swap together becomes one of swap"),
        row(
            "resources.memory: a limit is kept",
            resources(&json!({"memory": {"limit": 33_554_432, "swap": 33_554_432}})),
            &["read:/sys/fs/cgroup/memory.max", "allocate:64"],
            vec![Refused("")],
        )
        .remark("the process is killed"),
        row(
            "resources.memory: swappiness, kernel, disableOOMKiller",
            resources(&json!({"memory": {"swappiness": 60, "kernel": 1_048_576}})),
            &[],
            vec![],
        )
        .remark("ignored: cgroup v2 has no such control"),
        row(
            "resources.cpu.shares",
            resources(&json!({"cpu": {"shares": 1024}})),
            &["read:/sys/fs/cgroup/cpu.weight"],
            vec![Probe("read:/sys/fs/cgroup/cpu.weight", json!("100"))],
        )
        .remark("1024 becomes 100, as in runc from 1.3.2; older ones say 39"),
        row(
            "resources.cpu: quota, period",
            resources(&json!({"cpu": {"quota": 50_000, "period": 200_000}})),
            &["read:/sys/fs/cgroup/cpu.max"],
            vec![Probe("read:/sys/fs/cgroup/cpu.max", json!("50000 200000"))],
        ),
        row(
            "resources.cpu.burst",
            resources(&json!({"cpu": {"quota": 50_000, "period": 100_000, "burst": 20_000}})),
            &["read:/sys/fs/cgroup/cpu.max.burst"],
            vec![Probe("read:/sys/fs/cgroup/cpu.max.burst", json!("20000"))],
        ),
        row(
            "resources.cpu.idle",
            resources(&json!({"cpu": {"idle": 1}})),
            &["read:/sys/fs/cgroup/cpu.idle"],
            vec![Probe("read:/sys/fs/cgroup/cpu.idle", json!("1"))],
        ),
        row(
            "resources.cpu: realtimeRuntime, realtimePeriod",
            resources(&json!({"cpu": {"realtimeRuntime": 950_000, "realtimePeriod": 1_000_000}})),
            &[],
            vec![Refused("realtimeRuntime")],
        )
        .remark("cgroup v2 has no such control"),
        row(
            "resources.cpu: cpus, mems",
            resources(&json!({"cpu": {"cpus": "0", "mems": "0"}})),
            &["read:/sys/fs/cgroup/cpuset.cpus", "read:/sys/fs/cgroup/cpuset.mems"],
            vec![
                Probe("read:/sys/fs/cgroup/cpuset.cpus", json!("0")),
                Probe("read:/sys/fs/cgroup/cpuset.mems", json!("0")),
                Is("/status/Cpus_allowed_list", json!("0")),
            ],
        ),
        row(
            "resources.pids.limit",
            resources(&json!({"pids": {"limit": 21}})),
            &["read:/sys/fs/cgroup/pids.max"],
            vec![Probe("read:/sys/fs/cgroup/pids.max", json!("21"))],
        ),
        row(
            "resources.blockIO.weight",
            resources(&json!({"blockIO": {"weight": 500}})),
            &["read:/sys/fs/cgroup/io.weight", "read:/sys/fs/cgroup/io.bfq.weight"],
            vec![Holds(|report, _| {
                let file = |name: &str| report["probes"][format!("read:/sys/fs/cgroup/{name}")].to_string();
                let (weight, bfq) = (file("io.weight"), file("io.bfq.weight"));
                ensure(weight.contains("4950") || bfq.contains("500"), || {
                    format!("io.weight {weight}, io.bfq.weight {bfq}")
                })
            })],
        ),
        row(
            "resources.blockIO: throttling of a device that is not there",
            resources(
                &json!({"blockIO": {"throttleReadBpsDevice": [{"major": 240, "minor": 77, "rate": 1_048_576}]}}),
            ),
            &[],
            vec![Refused("io.max")],
        ),
        row(
            "resources.hugepageLimits",
            resources(&json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}]})),
            &["read:/sys/fs/cgroup/hugetlb.2MB.max"],
            vec![Probe("read:/sys/fs/cgroup/hugetlb.2MB.max", json!("4194304"))],
        ),
        row("resources.rdma", resources(&json!({"rdma": {"mlx5_1": {"hcaHandles": 3}}})), &[], vec![])
            .remark("ignored, with a line in the log: the guest has no such device"),
        row(
            "resources.network: classID, priorities",
            resources(&json!({"network": {"classID": 1_048_577}})),
            &[],
            vec![],
        )
        .remark("ignored: cgroup v2 has no such control"),
        row(
            "resources.unified",
            resources(&json!({"unified": {"memory.high": "50331648", "pids.max": "17"}})),
            &["read:/sys/fs/cgroup/memory.high", "read:/sys/fs/cgroup/pids.max"],
            vec![
                Probe("read:/sys/fs/cgroup/memory.high", json!("50331648")),
                Probe("read:/sys/fs/cgroup/pids.max", json!("17")),
            ],
        ),
        row(
            "resources.unified: a file that does not exist",
            resources(&json!({"unified": {"memory.nonsense": "1"}})),
            &[],
            vec![Refused("memory.nonsense")],
        ),
        row(
            "resources.unified: a path",
            resources(&json!({"unified": {"../memory.max": "1"}})),
            &[],
            vec![Refused("memory.max")],
        ),
    ]
}
