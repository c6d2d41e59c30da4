//! Loading from directories and archives, well-formed and not.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;
use crate::progress::Silent;
use crate::testing::files_of;
use crate::testing::image::{MANIFEST, TestImage, gzip, tar};

struct Fixture {
    folder: tempfile::TempDir,
    root: tempfile::TempDir,
    store: Store,
}

fn fixture() -> Fixture {
    let root = tempfile::tempdir().unwrap();
    Fixture { folder: tempfile::tempdir().unwrap(), store: Store::open(root.path()).unwrap(), root }
}

impl Fixture {
    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn fails(&self, path: &Path) -> String {
        let error = self.store.load(path, &Silent).expect_err("loading should fail").to_string();
        assert_eq!(files_of(self.root.path()), [] as [PathBuf; 0], "left after {error:?}");
        error
    }
}

/// The files of an OCI layout with `image`, and these annotations on its entry.
fn oci_files(image: &TestImage, annotations: &Value) -> Vec<(String, Vec<u8>)> {
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": MANIFEST, "digest": image.manifest_digest(), "size": image.manifest_bytes().len(),
        "annotations": annotations,
    }]});
    let blob = |digest: &str| format!("blobs/{}", digest.replace(':', "/"));
    let mut files: Vec<_> = image.blobs.iter().map(|(digest, bytes)| (blob(digest), bytes.clone())).collect();
    files.push((blob(&image.manifest_digest().to_string()), image.manifest_bytes()));
    files.push(("index.json".into(), index.to_string().into_bytes()));
    files.push(("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    files
}

fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
    tar(&files)
}

fn assert_is_small(image: &Image) {
    assert_eq!(image.disk.read_file("/etc/group", 100).unwrap().as_deref(), Some(&b"root:x:0:\n"[..]));
    assert!(image.digests.is_empty());
}

#[test]
fn an_oci_layout_as_directory_archive_and_compressed_archive() {
    let files =
        oci_files(&TestImage::small(), &json!({"org.opencontainers.image.ref.name": "example.com/app:1"}));
    let plain = archive(&files);
    let fixture = fixture();
    let directory = fixture.folder.path().join("layout");
    for (name, content) in &files {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let zstd = zstd::bulk::compress(&plain, 1).unwrap();
    for path in [
        directory,
        fixture.file("a.tar", &plain),
        fixture.file("a.tar.gz", &gzip(&plain)),
        fixture.file("a.tar.zst", &zstd),
    ] {
        let images = fixture.store.load(&path, &Silent).unwrap();
        assert_eq!(images.len(), 1);
        assert_eq!(images[0].references[0].to_string(), "example.com/app:1");
        assert_is_small(&images[0]);
        fixture.store.remove("example.com/app:1").unwrap();
        assert!(files_of(fixture.root.path()).is_empty());
    }
}

#[test]
fn images_without_a_full_name_get_one_from_the_file() {
    let fixture = fixture();
    let name = |annotations: Value| {
        let path = fixture.file("My App_v2.tar", &archive(&oci_files(&TestImage::small(), &annotations)));
        fixture.store.load(&path, &Silent).unwrap()[0].references.last().unwrap().to_string()
    };
    assert_eq!(name(json!({"org.opencontainers.image.ref.name": "latest"})), "localhost/my-app-v2:latest");
    assert_eq!(name(json!({"io.containerd.image.name": "docker.io/library/x:3"})), "x:3");
    assert!(name(json!({})).starts_with("localhost/my-app-v2@sha256:"));
}

/// What docker save writes: members that are named by nothing but a path, one of them through a link.
fn docker_archive(config: &Value, layers: &[&[u8]], tags: &Value) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content).unwrap();
    };
    let names: Vec<String> = (0..layers.len()).map(|n| format!("{n}/layer.tar")).collect();
    for (name, layer) in names.iter().zip(layers) {
        add(&format!("data/{name}"), layer);
    }
    add("config.json", config.to_string().as_bytes());
    let manifest = json!([{"Config": "config.json", "RepoTags": tags, "Layers": names}]);
    add("manifest.json", manifest.to_string().as_bytes());
    for name in &names {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, name, format!("../data/{name}")).unwrap();
    }
    builder.into_inner().unwrap()
}

fn config_for(layers: &[&[u8]]) -> Value {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}})
}

#[test]
fn a_docker_archive_with_two_names() {
    let (a, b) = (tar(&[("a", b"1")]), tar(&[("etc/group", b"root:x:0:\n")]));
    let layers: [&[u8]; 2] = [&a, &b];
    let fixture = fixture();
    let bytes = docker_archive(&config_for(&layers), &layers, &json!(["app:1", "app:2"]));
    let images = fixture.store.load(&fixture.file("saved.tar", &bytes), &Silent).unwrap();
    assert_eq!(images[0].references.iter().map(ToString::to_string).collect::<Vec<_>>(), ["app:1", "app:2"]);
    assert_eq!(images[0].id, Digest::of(config_for(&layers).to_string().as_bytes()));
    assert_is_small(&images[0]);
    assert_eq!(fixture.store.remove(images[0].id.short()).unwrap().untagged.len(), 2);
    assert!(files_of(fixture.root.path()).is_empty());
    let bytes = docker_archive(&config_for(&layers), &layers, &Value::Null);
    let images = fixture.store.load(&fixture.file("saved.tar", &bytes), &Silent).unwrap();
    assert!(images[0].references[0].to_string().starts_with("localhost/saved@sha256:"));
}

#[test]
fn lies_in_archives_are_found_out() {
    let layer = tar(&[("a", b"1")]);
    let other = tar(&[("a", b"2")]);
    let fixture = fixture();
    let bytes = docker_archive(&config_for(&[&layer]), &[&other], &json!(["app:1"]));
    assert!(fixture.fails(&fixture.file("x.tar", &bytes)).contains("expected diffID"));
    let bytes = docker_archive(&config_for(&[&layer]), &[&layer, &layer], &json!(["app:1"]));
    assert!(fixture.fails(&fixture.file("x.tar", &bytes)).contains("lists 2 layers"));
    let bytes = docker_archive(&config_for(&[&layer]), &[&layer], &json!(["../App"]));
    assert!(fixture.fails(&fixture.file("x.tar", &bytes)).contains("not valid"));

    let image = TestImage::small();
    let damage = |change: &dyn Fn(&str, &mut Vec<u8>)| {
        let mut files = oci_files(&image, &json!({}));
        files.iter_mut().for_each(|(name, content)| change(name, content));
        fixture.fails(&fixture.file("x.tar", &archive(&files)))
    };
    let manifest = image.manifest_digest().hex().to_owned();
    let error = damage(&|name, content| {
        if name.ends_with(&manifest) {
            content.push(b' ');
        }
    });
    assert!(error.contains("does not match its digest"), "{error}");
    let layer = image.layer_digest(0).replace(':', "/");
    let error = damage(&|name, content| {
        if name.ends_with(&layer) {
            content.push(0);
        }
    });
    assert!(error.contains("bytes instead of"), "{error}");
    let error = damage(&|name, content| {
        if name.ends_with(&layer) {
            content[100] ^= 1;
        }
    });
    assert!(error.contains("does not match its digest"), "{error}");
    let error = damage(&|name, content| {
        if name == "index.json" {
            content.truncate(10);
        }
    });
    assert!(error.contains("not valid"), "{error}");
}

#[test]
fn files_that_are_no_images_say_so() {
    let fixture = fixture();
    assert!(fixture.fails(&fixture.folder.path().join("missing")).contains("cannot read"));
    assert!(fixture.fails(fixture.folder.path()).contains("neither an OCI layout nor a docker archive"));
    assert!(fixture.fails(&fixture.file("x", &tar(&[("a", b"1")]))).contains("neither"));
    assert!(fixture.fails(&fixture.file("x", &[7; 2000])).contains("cannot read"));
    assert!(fixture.fails(&fixture.file("x", b"")).contains("neither"));
    assert!(fixture.fails(&fixture.file("x", &gzip(b"")[..12])).contains("cannot read"));
}

#[test]
fn members_that_climb_out_are_refused() {
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.as_mut_bytes()[..9].copy_from_slice(b"../escape");
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, &b"x"[..]).unwrap();
    let fixture = fixture();
    let error = fixture.fails(&fixture.file("x.tar", &builder.into_inner().unwrap()));
    assert!(error.contains("unsafe name \"../escape\""), "{error}");
    let manifest = json!([{"Config": "/etc/hostname", "RepoTags": ["a:1"], "Layers": []}]).to_string();
    let error = fixture.fails(&fixture.file("x.tar", &tar(&[("manifest.json", manifest.as_bytes())])));
    assert!(error.contains("unsafe name \"/etc/hostname\""), "{error}");
}
