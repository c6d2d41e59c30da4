//! Against real peers: images built by umoci and skopeo, served by Distribution's registry, pulled, compared, removed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod peers;

use std::fs;
use std::path::{Path, PathBuf};

use hull_images::{
    Collected, CredentialFiles, Credentials, Digest, Image, Platform, PullError, PullOptions, Reference,
    RegistryError, Silent, Store,
};

use peers::{Access, Registry, run};

/// An OCI layout with three layers, made by umoci, as `layout:1`.
fn build(folder: &Path) -> PathBuf {
    let layout = folder.join("layout");
    let path = layout.to_str().unwrap();
    run("umoci", &["init", "--layout", path]);
    let image = format!("{path}:1");
    run("umoci", &["new", "--image", &image]);
    let noise: Vec<u8> =
        (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
    let layers: [&[(&str, &[u8])]; 3] = [
        &[("etc/passwd", b"root:x:0:0::/root:/bin/sh\n"), ("data", &noise)],
        &[("etc/group", b"root:x:0:\n"), ("etc/.wh.passwd", b"")],
        &[("empty", b"")],
    ];
    for (number, files) in layers.iter().enumerate() {
        let layer = folder.join(format!("{number}.tar"));
        let mut builder = tar::Builder::new(fs::File::create(&layer).unwrap());
        for (name, content) in *files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.finish().unwrap();
        run("umoci", &["raw", "add-layer", "--image", &image, layer.to_str().unwrap()]);
    }
    layout
}

fn options() -> PullOptions {
    let platform: Platform = "linux/amd64".parse().unwrap();
    PullOptions { credential_files: CredentialFiles::only([]), platform, ..PullOptions::default() }
}

fn push(layout: &Path, registry: &Registry, name: &str, extra: &[&str]) -> Reference {
    let (from, to) = (format!("oci:{}:1", layout.display()), format!("docker://{}/{name}", registry.name));
    run("skopeo", &[&["--insecure-policy", "copy", "--dest-tls-verify=false", &from, &to], extra].concat());
    format!("{}/{name}", registry.name).parse().unwrap()
}

fn raw_manifest(reference: &Reference) -> Vec<u8> {
    run("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{}", reference.canonical())])
}

fn assert_is_the_image(image: &Image) {
    let read = |path: &str| image.disk.read_file(path, 4 << 20).unwrap();
    assert_eq!(read("/etc/group").as_deref(), Some(&b"root:x:0:\n"[..]));
    assert_eq!(read("/etc/passwd"), None, "whited out by the second layer");
    assert_eq!(read("/empty").as_deref(), Some(&b""[..]));
    assert_eq!(read("/data").unwrap().len(), 3_000_000);
    assert_eq!(image.disk.layers.len(), 3);
}

/// Files in a store, its lock aside.
fn files_in(root: &Path) -> usize {
    let folders = ["blobs/sha256", "blobs/sha512", "layers", "disks", "tags", "tmp"];
    folders.iter().map(|folder| fs::read_dir(root.join(folder)).unwrap().count()).sum()
}

#[test]
fn by_tag_and_by_digest_gzip_and_zstd_docker_and_oci() {
    let folder = tempfile::tempdir().unwrap();
    let layout = build(folder.path());
    let registry = Registry::start(folder.path(), Access::Open);
    let root = folder.path().join("store");
    let store = Store::open(&root).unwrap();

    // zstd first: skopeo reuses blobs that the registry has already, however they are compressed.
    let zstd = ["--dest-compress-format", "zstd", "--dest-compress-level", "3"];
    let zstd = push(&layout, &registry, "other/app:zstd", &zstd);
    assert!(String::from_utf8(raw_manifest(&zstd)).unwrap().contains("tar+zstd"));
    let gzip = push(&layout, &registry, "team/app:gzip", &[]);
    let docker = push(&layout, &registry, "team/app:docker", &["--format", "v2s2"]);

    let image = store.pull(&gzip, &options(), &Silent).unwrap();
    assert_is_the_image(&image);
    let raw = raw_manifest(&gzip);
    assert_eq!(image.manifest_digest, Digest::of(&raw));
    assert_eq!(fs::read(root.join("blobs/sha256").join(image.manifest_digest.hex())).unwrap(), raw);

    // The same content in other clothes is the same layers: nothing is stored twice.
    let layers = fs::read_dir(root.join("layers")).unwrap().count();
    for reference in [&zstd, &docker] {
        let other = store.pull(reference, &options(), &Silent).unwrap();
        assert_is_the_image(&other);
        assert_eq!(other.disk, image.disk);
    }
    assert_eq!(fs::read_dir(root.join("layers")).unwrap().count(), layers);

    // Again from nothing, so that the layers really come from zstd and from docker's manifest.
    for reference in [&zstd, &docker, &gzip] {
        let fresh = tempfile::tempdir().unwrap();
        assert_is_the_image(
            &Store::open(fresh.path()).unwrap().pull(reference, &options(), &Silent).unwrap(),
        );
    }

    let by_digest = gzip.at(image.manifest_digest.clone());
    let pinned = store.pull(&by_digest, &options(), &Silent).unwrap();
    assert_eq!(pinned.id, image.id);
    assert!(pinned.references.contains(&by_digest));

    for reference in [&gzip, &zstd, &docker] {
        store.remove(&reference.to_string()).unwrap();
        assert!(files_in(&root) > 0, "the image is still named by its digest");
    }
    let removed = store.remove(&by_digest.to_string()).unwrap();
    assert!(matches!(removed.space, Collected::Freed(_)));
    assert_eq!(files_in(&root), 0);
}

#[test]
fn a_registry_that_wants_a_password() {
    let folder = tempfile::tempdir().unwrap();
    let layout = build(folder.path());
    let registry = Registry::start(folder.path(), Access::Password);
    let reference = push(&layout, &registry, "app:1", &["--dest-creds", "hull:secret"]);
    let store = Store::open(&folder.path().join("store")).unwrap();

    let error = store.pull(&reference, &options(), &Silent).unwrap_err();
    assert!(
        matches!(error, PullError::Registry(RegistryError::Unauthorized { with_credentials: false, .. })),
        "{error}"
    );
    assert!(error.to_string().contains(&format!("docker login {}", registry.name)), "{error}");

    let given = Credentials::Password { username: "hull".into(), password: "wrong".into() };
    let wrong = PullOptions { credentials: Some(given), ..options() };
    let error = store.pull(&reference, &wrong, &Silent).unwrap_err();
    assert!(
        matches!(error, PullError::Registry(RegistryError::Unauthorized { with_credentials: true, .. })),
        "{error}"
    );
    assert_eq!(files_in(store.root()), 0);

    let config = folder.path().join("config.json");
    fs::write(&config, format!(r#"{{"auths": {{"{}": {{"auth": "aHVsbDpzZWNyZXQ="}}}}}}"#, registry.name))
        .unwrap();
    let stored = PullOptions { credential_files: CredentialFiles::only([config]), ..options() };
    assert_is_the_image(&store.pull(&reference, &stored, &Silent).unwrap());
}

#[test]
fn what_skopeo_writes_is_loaded_as_the_same_image() {
    let folder = tempfile::tempdir().unwrap();
    let layout = build(folder.path());
    let root = folder.path().join("store");
    let store = Store::open(&root).unwrap();
    let from = format!("oci:{}:1", layout.display());
    let from_layout = store.load(&layout, &Silent).unwrap();
    assert_eq!(from_layout[0].references[0].to_string(), "localhost/layout:1");
    assert_is_the_image(&from_layout[0]);
    for (kind, name) in [("oci-archive", "example.com/app:oci"), ("docker-archive", "example.com/app:docker")]
    {
        let path = folder.path().join(format!("{kind}.tar"));
        run("skopeo", &["--insecure-policy", "copy", &from, &format!("{kind}:{}:{name}", path.display())]);
        let images = store.load(&path, &Silent).unwrap();
        assert_eq!(images[0].references[0].to_string(), name);
        assert_eq!(images[0].disk, from_layout[0].disk);
        assert_is_the_image(&images[0]);
    }
    for name in ["localhost/layout:1", "example.com/app:oci", "example.com/app:docker"] {
        store.remove(name).unwrap();
    }
    assert_eq!(files_in(&root), 0);
}
