//! Limits and statistics, where the kernel has the controllers: cgroup v2 with all of them, as in the test host and in a VM.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod guest;

use guest::{Guest, container, context, refusal, spec, with_guest};
use hull_protocol::agent::api::agent as api;
use serde_json::{Value, json};
use ttrpc::Code;

/// Whether containers can be limited here at all.
fn has_controllers(guest: &Guest) -> bool {
    let path = format!(
        "/proc/{}/root{}/cgroup/cgroup.controllers",
        guest.agent_pid(),
        guest.directory.path().display()
    );
    let controllers = std::fs::read_to_string(path).unwrap();
    ["cpu", "cpuset", "memory", "pids", "hugetlb"]
        .iter()
        .all(|name| controllers.split_whitespace().any(|controller| controller == *name))
}

async fn running(guest: &Guest, resources: &Value) {
    let mut limited = spec(&["sleep", "1000"]);
    limited["linux"]["resources"] = resources.clone();
    guest.create("c", &limited, [false; 3]).await.unwrap();
    guest.start_process("c", "").await.unwrap();
}

/// What files of the container's cgroup say, read by a process in it.
async fn says(guest: &Guest, files: &str) -> String {
    let script = format!("cd /sys/fs/cgroup; for f in {files}; do echo $f $(cat $f); done");
    let process = spec(&["sh", "-c", &script])["process"].take();
    let output = guest.exec("c", "e", &process).await;
    assert_eq!(output.stderr, "");
    output.stdout
}

async fn update(guest: &Guest, resources: &Value) -> Result<(), ttrpc::Error> {
    let request = api::UpdateContainerRequest {
        container_id: "c".to_owned(),
        resources: resources.to_string().into_bytes(),
        ..Default::default()
    };
    guest.client.update_container(context(), &request).await.map(drop)
}

#[test]
fn every_control_is_set_before_the_first_instruction() {
    with_guest(|guest| async {
        if !has_controllers(&guest) {
            return guest;
        }
        let resources = json!({
            "memory": {"limit": 64 << 20, "swap": 80 << 20, "reservation": 32 << 20},
            "cpu": {"shares": 2048, "quota": 50000, "period": 200_000, "burst": 10000, "cpus": "0", "mems": "0"},
            "pids": {"limit": 50},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}],
            "unified": {"memory.high": "50331648"}
        });
        running(&guest, &resources).await;
        let files = "memory.max memory.low memory.high cpu.weight cpu.max cpu.max.burst cpuset.cpus cpuset.mems pids.max \
                     hugetlb.2MB.max hugetlb.2MB.rsvd.max";
        assert_eq!(
            says(&guest, files).await,
            "memory.max 67108864\nmemory.low 33554432\nmemory.high 50331648\ncpu.weight 174\ncpu.max 50000 200000\n\
             cpu.max.burst 10000\ncpuset.cpus 0\ncpuset.mems 0\npids.max 50\nhugetlb.2MB.max 4194304\n\
             hugetlb.2MB.rsvd.max 4194304\n"
        );
        guest.delete("c").await.unwrap();
        running(&guest, &json!({"cpu": {"idle": 1, "shares": 512}})).await;
        assert_eq!(says(&guest, "cpu.idle").await, "cpu.idle 1\n");
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn an_update_changes_everything_or_nothing() {
    with_guest(|guest| async {
        if !has_controllers(&guest) {
            return guest;
        }
        let resources = json!({
            "memory": {"limit": 64 << 20}, "pids": {"limit": 50}, "cpu": {"quota": 50000, "burst": 40000}});
        running(&guest, &resources).await;
        const FILES: &str = "memory.max pids.max cpu.max cpu.max.burst";
        // A quota below the burst of before.
        let change = json!({
            "memory": {"limit": 96 << 20}, "pids": {"limit": 60}, "cpu": {"quota": 20000, "burst": 5000}});
        update(&guest, &change).await.unwrap();
        let changed = "memory.max 100663296\npids.max 60\ncpu.max 20000 100000\ncpu.max.burst 5000\n";
        assert_eq!(says(&guest, FILES).await, changed);
        for wrong in [
            json!({"memory": {"limit": 32 << 20}, "cpu": {"quota": 30000, "burst": 7}, "unified": {"pids.max": "nonsense"}}),
            json!({"pids": {"limit": 7}, "unified": {"memory.high": "1x"}}),
            json!({"memory": {"limit": 4096}, "pids": {"limit": 7}}),
        ] {
            let (code, message) = refusal(update(&guest, &wrong).await);
            assert_eq!(code, Code::INVALID_ARGUMENT, "{message}");
            assert_eq!(says(&guest, FILES).await, changed, "{wrong}");
        }
        let (code, _) = refusal(update(&guest, &json!({"unified": {"no.such": "1"}})).await);
        assert_eq!(code, Code::UNIMPLEMENTED);
        // What succeeds can be taken back, once.
        for _ in 0..2 {
            let lower = json!({
                "memory": {"limit": 32 << 20}, "pids": {"limit": 7}, "cpu": {"quota": 30000, "burst": 7}});
            update(&guest, &lower).await.unwrap();
            let lowered = "memory.max 33554432\npids.max 7\ncpu.max 30000 100000\ncpu.max.burst 7\n";
            assert_eq!(says(&guest, FILES).await, lowered);
            for _ in 0..2 {
                guest.client.revert_update(context(), &container("c")).await.unwrap();
                assert_eq!(says(&guest, FILES).await, changed);
            }
        }
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn statistics_are_what_the_kernel_counted() {
    with_guest(|guest| async {
        if !has_controllers(&guest) {
            return guest;
        }
        let resources = json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 50}});
        running(&guest, &resources).await;
        let before = guest.client.container_stats(context(), &container("c")).await.unwrap();
        let script = "dd if=/dev/zero of=/dev/shm/f bs=1M count=8 2> /dev/null; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done";
        guest.exec("c", "e", &spec(&["sh", "-c", script])["process"].take()).await;
        let stats = guest.client.container_stats(context(), &container("c")).await.unwrap();
        let memory = &stats.memory;
        assert_eq!((memory.limit_bytes, stats.pids.limit, stats.pids.current), (64 << 20, 50, 1));
        assert!(memory.stat["shmem"] >= 8 << 20, "{memory:?}");
        assert!(memory.usage_bytes >= memory.stat["shmem"], "{memory:?}");
        assert!(memory.stat["pgfault"] > before.memory.stat["pgfault"], "{memory:?}");
        assert_eq!((memory.events["oom_kill"], memory.oom_kill_events), (0, 0));
        assert!(stats.cpu.usage_usec > before.cpu.usage_usec, "{:?}", stats.cpu);
        assert!(stats.hugetlb.iter().any(|huge| huge.page_size == "2MB"), "{stats}");
        guest.delete("c").await.unwrap();
        guest
    });
}
