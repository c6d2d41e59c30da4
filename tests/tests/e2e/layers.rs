//! A root file system that comes as a recipe: a file system for each layer and how they are put together, as the erofs snapshotter of
//! containerd 2.2 and newer hands it to a shim: by requests made by hand, in its words, and by such a containerd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hull_shim::client::messages::{CreateTaskRequest, Mount};
use hull_shim::client::{Process, Reach, Shim, TaskClient, file_address};
use hull_tests::containerd::{Containerd, RUNTIME};
use hull_tests::hull::{binaries, image};
use hull_tests::leaks::Snapshot;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Changed below, by a layer, and by the container.
const SCRIPT: &str = "
    cat /etc/bottom /etc/changed; ls /etc
    stat -c '%a %u:%g' /
    awk '$5 == \"/\" { print $9 }' /proc/self/mountinfo
    cat /proc/partitions | wc -l
    echo new >/etc/new; rm /etc/bottom; exit 3";

/// Three layers, as files with a file system each.
struct Layers(TempDir);

impl Layers {
    fn new() -> Self {
        let folder = TempDir::with_prefix("hull-e2e-").unwrap();
        let script = "
            modprobe -a loop erofs
            mkdir -p bottom/bin bottom/etc bottom/dev bottom/proc middle/etc top/etc
            cp /bin/busybox bottom/bin/
            for name in sh cat ls stat awk wc rm; do ln -s busybox bottom/bin/$name; done
            echo bottom >bottom/etc/bottom; echo old >bottom/etc/changed; echo gone >bottom/etc/removed
            echo middle >middle/etc/changed; mknod middle/etc/removed c 0 0
            echo top >top/etc/changed; echo top >top/etc/top; chmod 711 top
            for layer in bottom middle top; do mkfs.erofs --quiet $layer.erofs $layer; rm -r $layer; done
            truncate -s 32M disk; mkfs.ext4 -q disk
            mkdir upper work";
        shell(folder.path(), script);
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        Mount { type_: kind.to_owned(), source: source.to_owned(), options, ..Mount::default() }
    }

    /// The mounts of the layers, and last of them all.
    fn with(&self, first: Option<Mount>, options: &[&str]) -> Vec<Mount> {
        let mut mounts: Vec<Mount> = first.into_iter().collect();
        let begin = mounts.len();
        for name in ["top.erofs", "middle.erofs", "bottom.erofs"] {
            let path = self.path(name).display().to_string();
            mounts.push(Self::mount("erofs", &path, &["ro", "loop"]));
        }
        let lower = format!("lowerdir={{{{ overlay {begin} {} }}}}", begin + 2);
        mounts.push(Self::mount("format/mkdir/overlay", "overlay", &[options, &[lower.as_str()]].concat()));
        mounts
    }

    /// What is written goes to a disk.
    fn on_a_disk(&self) -> Vec<Mount> {
        let path = self.path("disk").display().to_string();
        let options = [
            "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
            "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
            "workdir={{ mount 0 }}/work",
            "upperdir={{ mount 0 }}/upper",
        ];
        self.with(Some(Self::mount("ext4", &path, &["rw", "loop"])), &options)
    }

    /// What is written goes to directories of the host.
    fn on_the_host(&self) -> Vec<Mount> {
        let [upper, work] = ["upper", "work"].map(|name| format!("{name}dir={}", self.path(name).display()));
        self.with(None, &[&work, &upper])
    }
}

fn shell(folder: &Path, script: &str) -> String {
    let output = Command::new("sh").args(["-euc", script]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A bundle and its container's output, in a folder of their own.
struct Bundle(PathBuf);

impl Bundle {
    fn new(folder: &Path, id: &str, annotations: &Value) -> Self {
        let path = folder.join(id);
        fs::create_dir_all(path.join("rootfs")).unwrap();
        let config = json!({
            "ociVersion": "1.0.2",
            "annotations": annotations,
            "root": {"path": "rootfs"},
            "process": {"args": ["sh", "-c", SCRIPT], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {"namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"},
            ]},
        });
        fs::write(path.join("config.json"), config.to_string()).unwrap();
        Self(path)
    }

    fn request(&self, id: &str, rootfs: Vec<Mount>) -> CreateTaskRequest {
        let mut request = CreateTaskRequest::new();
        request.id = id.to_owned();
        request.bundle = self.0.display().to_string();
        request.stdout = file_address(&self.0.join("out"));
        request.stderr = request.stdout.clone();
        request.rootfs = rootfs;
        request
    }

    async fn connect(&self, id: &str) -> TaskClient {
        let shim = Shim {
            binary: binaries().join("containerd-shim-hull-v2"),
            namespace: "layers".to_owned(),
            id: id.to_owned(),
            bundle: self.0.clone(),
            callback_address: "/run/hull-e2e-layers.sock".to_owned(),
        };
        TaskClient::connect(&shim.start().unwrap()).await.unwrap()
    }

    fn said(&self) -> String {
        fs::read_to_string(self.0.join("out")).unwrap()
    }
}

/// Runs the container to its end; with which status it exited.
async fn to_its_end(client: &TaskClient, request: &CreateTaskRequest) -> u32 {
    let process = Process::init(&request.id);
    client.create(request).await.unwrap();
    client.start(process).await.unwrap();
    let status = client.wait(process).await.unwrap().exit_status;
    client.delete(process).await.unwrap();
    status
}

#[tokio::test]
async fn each_layer_is_a_part_of_a_disk_in_the_guest() {
    let layers = Layers::new();
    let folder = TempDir::with_prefix("hull-e2e-").unwrap();
    let before = Snapshot::take(folder.path());
    let bundle = Bundle::new(folder.path(), "alone", &json!({}));
    let client = bundle.connect("alone").await;
    assert_eq!(
        to_its_end(&client, &bundle.request("alone", layers.on_a_disk())).await,
        3,
        "{}",
        bundle.said()
    );
    client.shutdown("alone").await.unwrap();
    // A disk of three parts, one to write to, and the heading's two lines.
    assert_eq!(bundle.said(), "bottom\ntop\nbottom\nchanged\ntop\n711 0:0\noverlay\n7\n");
    fs::remove_dir_all(&bundle.0).unwrap();
    before.assert_unchanged(folder.path());
    // containerd finds what was written where it looks for it.
    let script = "mkdir tree; mount -o loop,ro disk tree; cat tree/upper/etc/new; stat -c %F tree/upper/etc/bottom; umount tree";
    assert_eq!(shell(layers.0.path(), script), "new\ncharacter special file\n");
}

#[tokio::test]
async fn the_host_puts_together_what_is_written_to_its_directories() {
    let layers = Layers::new();
    let folder = TempDir::with_prefix("hull-e2e-").unwrap();
    let before = (Snapshot::take(folder.path()), shell(folder.path(), "losetup --list --noheadings"));
    let bundle = Bundle::new(folder.path(), "host", &json!({}));
    let client = bundle.connect("host").await;
    assert_eq!(
        to_its_end(&client, &bundle.request("host", layers.on_the_host())).await,
        3,
        "{}",
        bundle.said()
    );
    client.shutdown("host").await.unwrap();
    let said = bundle.said();
    assert!(said.starts_with("bottom\ntop\nbottom\nchanged\ntop\n755 0:0\n"), "{said}");
    assert_eq!(fs::read_to_string(layers.path("upper/etc/new")).unwrap(), "new\n");
    assert!(fs::symlink_metadata(layers.path("upper/etc/bottom")).is_ok(), "what was removed is noted");
    fs::remove_dir_all(&bundle.0).unwrap();
    before.0.assert_unchanged(folder.path());
    assert_eq!(shell(folder.path(), "losetup --list --noheadings"), before.1);
}

#[tokio::test]
async fn layers_come_and_go_with_a_pods_containers() {
    let layers = Layers::new();
    let folder = TempDir::with_prefix("hull-e2e-").unwrap();
    let before = Snapshot::take(folder.path());
    let kind = "io.kubernetes.cri.container-type";
    let pod = Bundle::new(folder.path(), "pod", &json!({kind: "sandbox"}));
    let client = pod.connect("pod").await;
    client.create(&pod.request("pod", Vec::new())).await.unwrap();
    client.start(Process::init("pod")).await.unwrap();
    for id in ["first", "second"] {
        let annotations = json!({kind: "container", "io.kubernetes.cri.sandbox-id": "pod"});
        let bundle = Bundle::new(folder.path(), id, &annotations);
        // No disk and no directory: what is written goes with the container.
        let request = bundle.request(id, layers.with(None, &[]));
        assert_eq!(to_its_end(&client, &request).await, 3, "{}", bundle.said());
        let said = bundle.said();
        assert_eq!(said, "bottom\ntop\nbottom\nchanged\ntop\n711 0:0\noverlay\n6\n");
    }
    client.kill(Process::init("pod"), 9, Reach::Process).await.unwrap();
    client.wait(Process::init("pod")).await.unwrap();
    client.delete(Process::init("pod")).await.unwrap();
    client.shutdown("pod").await.unwrap();
    for name in ["pod", "first", "second"] {
        fs::remove_dir_all(folder.path().join(name)).unwrap();
    }
    before.assert_unchanged(folder.path());
}

/// In an image of twelve layers: what they took away, replaced and kept, of what kind the root file system is, and one file more.
const TWELVE: &str = "
    cd /data && ls kept emptied && cat becomes-file && test ! -e gone
    stat -c '%a %u:%g' /owners/secret /data/kept; readlink /kept; ls /many | wc -l
    awk '$5 == \"/\" { print $9 }' /proc/self/mountinfo
    if test -e /new; then exit 4; fi; echo new >/new; exit 3";
const SAID: &str = "emptied:\nnew\n\nkept:\n1\n3\nc\nfile\n700 100000:200000\n711 0:0\n/data/kept\n3002\n";

#[test]
fn containerd_leaves_the_layers_to_the_shim() {
    shell(Path::new("/"), "modprobe -a loop erofs");
    // What is written goes to a disk, or to directories of the host.
    for (choice, from) in [("default_size = \"64MiB\"", "overlay"), ("", "volumes")] {
        let containerd = Containerd::with(|_| {
            format!(
                "[plugins.\"io.containerd.service.v1.diff-service\"]\n  default = [\"erofs\", \"walking\"]\n\
                 [plugins.\"io.containerd.snapshotter.v1.erofs\"]\n  {choice}\n"
            )
        });
        if containerd.version() < (2, 2) {
            eprintln!("skipped: this containerd puts the layers together by itself");
            return containerd.left_nothing();
        }
        let image = format!("{}:latest", image("layers"));
        containerd.ok(["images", "pull", "--local", "--plain-http", "--snapshotter", "erofs", &image]);
        let run =
            ["run", "--runtime", RUNTIME, "--snapshotter", "erofs", &image, "twelve", "sh", "-ec", TWELVE];
        let said = containerd.run(run);
        assert_eq!(
            (said.code, said.out.as_str()),
            (3, format!("{SAID}{from}\n").as_str()),
            "{choice}: {said:?}"
        );
        // Its second task finds what the first has written.
        let said = containerd.run(["task", "start", "twelve"]);
        assert_eq!(
            (said.code, said.out.as_str()),
            (4, format!("{SAID}{from}\n").as_str()),
            "{choice}: {said:?}"
        );
        containerd.ok(["container", "rm", "twelve"]);
        containerd.ok(["images", "rm", "--sync", &image]);
        containerd.left_nothing();
    }
}
