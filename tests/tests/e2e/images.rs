//! An image becomes the tree that its layers mean, and the store keeps it whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use hull_images::Store;
use hull_tests::craft::hex;
use hull_tests::hull::{Hull, image, shared_store};
use hull_tests::peers::Registry;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An image's disk, mounted by the host's own EROFS: the index, with each layer as a device beside it. (The guest sees
/// all of it as one disk; a host's kernel understands that from 6.4 on.)
pub struct Mounted {
    folder: TempDir,
    loops: Vec<String>,
}

impl Mounted {
    pub fn new(name: &str) -> Self {
        let found = Store::open(&shared_store()).unwrap().find(name).unwrap().expect("the image was pulled");
        let folder = TempDir::with_prefix("hull-e2e-mount-").unwrap();
        let looped = |file: &PathBuf| {
            succeed(Command::new("losetup").args(["--find", "--show", "--read-only"]).arg(file))
                .trim()
                .to_owned()
        };
        let loops: Vec<String> =
            std::iter::once(&found.disk.index).chain(&found.disk.layers).map(looped).collect();
        let mut options = "ro".to_owned();
        for layer in &loops[1..] {
            options += &format!(",device={layer}");
        }
        succeed(Command::new("mount").args(["-t", "erofs", "-o", &options, &loops[0]]).arg(folder.path()));
        Self { folder, loops }
    }

    pub fn tree(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        succeed(Command::new("umount").arg(self.tree()));
        succeed(Command::new("losetup").arg("--detach").args(&self.loops));
    }
}

/// A file system that keeps every extended attribute; a tmpfs does only on newer kernels.
struct Ext4(TempDir);

impl Ext4 {
    fn new() -> Self {
        let folder = TempDir::with_prefix("hull-e2e-ext4-").unwrap();
        let (disk, tree) = (folder.path().join("disk"), folder.path().join("tree"));
        File::create(&disk).unwrap().set_len(2 << 30).unwrap();
        succeed(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk));
        fs::create_dir(&tree).unwrap();
        succeed(Command::new("mount").args(["-o", "loop"]).args([&disk, &tree]));
        Self(folder)
    }

    fn tree(&self) -> PathBuf {
        self.0.path().join("tree")
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        succeed(Command::new("umount").arg(self.tree()));
    }
}

/// All that a file is but its place on a disk, by path.
fn entries(root: &Path) -> BTreeMap<PathBuf, String> {
    fn visit(root: &Path, path: &Path, into: &mut BTreeMap<PathBuf, String>) {
        let meta = fs::symlink_metadata(path).unwrap();
        let kind = meta.file_type();
        let mut line = format!("{:o} {}:{}", meta.mode(), meta.uid(), meta.gid());
        if kind.is_file() {
            let mut hash = Sha256::new();
            let mut file = File::open(path).unwrap();
            io::copy(&mut file, &mut HashWriter(&mut hash)).unwrap();
            line += &format!(" size {} links {} sha256 {}", meta.size(), meta.nlink(), hex(&hash.finalize()));
        } else if kind.is_symlink() {
            line += &format!(" -> {}", fs::read_link(path).unwrap().display());
        } else if kind.is_char_device() || kind.is_block_device() {
            line += &format!(" device {:x}", meta.rdev());
        }
        // A folder's time depends on the order in which layers were laid over each other by whoever unpacks them.
        if !kind.is_dir() {
            line += &format!(" at {}.{:09}", meta.mtime(), meta.mtime_nsec());
        }
        into.insert(path.strip_prefix(root).unwrap().to_owned(), line);
        if kind.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                visit(root, &entry.unwrap().path(), into);
            }
        }
    }
    let mut all = BTreeMap::new();
    visit(root, root, &mut all);
    all
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Every extended attribute below `root`, by path.
fn attributes(root: &Path) -> Vec<String> {
    let dump = succeed(
        Command::new("getfattr")
            .args([
                "--recursive",
                "--physical",
                "--no-dereference",
                "--dump",
                "--encoding=hex",
                "--match=-",
                ".",
            ])
            .current_dir(root),
    );
    let mut blocks: Vec<String> = dump
        .split("\n\n")
        .map(|block| {
            let mut lines: Vec<&str> = block.lines().filter(|line| !line.contains("overlay.")).collect();
            if let [_, attributes @ ..] = &mut lines[..] {
                attributes.sort_unstable();
            }
            lines.join("\n")
        })
        .filter(|block| block.contains('='))
        .collect();
    blocks.sort_unstable();
    blocks
}

/// Compares with what `umoci unpack` makes of the same layout.
fn same_as_reference(name: &str, layout: &str) {
    let hull = Hull::new();
    hull.ok(["pull", "-q", &image(name)]);
    let mounted = Mounted::new(&image(name));
    let disk = Ext4::new();
    let layouts =
        std::env::var("HULL_TEST_LAYOUTS").expect("run these tests through tests/fixtures/registry");
    let tree = disk.tree().join("bundle");
    succeed(Command::new("umoci").args(["unpack", "--image", &format!("{layouts}/{layout}")]).arg(&tree));
    let reference = tree.join("rootfs");

    let (ours, theirs) = (entries(mounted.tree()), entries(&reference));
    let missing: Vec<_> = theirs.keys().filter(|path| !ours.contains_key(*path)).collect();
    let extra: Vec<_> = ours.keys().filter(|path| !theirs.contains_key(*path)).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing: {missing:?}\nextra: {extra:?}");
    for (path, expected) in &theirs {
        assert_eq!(&ours[path], expected, "{}", path.display());
    }
    assert_eq!(attributes(mounted.tree()), attributes(&reference));
    drop(mounted);
    drop(disk);
    hull.left_nothing();
}

#[test]
fn twelve_layers_are_the_tree_that_umoci_unpacks() {
    same_as_reference("layers", "layers:latest");
}

#[test]
fn zstd_layers_are_the_same_tree() {
    same_as_reference("layers:zstd", "layers:latest");
}

#[test]
fn debian_is_the_tree_that_umoci_unpacks() {
    same_as_reference("debian:12", "debian:12");
}

#[test]
fn twelve_layers_run_and_show_what_they_hold() {
    let hull = Hull::new();
    let script = "cat /data/kept/1 /data/emptied/new /data/becomes-file; ls /data/emptied /data; \
                  stat -c '%a %u:%g' /owners/suid /owners/sgid /owners/secret; ls /many | wc -l; cat /kept/c; \
                  stat -c %h /links/a";
    let said = hull.run(["run", "--rm", &image("layers"), "sh", "-c", script]);
    let expected = "two-1\nnew\nfile\n/data:\nbecomes-file\nemptied\nkept\n\n/data/emptied:\nnew\n\
                    4755 0:0\n2755 1000:1000\n700 100000:200000\n3002\none\n2\n";
    assert_eq!((said.code, said.out.as_str()), (0, expected), "{}", said.err);
    hull.left_nothing();
}

#[test]
fn a_set_user_id_program_is_one_in_the_container() {
    let hull = Hull::new();
    // `dash -p` keeps the effective user that the file's owner gives it.
    let script =
        "cp /bin/dash /raise && chmod 4755 /raise && setpriv --reuid 1000 /raise -p -c 'id -u; id -ru'";
    let said = hull.run(["run", "--rm", &image("debian:12"), "sh", "-c", script]);
    assert_eq!((said.code, said.out.as_str()), (0, "0\n1000\n"), "{said:?}");
    hull.left_nothing();
}

#[test]
fn images_are_listed_found_and_removed() {
    let store = TempDir::with_prefix("hull-e2e-").unwrap();
    let hull = Hull::over(store.path());
    let (busybox, layers) = (image("busybox"), image("layers"));
    hull.ok(["pull", &busybox]);
    hull.ok(["pull", &layers]);
    let listed = hull.ok(["images"]);
    assert!(listed.lines().next().unwrap().starts_with("REPOSITORY"), "{listed}");
    assert_eq!(listed.lines().count(), 3, "{listed}");
    let id = hull.inspect(&busybox)["Id"].as_str().unwrap().to_owned();
    let hexadecimal = id.strip_prefix("sha256:").unwrap();
    assert!(listed.contains(&hexadecimal[..12]), "{listed}");
    // By id, by its beginning, and by digest.
    assert_eq!(hull.ok(["run", "--rm", &hexadecimal[..12], "echo", "by id"]), "by id\n");
    hull.ok(["rmi", &busybox]);
    hull.run(["rmi", &busybox]).failed(1, &["no such image"]);
    // The first layer is shared: it stays for the other image.
    assert_eq!(hull.ok(["run", "--rm", "--pull", "never", &layers, "cat", "/data/kept/1"]), "two-1\n");
    hull.ok(["rmi", &layers]);
    let left: Vec<_> = walk(store.path()).into_iter().filter(|path| size(path) > 4096).collect();
    assert!(left.is_empty(), "no content is left: {left:?}");
    hull.left_nothing();
}

#[test]
fn an_image_loads_from_an_archive_and_from_a_layout() {
    let store = TempDir::with_prefix("hull-e2e-").unwrap();
    let hull = Hull::over(store.path());
    let layouts = std::env::var("HULL_TEST_LAYOUTS").unwrap();
    let files = TempDir::with_prefix("hull-e2e-").unwrap();
    for (kind, name) in [("oci-archive", "archive"), ("docker-archive", "saved")] {
        let file = files.path().join(name);
        succeed(
            Command::new("skopeo")
                .args(["copy", "--quiet"])
                .arg(format!("oci:{layouts}/busybox:latest"))
                .arg(format!("{kind}:{}:example.test/{name}:1", file.display())),
        );
        hull.ok(["load", "-i", file.to_str().unwrap()]);
        let name = format!("example.test/{name}:1");
        assert_eq!(hull.ok(["run", "--rm", "--pull", "never", &name, "echo", "loaded"]), "loaded\n");
    }
    hull.ok(["load", "-i", &format!("{layouts}/busybox")]);
    hull.left_nothing();
}

#[test]
fn a_tag_that_moved_is_followed_when_asked() {
    let hull = Hull::new();
    let registry = Registry::start();
    let layouts = std::env::var("HULL_TEST_LAYOUTS").unwrap();
    registry.push(Path::new(&format!("{layouts}/busybox")), "moving:1");
    let name = registry.image("moving:1");
    assert_eq!(hull.run(["run", "--rm", &name, "test", "-e", "/data"]).code, 1);
    registry.push(Path::new(&format!("{layouts}/layers")), "moving:1");
    assert_eq!(hull.run(["run", "--rm", &name, "test", "-e", "/data"]).code, 1);
    assert_eq!(hull.run(["run", "--rm", "--pull", "always", &name, "test", "-e", "/data"]).code, 0);
    drop(registry);
    // The registry has gone; what was pulled runs all the same.
    assert_eq!(hull.run(["run", "--rm", &name, "test", "-e", "/data"]).code, 0);
    hull.ok(["rmi", &name]);
    hull.left_nothing();
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            all.extend(walk(&entry.path()));
        } else {
            all.push(entry.path());
        }
    }
    all
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}
