//! Block devices of the host: Kubernetes' block volumes, and `--device`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use hull_tests::containerd::Containerd;
use hull_tests::cri::{Device, NamespaceMode};
use hull_tests::hull::{Hull, Said, image};
use hull_tests::kubelet::Pod;
use tempfile::TempDir;

/// A file as a block device of the host.
pub struct Loop {
    _folder: TempDir,
    device: PathBuf,
}

impl Loop {
    /// 8 MiB and one sector, which is no whole number of pages.
    pub fn new() -> Self {
        let folder = TempDir::with_prefix("hull-e2e-").unwrap();
        let script =
            "modprobe loop; printf 'from the host' >disk; truncate -s 8389120 disk; losetup -f --show disk";
        let output = Command::new("sh").args(["-euc", script]).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let device = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        // Where no udev makes it.
        assert!(device.exists(), "{}", device.display());
        Self { _folder: folder, device }
    }

    pub fn path(&self) -> String {
        self.device.display().to_string()
    }

    /// What the device says on the host, here.
    pub fn reads(&self, offset: usize, length: usize) -> String {
        let bytes = fs::read(&self.device).unwrap();
        String::from_utf8_lossy(&bytes[offset..offset + length]).into_owned()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.device).status();
    }
}

/// Reads and writes the device.
pub const USE: &str = "
    head -c 13 $0; echo
    wc -c <$0
    stat -c '%F %a %u:%g' $0
    printf 'from the guest' | dd of=$0 bs=1 seek=8388608 conv=notrunc 2>/dev/null";
/// What may not be done to a device that is read-only.
pub const WRITE: &str = "head -c 13 $0; echo; { echo x >$0; } 2>/dev/null || echo refused";

#[test]
fn ctr_gives_a_device_to_a_container_alone() {
    let disk = Loop::new();
    let containerd = Containerd::start();
    let device = disk.path();
    let said = containerd.run_container(&["--rm", "--device", &device], "rw", &["sh", "-c", USE, &device]);
    let owner = fs::metadata(&device).unwrap();
    let wanted = format!(
        "from the host\n8389120\nblock special file {:o} {}:{}\n",
        owner.mode() & 0o777,
        owner.uid(),
        owner.gid()
    );
    assert_eq!((said.code, said.out.as_str()), (0, wanted.as_str()), "{said:?}");
    assert_eq!(disk.reads(8_388_608, 14), "from the guest");
    // A node of the host's number is none of the guest's, and another disk is not in the VM.
    let script = "mknod /dev/node b $1 $2 && { head -c 1 /dev/node; } 2>/dev/null || echo none; ls /sys/block | grep -c vd";
    let number = fs::metadata(&device).unwrap().rdev();
    let (major, minor) = (libc::major(number).to_string(), libc::minor(number).to_string());
    let words = ["sh", "-c", script, "sh", &major, &minor];
    let said = containerd.run_container(&["--rm", "--device", &device], "node", &words);
    assert_eq!(said.out, "none\n1\n", "{said:?}");
    // The host's devices are listed for it, and none is named.
    let script = "test -b $0 || echo no such device; ls /dev/kvm 2>/dev/null; ls /sys/block | grep -c vd";
    let said = containerd.run_container(&["--rm", "--privileged"], "all", &["sh", "-c", script, &device]);
    assert_eq!(said.out, "no such device\n0\n", "{said:?}");
    let said = containerd.run_container(&["--rm", "--device", "/dev/kvm"], "kvm", &["true"]);
    assert!(said.code != 0 && said.err.contains("character device /dev/kvm (10:232)"), "{said:?}");
    containerd.run(["container", "rm", "kvm"]);
    containerd.left_nothing();
}

fn a_pods_containers_share_a_block_volume(containerd: Containerd) {
    let disk = Loop::new();
    let pod = Pod::run(&containerd, "block", NamespaceMode::CONTAINER);
    let with = |name: &str, permissions: &str, attempt: u32| {
        pod.try_container(name, "sleep 1000", |config| {
            config.metadata.mut_or_insert_default().attempt = attempt;
            config.devices = vec![Device {
                container_path: "/dev/xvda".into(),
                host_path: disk.path(),
                permissions: permissions.into(),
                ..Device::default()
            }];
        })
    };
    let (one, two) = (with("one", "mrw", 0).unwrap(), with("two", "mrw", 0).unwrap());
    assert!(pod.says(&one, &USE.replace("$0", "/dev/xvda")).starts_with("from the host\n8389120\nblock"));
    // Written by the one, read by the other, before it is with the host.
    let read = "dd if=/dev/xvda bs=1 skip=8388608 count=14 2>/dev/null";
    assert_eq!(pod.says(&two, read), "from the guest");
    assert_eq!(pod.says(&two, "ls /sys/block | grep -c vd"), "1\n");
    let error = with("three", "mr", 0).unwrap_err();
    assert!(error.message.contains("writable, and cannot be read-only"), "{error:?}");
    for id in [one, two] {
        pod.stop(&id, 0);
        pod.remove(&id);
    }
    assert_eq!(disk.reads(8_388_608, 14), "from the guest");
    // A container that comes later, which may only read; and then it is gone from the VM.
    let reader = with("reader", "mr", 1).unwrap();
    let script = WRITE.replace("$0", "/dev/xvda");
    assert_eq!(pod.says(&reader, &script), "from the host\nrefused\n");
    pod.stop(&reader, 0);
    pod.remove(&reader);
    let other = pod.container("other", 0, "sleep 1000", &[]);
    assert_eq!(pod.says(&other, "ls /sys/block | grep -c vd || true"), "0\n");
    assert!(disk.reads(0, 13) == "from the host", "what could only be read is as it was");
    pod.end();
    containerd.left_nothing();
}

fn run(hull: &Hull, options: &[&str], words: &[&str]) -> Said {
    let image = image("busybox");
    hull.run([&["run", "--rm"], options, &[image.as_str()], words].concat())
}

#[test]
fn hull_run_takes_a_device_as_docker_does() {
    let disk = Loop::new();
    let hull = Hull::new();
    let flag = format!("{}:/dev/xvda", disk.path());
    let said = run(&hull, &["--device", &flag], &["sh", "-c", USE, "/dev/xvda"]);
    assert!(said.code == 0 && said.out.starts_with("from the host\n8389120\n"), "{said:?}");
    assert_eq!(disk.reads(8_388_608, 14), "from the guest");
    let flag = format!("{}:/dev/xvda:r", disk.path());
    for options in [&["--device", &flag][..], &["--privileged", "--device", &flag][..]] {
        let said = run(&hull, options, &["sh", "-c", WRITE, "/dev/xvda"]);
        assert_eq!(said.out, "from the host\nrefused\n", "{said:?}");
    }
    let said = run(&hull, &["--device", "/dev/null"], &["true"]);
    assert!(said.code == 125 && said.err.contains("not a block device"), "{said:?}");
    hull.left_nothing();
}

crate::in_pods_of_both_kinds!(a_pods_containers_share_a_block_volume);
