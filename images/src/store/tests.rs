//! Finding, removing and collecting, with images pulled from a registry that behaves.

use super::*;
use crate::progress::Silent;
use crate::testing::image::{TestImage, tar};
use crate::testing::registry::FakeRegistry;
use crate::testing::{files_of, options};

struct Fixture {
    store: Store,
    root: tempfile::TempDir,
    registry: FakeRegistry,
}

/// A store with `image` pulled as test/image:1.
fn with(image: TestImage) -> (Fixture, Image) {
    let root = tempfile::tempdir().unwrap();
    let registry = FakeRegistry::with(image);
    let store = Store::open(root.path()).unwrap();
    let pulled = store.pull(&registry.reference("test/image:1"), &options(), &Silent).unwrap();
    (Fixture { store, root, registry }, pulled)
}

impl Fixture {
    fn name(&self) -> String {
        format!("{}/test/image:1", self.registry.name())
    }

    fn add_tag(&self, image: &Image, reference: &str) {
        let record = TagRecord {
            reference: reference.parse().unwrap(),
            manifest: image.manifest_digest.clone(),
            index: None,
            from_registry: false,
        };
        write_tag(&self.store.layout, &record).unwrap();
    }

    fn files(&self) -> Vec<PathBuf> {
        files_of(self.root.path())
    }
}

#[test]
fn the_last_reference_takes_the_image_with_it() {
    let (fixture, image) = with(TestImage::small());
    fixture.add_tag(&image, "other:2");
    assert_eq!(fixture.store.find("other:2").unwrap().unwrap().references.len(), 2);
    let removed = fixture.store.remove("other:2").unwrap();
    assert_eq!((removed.untagged[0].to_string().as_str(), removed.deleted), ("other:2", None));
    assert!(fixture.store.find(&fixture.name()).unwrap().is_some());
    let removed = fixture.store.remove(&fixture.name()).unwrap();
    assert_eq!(removed.deleted, Some(image.id));
    assert!(matches!(removed.space, Collected::Freed(bytes) if bytes > 300_000));
    assert!(fixture.files().is_empty());
    let error = fixture.store.remove("other:2").unwrap_err().to_string();
    assert_eq!(error, "no such image: other:2");
}

#[test]
fn an_id_in_several_repositories_needs_force() {
    let (fixture, image) = with(TestImage::small());
    fixture.add_tag(&image, "other:2");
    let error = fixture.store.remove(image.id.short()).unwrap_err();
    assert!(
        matches!(&error, StoreError::SeveralRepositories { references, .. } if references.len() == 2),
        "{error}"
    );
    let removed = fixture.store.remove_image(&image).unwrap();
    assert_eq!(removed.untagged.len(), 2);
    assert!(fixture.files().is_empty());
}

#[test]
fn shared_layers_stay_as_long_as_one_image_needs_them() {
    let base = tar(&[("base", b"1")]);
    let (fixture, first) = with(TestImage::of(&[base.clone(), tar(&[("one", b"1")])]));
    let other = FakeRegistry::with(TestImage::of(&[base, tar(&[("two", b"2")])]));
    let second = fixture.store.pull(&other.reference("test/image:1"), &options(), &Silent).unwrap();
    assert_eq!(first.disk.layers[0], second.disk.layers[0]);
    fixture.store.remove(&fixture.name()).unwrap();
    assert!(!first.disk.layers[1].exists() && !first.disk.index.exists());
    assert_eq!(second.disk.read_file("/base", 10).unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(fixture.store.images().unwrap().len(), 1);
}

#[test]
fn ambiguous_prefixes_are_an_error_that_lists_them() {
    let (fixture, first) = with(TestImage::of(&[]));
    // Some other image whose id begins with the same digit: the creation date makes it another one.
    let second = (0..).find_map(|n| {
        let mut image = TestImage::of(&[]);
        image.config["created"] = serde_json::json!(format!("2001-01-01T00:00:{n:02}Z"));
        image.seal();
        let id = image.manifest["config"]["digest"].as_str().unwrap().to_owned();
        id.strip_prefix("sha256:").unwrap().starts_with(&first.id.hex()[..1]).then_some(image)
    });
    let other = FakeRegistry::with(second.unwrap());
    fixture.store.pull(&other.reference("test/image:1"), &options(), &Silent).unwrap();
    let prefix = &first.id.hex()[..1];
    let error = fixture.store.find(prefix).unwrap_err();
    assert!(matches!(&error, StoreError::AmbiguousId { ids, .. } if ids.len() == 2), "{error}");
    assert!(error.to_string().contains(first.id.short()));
}

#[test]
fn names_that_cannot_be_anything_are_simply_not_found() {
    let (fixture, _) = with(TestImage::of(&[]));
    for name in ["", "UPPER", "a b", "nothing", "sha256:", "sha256:zz", "../../etc", "@", "x@sha256:12"] {
        assert!(fixture.store.find(name).unwrap().is_none(), "{name:?}");
    }
}

#[test]
fn a_collection_waits_for_pulls_and_is_made_up_for() {
    let (fixture, _) = with(TestImage::small());
    let pulling = fixture.store.lock_shared().unwrap();
    assert_eq!(fixture.store.remove(&fixture.name()).unwrap().space, Collected::Later);
    assert!(fixture.files().len() > 1);
    drop(pulling);
    Store::open(fixture.root.path()).unwrap();
    assert!(fixture.files().is_empty());
}

#[test]
fn what_a_crash_left_is_removed_when_nobody_works_in_the_store() {
    let (fixture, _) = with(TestImage::small());
    let before = fixture.files();
    let left = fixture.root.path().join("tmp/999-0");
    fs::write(&left, b"half a layer").unwrap();
    let working = fixture.store.lock_shared().unwrap();
    Store::open(fixture.root.path()).unwrap();
    assert!(left.exists());
    drop(working);
    Store::open(fixture.root.path()).unwrap();
    assert_eq!(fixture.files(), before);
}

#[test]
fn damage_is_noticed_and_pulling_again_repairs_it() {
    let (fixture, image) = with(TestImage::small());
    let reference = fixture.registry.reference("test/image:1");
    let config = fixture.store.layout.blob(&image.id);
    let break_in_turn: [&dyn Fn(); 4] = [
        &|| fs::remove_file(&image.disk.layers[0]).unwrap(),
        &|| fs::remove_file(&image.disk.index).unwrap(),
        &|| fs::write(&config, b"{}").unwrap(),
        &|| fs::write(fixture.store.layout.blob(&image.manifest_digest), b"").unwrap(),
    ];
    for damage in break_in_turn {
        damage();
        let error = fixture.store.find(&fixture.name()).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert!(fixture.store.images().unwrap().is_empty());
        fixture.store.pull(&reference, &options(), &Silent).unwrap();
        assert!(fixture.store.find(&fixture.name()).unwrap().is_some());
    }
    // A layer whose metadata is damaged is fetched again, once something needs to look at it.
    let diff_id: Digest = image.config.rootfs().diff_ids()[0].parse().unwrap();
    fs::write(fixture.store.layout.tree(&diff_id), b"x").unwrap();
    fs::remove_file(&image.disk.index).unwrap();
    let again = fixture.store.pull(&reference, &options(), &Silent).unwrap();
    assert!(again.disk.read_file("/etc/passwd", 100).unwrap().is_some());
}
