//! The names of the metrics, and how each is read out of a pod's figures.

use std::fmt;

use hull_shim::metrics::{ContainerUsage, DeviceStats, PodMetrics};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::Scrape;

/// A value and the labels that it has beside its pod's.
struct Sample(Vec<(&'static str, String)>, f64);

/// A metric: what Prometheus is told of it, and its values of one pod.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    of: fn(&PodMetrics) -> Vec<Sample>,
}

const fn gauge(name: &'static str, help: &'static str, of: fn(&PodMetrics) -> Vec<Sample>) -> Family {
    Family { name, help, kind: MetricType::Gauge, of }
}

/// The encoder appends `_total` to the name.
const fn counter(name: &'static str, help: &'static str, of: fn(&PodMetrics) -> Vec<Sample>) -> Family {
    Family { name, help, kind: MetricType::Counter, of }
}

const FAMILIES: [Family; 29] = [
    gauge("hull_shim_resident_bytes", "Memory of the shim, shared pages included.", |pod| {
        one(pod.shim.map(|shim| number(shim.resident_bytes)))
    }),
    counter("hull_shim_cpu_seconds", "Processor time of the shim.", |pod| {
        one(pod.shim.map(|shim| seconds(shim.user_usec + shim.system_usec)))
    }),
    gauge("hull_shim_threads", "Threads of the shim.", |pod| one(pod.shim.map(|shim| number(shim.threads)))),
    gauge("hull_vmm_resident_bytes", "Memory of the monitor, what the guest has touched included.", |pod| {
        one(pod.monitor.map(|monitor| number(monitor.resident_bytes)))
    }),
    counter("hull_vmm_cpu_seconds", "Processor time of the monitor, that of the guest included.", |pod| {
        one(pod.monitor.map(|monitor| seconds(monitor.user_usec + monitor.system_usec)))
    }),
    gauge("hull_vmm_threads", "Threads of the monitor.", |pod| {
        one(pod.monitor.map(|monitor| number(monitor.threads)))
    }),
    gauge("hull_boot_seconds", "From the start of the monitor to the agent's first word.", |pod| {
        one(pod.boot.map(|boot| seconds(boot.agent_ready_us)))
    }),
    gauge("hull_boot_vm_exits", "VM exits until the agent's first word.", |pod| {
        one(pod.boot.map(|boot| number(boot.vm_exits)))
    }),
    gauge("hull_vm_memory_bytes", "Memory that the VM has booted with.", |pod| {
        one(pod.vm.as_ref().map(|vm| number(vm.ram_bytes)))
    }),
    gauge(
        "hull_guest_available_memory_bytes",
        "Memory that containers can still take in the guest.",
        |pod| one(pod.guest.map(|guest| number(guest.available_bytes))),
    ),
    gauge(
        "hull_guest_containers_memory_bytes",
        "Memory that all containers of the guest may take together, 0 for no bound.",
        |pod| one(pod.guest.map(|guest| number(guest.containers_bytes))),
    ),
    gauge("hull_vm_hotplug_memory_bytes", "Memory that was added to the VM.", |pod| {
        one(pod.vm.as_ref().and_then(|vm| Some(number(vm.hotplug?.plugged_bytes))))
    }),
    counter(
        "hull_vm_returned_memory_bytes",
        "Memory that the guest did not need and the host took back.",
        |pod| {
            let balloon = pod.vm.as_ref().and_then(|vm| vm.balloon.as_ref());
            one(balloon.map(|balloon| number(balloon.ballooned_bytes.saturating_add(balloon.reported_bytes))))
        },
    ),
    counter("hull_vm_exits", "Exits of all vCPUs, as KVM counts them.", |pod| {
        one(pod.vm.as_ref().map(|vm| number(vm.vm_exits)))
    }),
    counter("hull_vm_monitor_exits", "Exits that reached the monitor, by kind.", |pod| {
        let exits = pod.vm.iter().flat_map(|vm| &vm.exits);
        exits.map(|(kind, count)| Sample(vec![("kind", kind.clone())], number(*count))).collect()
    }),
    counter("hull_vm_console_bytes", "What the guest wrote to its console.", |pod| {
        one(pod.vm.as_ref().map(|vm| number(vm.console_bytes)))
    }),
    counter("hull_device_notifications", "Queue notifications that a device has handled.", |pod| {
        devices(pod, |device| device.notifications)
    }),
    counter("hull_device_interrupts", "Interrupts that a device has raised.", |pod| {
        devices(pod, |device| device.interrupts)
    }),
    counter("hull_device_to_guest_bytes", "Payload that a device has moved to the guest.", |pod| {
        devices(pod, |device| device.bytes_to_guest)
    }),
    counter("hull_device_from_guest_bytes", "Payload that a device has moved from the guest.", |pod| {
        devices(pod, |device| device.bytes_from_guest)
    }),
    counter("hull_device_host_errors", "Requests that failed because the host did.", |pod| {
        devices(pod, |device| device.host_errors)
    }),
    counter(
        "hull_device_failures",
        "How often a device was stopped because its driver broke a rule.",
        |pod| devices(pod, |device| device.failures),
    ),
    gauge("hull_containers", "Containers by state.", |pod| {
        let count = |state: &str| {
            let of_state = pod.containers.iter().filter(|container| container.state == state).count();
            Sample(vec![("state", state.to_owned())], number(of_state as u64))
        };
        ["created", "running", "stopped"].map(count).into()
    }),
    gauge("hull_container_memory_bytes", "Memory of a container in the guest, page cache included.", |pod| {
        containers(pod, |usage| number(usage.memory_bytes))
    }),
    counter("hull_container_cpu_seconds", "Processor time of a container in the guest.", |pod| {
        containers(pod, |usage| seconds(usage.cpu_usec))
    }),
    counter("hull_container_throttled_seconds", "How long a container was held back by its limit.", |pod| {
        containers(pod, |usage| seconds(usage.throttled_usec))
    }),
    gauge("hull_container_pids", "Processes and threads of a container.", |pod| {
        containers(pod, |usage| number(usage.pids))
    }),
    counter(
        "hull_container_oom_kills",
        "Processes of a container that were killed for want of memory.",
        |pod| containers(pod, |usage| number(usage.oom_kills)),
    ),
    counter("hull_network_bytes", "What went through a link of the pod, as the guest sees it.", |pod| {
        let each = |link: &str, direction: &str, bytes| {
            Sample(vec![("link", link.to_owned()), ("direction", direction.to_owned())], number(bytes))
        };
        let links = pod.links.iter();
        links
            .flat_map(|link| {
                [each(&link.name, "receive", link.rx_bytes), each(&link.name, "transmit", link.tx_bytes)]
            })
            .collect()
    }),
];

fn one(value: Option<f64>) -> Vec<Sample> {
    value.map(|value| Sample(Vec::new(), value)).into_iter().collect()
}

fn devices(pod: &PodMetrics, of: fn(&DeviceStats) -> u64) -> Vec<Sample> {
    let devices = pod.vm.iter().flat_map(|vm| &vm.devices);
    devices.map(|(label, device)| Sample(vec![("device", label.clone())], number(of(device)))).collect()
}

fn containers(pod: &PodMetrics, of: fn(&ContainerUsage) -> f64) -> Vec<Sample> {
    let known = pod.containers.iter().filter_map(|container| Some((container, container.usage.as_ref()?)));
    known.map(|(container, usage)| Sample(vec![("container", container.id.clone())], of(usage))).collect()
}

/// Prometheus' numbers are floating point: exact to 2^53, which no counter here reaches in a pod's life.
#[allow(clippy::cast_precision_loss)]
fn number(count: u64) -> f64 {
    count as f64
}

fn seconds(microseconds: u64) -> f64 {
    number(microseconds) / 1e6
}

/// The text that Prometheus reads (text format 0.0.4).
pub fn text(scrape: Scrape) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(scrape));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut plain = |name, help, count: usize| {
            let value = ConstGauge::new(number(count as u64));
            value.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
        };
        plain("hull_pods", "Pods whose shim answers.", self.pods.len())?;
        plain("hull_pods_silent", "Sockets of pods at which nobody answers.", self.silent)?;
        for family in &FAMILIES {
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, family.kind)?;
            for pod in &self.pods {
                for Sample(labels, value) in (family.of)(pod) {
                    let of_pod = [("namespace", pod.namespace.as_str()), ("pod", pod.pod.as_str())];
                    let labels = labels.iter().map(|(name, value)| (*name, value.as_str()));
                    let labels: Vec<(&str, &str)> = of_pod.into_iter().chain(labels).collect();
                    let metric = metric.encode_family(&labels)?;
                    match family.kind {
                        MetricType::Counter => ConstCounter::new(value).encode(metric)?,
                        _ => ConstGauge::new(value).encode(metric)?,
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use hull_shim::metrics::{ContainerMetrics, LinkUsage, ProcessUsage, VmStats};

    use super::*;

    fn pod(id: &str) -> PodMetrics {
        PodMetrics {
            namespace: "k8s.io".to_owned(),
            pod: id.to_owned(),
            shim: Some(ProcessUsage {
                resident_bytes: 4096,
                user_usec: 1_500_000,
                ..ProcessUsage::default()
            }),
            monitor: None,
            boot: None,
            vm: None,
            guest: None,
            containers: Vec::new(),
            links: Vec::new(),
        }
    }

    #[test]
    fn what_a_pod_says_and_what_it_does_not() {
        let mut full = pod("full");
        let mut vm = VmStats::default();
        vm.exits.insert("mmio".to_owned(), 7);
        vm.devices
            .insert("blk-root\"fs\n".to_owned(), DeviceStats { host_errors: 2, ..DeviceStats::default() });
        full.vm = Some(vm);
        full.containers.push(ContainerMetrics {
            id: "c".to_owned(),
            state: "running".to_owned(),
            usage: Some(ContainerUsage { memory_bytes: 1 << 20, oom_kills: 1, ..ContainerUsage::default() }),
        });
        full.links.push(LinkUsage { name: "eth0".to_owned(), tx_bytes: 9, ..LinkUsage::default() });
        let text = text(Scrape { pods: vec![pod("bare"), full], silent: 3 }).unwrap();
        for line in [
            "hull_pods 2.0",
            "hull_pods_silent 3.0",
            "# TYPE hull_shim_cpu_seconds_total counter",
            r#"hull_shim_cpu_seconds_total{namespace="k8s.io",pod="bare"} 1.5"#,
            r#"hull_vm_monitor_exits_total{namespace="k8s.io",pod="full",kind="mmio"} 7.0"#,
            r#"hull_device_host_errors_total{namespace="k8s.io",pod="full",device="blk-root\"fs\n"} 2.0"#,
            r#"hull_containers{namespace="k8s.io",pod="full",state="running"} 1.0"#,
            r#"hull_container_memory_bytes{namespace="k8s.io",pod="full",container="c"} 1048576.0"#,
            r#"hull_network_bytes_total{namespace="k8s.io",pod="full",link="eth0",direction="transmit"} 9.0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in:\n{text}");
        }
        // Not asked, not zero.
        assert!(!text.contains("hull_vm_exits_total{namespace=\"k8s.io\",pod=\"bare\""), "{text}");
    }

    #[test]
    fn names_keep_prometheus_rules() {
        for (index, family) in FAMILIES.iter().enumerate() {
            assert!(family.name.starts_with("hull_") && !family.name.ends_with("_total"), "{}", family.name);
            assert!(family.help.ends_with('.'), "{}", family.help);
            assert!(FAMILIES[..index].iter().all(|other| other.name != family.name), "{}", family.name);
        }
    }
}
