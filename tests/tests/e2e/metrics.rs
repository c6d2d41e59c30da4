//! What the pods of a host measure, as Prometheus reads it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use hull_tests::eventually;
use hull_tests::hull::{Hull, metric as value};

fn get(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_running_container_is_measured_in_the_guest_and_on_the_host() {
    let hull = Hull::new();
    assert!(hull.ok(["metrics"]).contains("hull_pods 0"), "no pod is no error");
    let script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=20 2>/dev/null; echo ready; sleep 1000";
    let id = hull.detached(&["--name", "web", "-m", "64m"], "busybox", &["sh", "-c", script]);
    eventually("the container has begun", || hull.ok(["logs", "web"]).contains("ready").then_some(()));

    // Who does not answer within a second is missing.
    let text = eventually("the guest tells of the container", || {
        Some(hull.ok(["metrics"])).filter(|text| value(text, "hull_container_memory_bytes", &[]).is_some())
    });
    assert!(text.contains("\nhull_pods 1") && text.contains("\nhull_pods_silent 0"), "{text}");
    let of = |metric: &str, words: &[&str]| {
        let pod = format!("pod=\"{id}\"");
        let words = [&["namespace=\"hull\"", pod.as_str()], words].concat();
        value(&text, metric, &words).unwrap_or_else(|| panic!("no {metric} {words:?} in:\n{text}"))
    };
    let container = format!("container=\"{id}\"");
    assert!((20e6..64e6).contains(&of("hull_container_memory_bytes", &[&container])), "{text}");
    assert!(of("hull_container_pids", &[&container]) >= 1.0, "{text}");
    assert_eq!(of("hull_container_oom_kills_total", &[&container]), 0.0);
    assert_eq!(of("hull_containers", &["state=\"running\""]), 1.0);
    assert!(of("hull_vm_memory_bytes", &[]) > of("hull_container_memory_bytes", &[&container]));
    assert!(of("hull_vmm_resident_bytes", &[]) > 20e6, "the guest's pages are the monitor's");
    assert!(of("hull_vm_exits_total", &[]) >= of("hull_boot_vm_exits", &[]));
    assert!(of("hull_device_to_guest_bytes_total", &["device=\"blk-rootfs\""]) > 0.0, "{text}");
    assert!(of("hull_boot_seconds", &[]) > 0.0 && of("hull_shim_threads", &[]) >= 1.0);

    let mut server = hull.piped(["metrics", "--listen", "127.0.0.1:0"]);
    let mut url = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let address = url.trim().strip_prefix("http://").and_then(|url| url.strip_suffix("/metrics")).unwrap();
    let answer = get(address, "GET /metrics");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("text/plain; version=0.0.4"), "{answer}");
    assert!(answer.contains(&format!("hull_vm_exits_total{{namespace=\"hull\",pod=\"{id}\"}}")), "{answer}");
    assert!(get(address, "GET /").starts_with("HTTP/1.1 404 "));
    assert!(get(address, "POST /metrics").starts_with("HTTP/1.1 405 "));
    // A client that says nothing does not keep others from being served.
    let _mute = TcpStream::connect(address).unwrap();
    hull.ok(["rm", "-f", "web"]);
    assert!(get(address, "GET /metrics").contains("hull_pods 0"), "made anew each time");
    server.kill().unwrap();
    server.wait().unwrap();
    hull.left_nothing();
}
