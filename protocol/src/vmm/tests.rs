use std::num::{NonZeroU32, NonZeroU64};

use super::*;

fn round_trip<T: Serialize + for<'de> Deserialize<'de> + PartialEq + std::fmt::Debug>(value: &T) {
    let json = serde_json::to_string(value).unwrap();
    assert_eq!(&serde_json::from_str::<T>(&json).unwrap(), value, "{json}");
}

#[test]
fn messages_survive_json() {
    round_trip(&Request::Hello { version: VERSION });
    let network = JailNetwork::Inherited;
    round_trip(&Request::Jail(JailConfig::Full { uid: 5, gid: 6, network }));
    round_trip(&Request::Jail(JailConfig::Unprivileged));
    round_trip(&Request::Machine(MachineConfig {
        vcpus: 2,
        online_vcpus: Some(1),
        cpu: CpuTemplate::V3,
        memory_mib: 512,
        kernel_args: "quiet".into(),
        console_limit_bytes: 1 << 20,
    }));
    round_trip(&Request::AddDisk(DiskConfig {
        serial: "rootfs".into(),
        access: DiskAccess::ReadOnly,
        extents: vec![DiskExtent { offset: 0, length: 4096 }],
        discard: DiskDiscard::Off,
        limits: RateLimits {
            bandwidth: None,
            operations: Some(TokenBucket {
                size: NonZeroU64::MAX,
                refill_ms: NonZeroU32::MIN,
                one_time_burst: 7,
            }),
        },
    }));
    round_trip(&Request::AddPmem(PmemConfig {
        name: "layers".into(),
        length: 4096,
        access: DiskAccess::ReadOnly,
    }));
    round_trip(&Request::AddNetwork(NetworkConfig {
        name: "eth0".into(),
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        limits: NetworkLimits::default(),
        backend: NetworkBackend::default(),
    }));
    round_trip(&Request::AddVsock(VsockConfig { guest_cid: 3, guest_to_host_ports: vec![1024] }));
    round_trip(&Request::AddFs(FsConfig { tag: "volumes".into(), cache: FsCache::Auto }));
    for request in [
        Request::AddHotplugMemory { mib: 128 },
        Request::ReserveHotplugMemory { mib: 128 },
        Request::PlugHotplugMemory,
        Request::SetHotplugMemory { mib: 7 },
    ] {
        round_trip(&request);
    }
    round_trip(&Request::Unplug { name: "blk-a".into(), how: Unplug::Released });
    round_trip(&Message::Plugged { slot: 31 });
    for request in [Request::AddEntropy, Request::AddBalloon, Request::SetBalloon { mib: 7 }, Request::Boot] {
        round_trip(&request);
    }
    for request in [Request::Pause, Request::Resume, Request::Stats, Request::Stop] {
        round_trip(&request);
    }
    round_trip(&Message::Exited(ExitReason::GuestPanic { message: "VFS: no root".into() }));
    round_trip(&Message::Failed(Failure { code: FailureCode::Kvm, message: "no".into() }));
    round_trip(&Message::Stats(VmStats {
        devices: [("rng".to_owned(), DeviceStats { notifications: 3, ..DeviceStats::default() })].into(),
        hotplug: Some(HotplugStats::default()),
        balloon: Some(Box::default()),
        ..VmStats::default()
    }));
}

#[test]
fn what_a_disk_leaves_out_is_not_limited() {
    let disk: DiskConfig =
        serde_json::from_str(r#"{"serial":"a","access":"read_write","extents":[]}"#).unwrap();
    assert_eq!((disk.discard, disk.limits), (DiskDiscard::On, RateLimits::default()));
    for bucket in [r#"{"size":0,"refill_ms":1}"#, r#"{"size":1,"refill_ms":0}"#, r#"{"size":1}"#] {
        assert!(serde_json::from_str::<TokenBucket>(bucket).is_err(), "{bucket}");
    }
}

#[test]
fn unknown_fields_are_refused() {
    assert!(serde_json::from_str::<Request>(r#"{"request":"boot","fast":true}"#).is_err());
    assert!(serde_json::from_str::<Request>(r#"{"request":"hello","with":{"version":1},"x":1}"#).is_err());
    assert!(serde_json::from_str::<Request>(r#"{"request":"add_vsock","with":{"guest_cid":3}}"#).is_err());
}
