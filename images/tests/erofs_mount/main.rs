//! Layers as the kernel sees them: converted, fused, mounted, and compared with what GNU tar unpacks.
//!
//! Needs root, loop devices and EROFS in the kernel; says so and passes where they are missing.

// Helpers outside #[test] functions count as production code for these lints.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod mount;
mod snapshot;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use hull_images::erofs::{Disk, LayerTree, fuse_index};
use hull_images::layer::{Limits, convert_layer};

use mount::{Mounted, in_private_namespace};
use snapshot::{assert_same, snapshot};

fn shell(directory: &Path, script: &str) {
    let output = Command::new("bash").args(["-ec", script]).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}

fn convert(tar: &Path, blob: &Path) -> LayerTree {
    let out = File::create_new(blob).unwrap();
    convert_layer(File::open(tar).unwrap(), &out, &Limits::default()).unwrap()
}

/// Fuses and returns the parts of the disk.
fn fuse(directory: &Path, layers: &[(LayerTree, PathBuf)]) -> Vec<PathBuf> {
    let index = directory.join("index.erofs");
    let trees: Vec<LayerTree> = layers.iter().map(|(tree, _)| tree.clone()).collect();
    let fused = fuse_index(&trees, &File::create_new(&index).unwrap()).unwrap();
    assert_eq!(fs::metadata(&index).unwrap().len(), u64::from(fused.index_blocks) * 4096);
    for (tree, blob) in layers {
        assert_eq!(fs::metadata(blob).unwrap().len(), u64::from(tree.blob_blocks()) * 4096);
    }
    std::iter::once(index).chain(layers.iter().map(|(_, blob)| blob.clone())).collect()
}

fn concatenate(parts: &[PathBuf], flat: &Path) {
    let mut out = File::create_new(flat).unwrap();
    for part in parts {
        std::io::copy(&mut File::open(part).unwrap(), &mut out).unwrap();
    }
}

/// GNU tar's idea of the layer.
fn extract(tar: &Path, into: &Path) {
    fs::create_dir_all(into).unwrap();
    let status = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-owner", "-p", "-xf"])
        .arg(tar)
        .arg("-C")
        .arg(into)
        .status()
        .unwrap();
    assert!(status.success());
}

const RICH_TREE: &str = r#"
mkdir tree && cd tree
for size in 0 1 4095 4096 4097 10485760; do head -c $size /dev/urandom > file-$size; done
touch -d '2001-02-03 04:05:06.789012345' file-1
touch -d '1965-01-01 00:00:00.5' file-4095
touch -d '2300-01-01 00:00:00.000000001' file-4096
chmod 4755 file-0; chmod 2711 file-4097; chown 70000:4000000000 file-4096; chown 12:34 file-1
mkdir -m 1777 tmp
ln -s ../etc/passwd link; ln -s /absolute abs; ln -s "$(printf 'x%.0s' $(seq 4000))" long-link
ln file-1 hard-a; mkdir d; ln file-1 d/hard-b; ln link hard-to-symlink
mknod null c 1 3; mknod big b 4095 1048575; mkfifo fifo; chmod 666 null
mkdir many; cd many; for i in $(seq 5000); do : > "entry-with-some-length-$i"; done; cd ..
mkdir -p $(printf 'deep%.0s/' $(seq 200))
echo bottom > $(printf 'deep%.0s/' $(seq 200))/file
n=$(printf 'n%.0s' $(seq 255)); echo long > $n; mkdir -p $n-/$n- 2>/dev/null || true
mkdir -p dir-$(printf 'p%.0s' $(seq 200))/$(printf 'q%.0s' $(seq 200)); echo p > dir-$(printf 'p%.0s' $(seq 200))/$(printf 'q%.0s' $(seq 200))/r
touch -- '-dash' '!bang' '...' $'new\nline' $'\xff\xfe' 'spa ce' 'ünïcode'
setfattr -n user.empty file-1
setfattr -n user.text -v some-value file-4096
setfattr -n trusted.note -v only-root d
setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 file-4097
setfattr -n user.large -v "$(head -c 3000 /dev/zero | tr '\0' v)" file-0
for i in $(seq 30); do setfattr -n user.many-$i -v "value $i" tmp; done
touch -d '1999-12-31 23:59:59.999999999' many d tmp .
"#;

#[test]
fn a_mounted_layer_is_what_gnu_tar_unpacks() {
    in_private_namespace(|scratch| {
        shell(scratch, RICH_TREE);
        for format in ["pax", "gnu"] {
            let here = scratch.join(format);
            fs::create_dir(&here).unwrap();
            let tar = here.join("layer.tar");
            let xattrs = if format == "pax" { "--xattrs --xattrs-include='*'" } else { "" };
            shell(scratch, &format!("tar --format={format} {xattrs} -cf {} -C tree .", tar.display()));
            extract(&tar, &here.join("expected"));
            let expected = snapshot(&here.join("expected"));
            assert!(expected.len() > 5200);

            let blob = here.join("layer.erofs");
            let tree = convert(&tar, &blob);
            let mounted = Mounted::new(&blob, &[], &here.join("layer"));
            assert_same(&snapshot(mounted.path()), &expected);

            let blob_path = blob.clone();
            let parts = fuse(&here, &[(tree, blob)]);
            let flat = here.join("flat.erofs");
            concatenate(&parts, &flat);
            let mounted = Mounted::new(&flat, &[], &here.join("flat"));
            assert_same(&snapshot(mounted.path()), &expected);
            let mounted = Mounted::new(&parts[0], &parts[1..], &here.join("devices"));
            assert_same(&snapshot(mounted.path()), &expected);
            check_directory_links(mounted.path());

            fsck(&blob_path, &[]);
            fsck(&parts[0], &parts[1..]);
            let disk = Disk::open(parts.iter().map(|part| File::open(part).unwrap()).collect()).unwrap();
            for (path, seen) in expected.iter().filter(|(_, seen)| seen.mode & 0o170_000 == 0o100_000) {
                let Some(path) = path.to_str() else { continue };
                assert_eq!(disk.read_file(path, 1 << 24).unwrap().as_ref(), Some(&seen.content), "{path}");
            }
        }
    });
}

/// A second opinion, where erofs-utils is installed.
fn fsck(image: &Path, devices: &[PathBuf]) {
    let mut command = Command::new("fsck.erofs");
    command.args(devices.iter().map(|device| format!("--device={}", device.display()))).arg(image);
    match command.output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&text));
        }
        Err(error) => eprintln!("not cross-checked with fsck.erofs: {error}"),
    }
}

fn check_directory_links(root: &Path) {
    use std::os::unix::fs::MetadataExt;
    let subdirectories = fs::read_dir(root).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir()).count();
    assert_eq!(fs::metadata(root).unwrap().nlink(), 2 + subdirectories as u64);
}

const LAYERS: [&str; 3] = [
    r#"
mkdir -p l0/{keep,gone,opaque/sub,becomes-file,usr/lib} && cd l0
echo a > keep/a; echo b > keep/b; ln keep/a keep/a-too; echo x > gone/x; echo y > opaque/y; echo z > opaque/sub/z
echo was-file > becomes-dir; ln -s usr/lib lib; echo lib > usr/lib/one; echo only > deleted; chmod 700 keep
"#,
    r#"
mkdir -p l1/{keep,opaque,becomes-dir} && cd l1
touch keep/.wh.b .wh.gone .wh.deleted opaque/.wh..wh..opq; echo new > opaque/new; echo now-file > becomes-file
echo inside > becomes-dir/inside; echo c > keep/c; chmod 750 keep; setfattr -n user.layer -v one keep
"#,
    r#"
mkdir -p l2/{keep,gone} && cd l2
echo back > gone/back; echo newer > keep/c; touch keep/.wh.a
"#,
];

#[test]
fn fused_layers_are_what_overlayfs_shows() {
    in_private_namespace(|scratch| {
        let mut layers = Vec::new();
        for (number, script) in LAYERS.iter().enumerate() {
            shell(scratch, script);
            let tar = scratch.join(format!("{number}.tar"));
            shell(
                scratch,
                &format!("tar --format=pax --xattrs --xattrs-include='*' -cf {number}.tar -C l{number} ."),
            );
            let blob = scratch.join(format!("{number}.erofs"));
            layers.push((convert(&tar, &blob), blob));
        }
        let lowers: Vec<Mounted> = layers
            .iter()
            .enumerate()
            .map(|(number, (_, blob))| Mounted::new(blob, &[], &scratch.join(format!("lower{number}"))))
            .collect();
        let overlay = Mounted::overlay(&lowers, &scratch.join("overlay"));
        let mut expected = snapshot(overlay.path());
        // The kernel shows overlay's own attributes nowhere; link counts there ignore whiteouts.
        for seen in expected.values_mut() {
            seen.links = seen.links.min(1);
        }

        let parts = fuse(scratch, &layers);
        let flat = scratch.join("flat.erofs");
        concatenate(&parts, &flat);
        let fused = Mounted::new(&flat, &[], &scratch.join("fused"));
        let mut got = snapshot(fused.path());
        assert_eq!(got[Path::new("keep/a-too")].links, 1, "its other name is deleted");
        for seen in got.values_mut() {
            seen.links = seen.links.min(1);
        }
        assert_same(&got, &expected);
        assert!(!got.keys().any(|path| path.file_name().is_some_and(|n| n.as_bytes().starts_with(b".wh."))));
        assert_eq!(got[Path::new("gone/back")].content, b"back\n");
        assert!(!got.contains_key(Path::new("gone/x")));
    });
}

#[test]
fn a_fused_image_of_many_layers_mounts() {
    in_private_namespace(|scratch| {
        // More device slots than fit the first block.
        let mut layers = Vec::new();
        for number in 0..60 {
            let script =
                format!("mkdir l; echo {number} > l/f{number}; tar -cf {number}.tar -C l .; rm -r l");
            shell(scratch, &script);
            let blob = scratch.join(format!("{number}.erofs"));
            layers.push((convert(&scratch.join(format!("{number}.tar")), &blob), blob));
        }
        let parts = fuse(scratch, &layers);
        concatenate(&parts, &scratch.join("flat.erofs"));
        let mounted = Mounted::new(&scratch.join("flat.erofs"), &[], &scratch.join("fused"));
        for number in 0..60 {
            let content = fs::read(mounted.path().join(format!("f{number}"))).unwrap();
            assert_eq!(content, format!("{number}\n").into_bytes());
        }
    });
}

#[test]
fn sparse_files_of_every_format_have_their_holes_and_data() {
    in_private_namespace(|scratch| {
        shell(
            scratch,
            "mkdir tree; cd tree; truncate -s 3M sparse; for i in $(seq 0 12); do \
             printf part-$i | dd of=sparse bs=1 seek=$((i * 200003)) conv=notrunc status=none; done; \
             truncate -s 1M hole; echo plain > plain",
        );
        let expected = fs::read(scratch.join("tree/sparse")).unwrap();
        for (name, options) in [
            ("gnu", "--format=gnu"),
            ("0.0", "--format=pax --sparse-version=0.0"),
            ("0.1", "--format=pax --sparse-version=0.1"),
            ("1.0", "--format=pax --sparse-version=1.0"),
        ] {
            shell(scratch, &format!("tar {options} -S -cf {name}.tar -C tree ."));
            let tar = scratch.join(format!("{name}.tar"));
            assert!(fs::metadata(&tar).unwrap().len() < 1 << 20, "{name} is not sparse");
            let blob = scratch.join(format!("{name}.erofs"));
            convert(&tar, &blob);
            let mounted = Mounted::new(&blob, &[], &scratch.join(OsStr::new(name)));
            assert!(fs::read(mounted.path().join("sparse")).unwrap() == expected, "{name}");
            assert!(fs::read(mounted.path().join("hole")).unwrap() == vec![0; 1 << 20], "{name}");
            assert_eq!(fs::read(mounted.path().join("plain")).unwrap(), b"plain\n");
        }
    });
}
