//! Pulls from registries that behave and from those that do not.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::*;
use crate::progress::Silent;
use crate::registry::RetryPolicy;
use crate::testing::image::{INDEX, TestImage, gzip, noise, tar};
use crate::testing::registry::{FakeRegistry, Reply, Request, serve_image};
use crate::testing::{Recorder, files_of, options};

struct Fixture {
    store: Store,
    root: tempfile::TempDir,
}

fn store() -> Fixture {
    let root = tempfile::tempdir().unwrap();
    Fixture { store: Store::open(root.path()).unwrap(), root }
}

impl Fixture {
    fn pull(&self, registry: &FakeRegistry) -> Result<Image, PullError> {
        self.store.pull(&registry.reference("test/image:1"), &options(), &Silent)
    }

    /// Pulls what must fail, checks that nothing stays, and returns the sentence.
    fn fails(&self, registry: &FakeRegistry) -> String {
        let error = self.pull(registry).expect_err("the pull should fail").to_string();
        assert_eq!(files_of(self.root.path()), [] as [std::path::PathBuf; 0], "left after {error:?}");
        error
    }
}

/// A registry that answers like one with `image`, except where `change` says otherwise.
fn registry(
    image: &TestImage,
    change: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
) -> FakeRegistry {
    let image = image.clone();
    FakeRegistry::start(move |request| change(request, serve_image(&image, request)))
}

#[test]
fn an_image_is_pulled_once_and_found_by_every_name() {
    let image = TestImage::small();
    let registry = FakeRegistry::with(image.clone());
    let fixture = store();
    let recorder = Recorder::default();
    let reference = registry.reference("test/image:1");
    let pulled = fixture.store.pull(&reference, &options(), &recorder).unwrap();
    assert_eq!(pulled.references, std::slice::from_ref(&reference));
    assert_eq!(pulled.manifest_digest, image.manifest_digest());
    assert_eq!(pulled.created.as_deref(), Some("2024-05-06T07:08:09Z"));
    assert_eq!(pulled.config.config().as_ref().unwrap().cmd().as_ref().unwrap()[0], "/bin/true");
    assert_eq!(pulled.disk.layers.len(), 2);
    assert_eq!(pulled.disk.read_file("/etc/group", 100).unwrap().as_deref(), Some(&b"root:x:0:\n"[..]));
    assert_eq!(pulled.disk.read_file("etc/shadow", 100).unwrap(), None);
    assert_eq!(pulled.disk.read_file("/data", 1 << 20).unwrap().unwrap(), noise(300_000, 1));
    for part in std::iter::once(&pulled.disk.index).chain(&pulled.disk.layers) {
        assert_eq!(std::fs::metadata(part).unwrap().len() % 4096, 0);
    }
    let done = recorder.events().iter().filter(|e| matches!(e, ProgressEvent::LayerDone { .. })).count();
    assert_eq!(done, 2);

    let id = pulled.id.hex().to_owned();
    let by_digest = format!("{}/test/image@{}", registry.name(), image.manifest_digest());
    for name in [reference.to_string(), id[..12].to_owned(), id.clone(), format!("sha256:{id}"), by_digest] {
        let found = fixture.store.find(&name).unwrap().unwrap_or_else(|| panic!("{name} is not found"));
        assert_eq!(found.id, pulled.id);
    }
    assert!(fixture.store.find("test/image:1").unwrap().is_none());

    let again = Recorder::default();
    fixture.store.pull(&reference, &options(), &again).unwrap();
    assert_eq!(registry.count_blob(&image.layer_digest(0)), 1);
    assert!(again.events().contains(&ProgressEvent::LayerExists { layer: 1 }));
    assert_eq!(fixture.store.images().unwrap().len(), 1);
}

#[test]
fn zstd_and_plain_layers_and_duplicates() {
    let (a, b) = (tar(&[("a", b"1")]), tar(&[("b", b"2")]));
    let layers = [
        (zstd::bulk::compress(&a, 3).unwrap(), Digest::of(&a)),
        (b.clone(), Digest::of(&b)),
        (zstd::bulk::compress(&a, 3).unwrap(), Digest::of(&a)),
        (gzip(&b), Digest::of(&b)),
    ];
    let image = TestImage::with_layers(&layers);
    let registry = FakeRegistry::with(image.clone());
    let fixture = store();
    let pulled = fixture.pull(&registry).unwrap();
    assert_eq!(pulled.disk.layers.len(), 4);
    assert_eq!(pulled.disk.layers[0], pulled.disk.layers[2]);
    assert_eq!(pulled.disk.read_file("/b", 10).unwrap().as_deref(), Some(&b"2"[..]));
    // The same content twice is fetched once, also when it is compressed in two ways.
    let blobs = [0, 1, 3].map(|layer| registry.count_blob(&image.layer_digest(layer)));
    assert_eq!(blobs.iter().sum::<usize>(), 2, "{blobs:?}");
}

#[test]
fn an_image_without_layers_is_an_image() {
    let fixture = store();
    let pulled = fixture.pull(&FakeRegistry::with(TestImage::of(&[]))).unwrap();
    assert_eq!(pulled.disk.layers.len(), 0);
    assert_eq!(pulled.disk.read_file("/etc/passwd", 10).unwrap(), None);
}

#[test]
fn the_platform_is_chosen_from_an_index_in_an_index() {
    let mut image = TestImage::small();
    let entry = |digest: &str, arch: &str, media_type: &str| json!({"mediaType": media_type, "digest": digest, "size": 1, "platform": {"os": "linux", "architecture": arch}});
    let inner = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        {"mediaType": INDEX, "digest": Digest::of(b"x"), "size": 1, "platform": {"os": "unknown", "architecture": "unknown"}},
        entry(&Digest::of(b"arm").to_string(), "arm64", INDEX),
        entry(&image.manifest_digest().to_string(), "amd64", INDEX),
    ]});
    let inner = inner.to_string().into_bytes();
    let outer = json!({"schemaVersion": 2, "manifests": [{"mediaType": INDEX, "digest": Digest::of(&inner), "size": 1}]});
    let outer = outer.to_string().into_bytes();
    let (inner_digest, outer_digest) = (Digest::of(&inner), Digest::of(&outer));
    image.blobs.insert(inner_digest.to_string(), inner);
    image.blobs.insert(outer_digest.to_string(), outer);
    let registry = FakeRegistry::with(image.clone());
    let fixture = store();
    let reference = registry.reference(&format!("test/image@{outer_digest}"));
    let pulled = fixture.store.pull(&reference, &options(), &Silent).unwrap();
    assert_eq!(pulled.manifest_digest, image.manifest_digest());
    assert_eq!(pulled.digests, std::slice::from_ref(&reference));
    assert!(fixture.store.find(&reference.to_string()).unwrap().is_some());
    let s390x = PullOptions { platform: "linux/s390x".parse().unwrap(), ..options() };
    let inner = registry.reference(&format!("test/image@{inner_digest}"));
    let error = fixture.store.pull(&inner, &s390x, &Silent).unwrap_err().to_string();
    assert!(error.ends_with("not available for linux/s390x, only for linux/arm64, linux/amd64"), "{error}");
}

#[test]
fn what_is_not_there_is_named() {
    let fixture = store();
    let registry = FakeRegistry::with(TestImage::small());
    let error = fixture.store.pull(&registry.reference("test/image:2"), &options(), &Silent).unwrap_err();
    assert!(matches!(error, PullError::Registry(RegistryError::NotFound { .. })));
    assert_eq!(
        error.to_string(),
        format!("manifest test/image:2 not found in the registry {}", registry.name())
    );
    let gone = FakeRegistry::with(TestImage::small()).reference("test/image:1");
    let error = fixture.store.pull(&gone, &options(), &Silent).unwrap_err().to_string();
    assert!(error.contains("cannot reach the registry") && error.contains("refused"), "{error}");
}

/// Wants a bearer token, which its own /token gives out; each is good for `uses` requests.
fn with_tokens(image: &TestImage, uses: usize) -> FakeRegistry {
    let issued: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    registry(image, move |request, reply| {
        let mut issued = issued.lock().unwrap();
        if request.target.starts_with("/token?") {
            issued.push(uses);
            return Reply::ok(format!(r#"{{"token": "{}", "expires_in": 60}}"#, issued.len() - 1));
        }
        let token = request
            .header("authorization")
            .map(|a| a.strip_prefix("Bearer ").unwrap().parse::<usize>().unwrap());
        let left = token.map_or(0, |token| std::mem::replace(&mut issued[token], 0));
        if left > 0 || request.target == "/v2/" {
            if let Some(token) = token {
                issued[token] = left - 1;
            }
            return reply;
        }
        let host = request.header("host").unwrap();
        let challenge =
            format!(r#"Bearer realm="http://{host}/token",service="s&s",scope="repository:test/image:pull""#);
        Reply::status(401).with("WWW-Authenticate", challenge)
    })
}

#[test]
fn a_bearer_token_is_obtained_and_renewed_in_the_middle() {
    let registry = with_tokens(&TestImage::small(), 2);
    let fixture = store();
    fixture.pull(&registry).unwrap();
    let tokens: Vec<_> = registry.requests().into_iter().filter(|r| r.target.starts_with("/token")).collect();
    assert_eq!(tokens[0].target, "/token?scope=repository%3Atest%2Fimage%3Apull&service=s%26s");
    assert_eq!(tokens[0].header("authorization"), None);
    assert!(tokens.len() >= 2, "four requests at two per token");
}

#[test]
fn credentials_go_to_the_token_server_and_wrong_ones_are_explained() {
    let fixture = store();
    let password = Credentials::Password { username: "u".into(), password: "p".into() };
    let with = |credentials| PullOptions { credentials: Some(credentials), ..options() };
    let registry = with_tokens(&TestImage::small(), 100);
    fixture.store.pull(&registry.reference("test/image:1"), &with(password.clone()), &Silent).unwrap();
    let token = registry.requests().into_iter().find(|r| r.target.starts_with("/token")).unwrap();
    assert_eq!(token.header("authorization"), Some("Basic dTpw"));

    let basic = FakeRegistry::start({
        let image = TestImage::small();
        move |request| match request.header("authorization") {
            Some("Basic dTpw") => serve_image(&image, request),
            _ => Reply::status(401).with("WWW-Authenticate", r#"Basic realm="x""#),
        }
    });
    let reference = basic.reference("test/image:1");
    fixture.store.pull(&reference, &with(password), &Silent).unwrap();
    let wrong = with(Credentials::Password { username: "u".into(), password: "x".into() });
    let error = fixture.store.pull(&reference, &wrong, &Silent).unwrap_err();
    assert!(matches!(error, PullError::Registry(RegistryError::Unauthorized { with_credentials: true, .. })));
    let error = fixture.store.pull(&reference, &options(), &Silent).unwrap_err().to_string();
    assert!(error.contains("denied") && error.contains(&format!("docker login {}", basic.name())), "{error}");
}

#[test]
fn an_identity_token_is_exchanged() {
    let registry = FakeRegistry::start({
        let image = TestImage::small();
        move |request| match (request.method.as_str(), request.header("authorization")) {
            ("POST", _) => Reply::ok(r#"{"access_token": "fresh"}"#),
            (_, Some("Bearer fresh")) => serve_image(&image, request),
            _ => {
                let realm =
                    format!(r#"Bearer realm="http://{}/oauth",service="s""#, request.header("host").unwrap());
                Reply::status(401).with("WWW-Authenticate", realm)
            }
        }
    });
    let options = PullOptions { credentials: Some(Credentials::IdentityToken("r&t".into())), ..options() };
    store().store.pull(&registry.reference("test/image:1"), &options, &Silent).unwrap();
    let post = registry.requests().into_iter().find(|r| r.method == "POST").unwrap();
    let form = String::from_utf8(post.body).unwrap();
    assert!(form.contains("grant_type=refresh_token") && form.contains("refresh_token=r%26t"), "{form}");
}

#[test]
fn a_token_server_without_tls_elsewhere_gets_nothing() {
    let registry = registry(&TestImage::small(), |_, _| {
        Reply::status(401).with("WWW-Authenticate", r#"Bearer realm="http://198.51.100.1/token""#)
    });
    let credentials = Some(Credentials::Password { username: "u".into(), password: "p".into() });
    let options = PullOptions { credentials, ..options() };
    let error =
        store().store.pull(&registry.reference("test/image:1"), &options, &Silent).unwrap_err().to_string();
    assert!(error.contains("does not use https"), "{error}");
}

#[test]
fn redirects_are_followed_without_credentials() {
    let image = TestImage::small();
    let elsewhere = FakeRegistry::with(image.clone());
    let target = elsewhere.name();
    let first = AtomicUsize::new(0);
    let registry = registry(&image, move |request, reply| {
        if request.header("authorization") != Some("Basic dTpw") {
            return Reply::status(401).with("WWW-Authenticate", "Basic");
        }
        if request.target.contains("/blobs/") {
            let status = if first.fetch_add(1, Ordering::SeqCst) == 0 { 302 } else { 307 };
            return Reply::status(status).with("Location", format!("http://{target}{}", request.target));
        }
        reply
    });
    let credentials = Some(Credentials::Password { username: "u".into(), password: "p".into() });
    let options = PullOptions { credentials, ..options() };
    store().store.pull(&registry.reference("test/image:1"), &options, &Silent).unwrap();
    let seen = elsewhere.requests();
    assert_eq!(seen.len(), 3, "configuration and two layers");
    assert!(seen.iter().all(|r| r.header("authorization").is_none() && r.header("cookie").is_none()));
}

#[test]
fn redirects_that_must_not_be_followed() {
    let fixture = store();
    for (location, expected) in [
        ("http://198.51.100.1/x", "unencrypted"),
        ("ftp://127.0.0.1/x", "not a usable URL"),
        ("", "not a usable URL"),
        ("/v2/test/image/manifests/1", "too many redirects"),
    ] {
        let registry = registry(&TestImage::small(), move |request, reply| {
            if request.target == "/v2/" { reply } else { Reply::status(307).with("Location", location) }
        });
        let error = fixture.fails(&registry);
        assert!(error.contains(expected), "{location:?} gave {error:?}");
    }
}

/// Answers the first `times` requests for something with `reply`.
fn first(
    times: usize,
    target: &'static str,
    reply: Reply,
) -> impl Fn(&Request, Reply) -> Reply + Send + Sync {
    let count = AtomicUsize::new(0);
    move |request, usual| {
        let hit = request.target.contains(target) && count.fetch_add(1, Ordering::SeqCst) < times;
        if hit { reply.clone() } else { usual }
    }
}

#[test]
fn busy_and_failing_registries_are_asked_again_but_not_for_ever() {
    let image = TestImage::small();
    for reply in [
        Reply::status(429).with("Retry-After", "0"),
        Reply::status(500),
        Reply::status(503),
        Reply::ok("").cut(0),
    ] {
        for target in ["/manifests/", "/blobs/"] {
            let cut = Reply { body: vec![b'x'; 100], ..reply.clone() };
            let registry = registry(&image, first(2, target, cut));
            let recorder = Recorder::default();
            let reference = registry.reference("test/image:1");
            let pulled = store().store.pull(&reference, &options(), &recorder);
            if reply.status == 200 && target == "/blobs/" {
                // An announced length that is not the blob's is no accident.
                assert!(pulled.unwrap_err().to_string().contains("sends 100"));
                continue;
            }
            pulled.unwrap();
            assert_eq!(recorder.retries(), 2);
        }
    }
    let registry = registry(&image, first(usize::MAX, "/manifests/", Reply::status(502)));
    let error = store().pull(&registry).unwrap_err().to_string();
    assert!(error.contains("answered 502"), "{error}");
    assert_eq!(registry.requests().iter().filter(|r| r.target.contains("/manifests/")).count(), 3);
}

#[test]
fn a_broken_layer_is_resumed_where_it_broke() {
    let image = TestImage::small();
    let layer = image.layer_digest(0);
    let wanted = layer.clone();
    let registry = registry(
        &image,
        move |request, reply| {
            if request.is_blob(&wanted) { reply.cut(70_000) } else { reply }
        },
    );
    let fixture = store();
    let pulled = fixture.pull(&registry).unwrap();
    assert_eq!(pulled.disk.read_file("/data", 1 << 20).unwrap().unwrap(), noise(300_000, 1));
    let ranges: Vec<_> = registry
        .requests()
        .iter()
        .filter(|r| r.is_blob(&layer))
        .map(|r| r.header("range").map(str::to_owned))
        .collect();
    assert!(ranges.len() > 3, "{ranges:?}");
    assert_eq!(ranges[..2], [None, Some("bytes=70000-".to_owned())]);
}

#[test]
fn a_server_without_ranges_is_read_from_the_start_again() {
    let image = TestImage::small();
    let layer = image.layer_digest(0);
    let (plain, count) = (image.clone(), AtomicUsize::new(0));
    let registry = registry(&image, move |request, reply| {
        if !request.is_blob(&layer) {
            return reply;
        }
        let whole = Reply::ok(plain.blobs[&layer].clone());
        if count.fetch_add(1, Ordering::SeqCst) == 0 { whole.cut(100_000) } else { whole }
    });
    store().pull(&registry).unwrap();
}

#[test]
fn a_layer_that_always_ends_early_is_truncated() {
    let image = TestImage::small();
    let layer = image.layer_digest(0);
    let registry = registry(&image, move |request, reply| match request.header("range") {
        _ if !request.is_blob(&layer) => reply,
        None => reply.cut(5000),
        Some(_) => reply.cut(0),
    });
    let error = store().pull(&registry).unwrap_err();
    assert!(error.to_string().contains("was cut off after 5000 of"), "{error}");
}

#[test]
fn complete_layers_survive_a_broken_pull_and_are_not_fetched_again() {
    let image = TestImage::small();
    let small = image.layer_digest(1);
    let healthy = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (big, switch) = (image.layer_digest(0), std::sync::Arc::clone(&healthy));
    let registry = registry(&image, move |request, reply| {
        if request.is_blob(&big) && !switch.load(Ordering::SeqCst) { Reply::status(503) } else { reply }
    });
    let fixture = store();
    let one = PullOptions { retry: RetryPolicy { attempts: 20, ..options().retry }, ..options() };
    assert!(fixture.store.pull(&registry.reference("test/image:1"), &one, &Silent).is_err());
    assert_eq!(registry.count_blob(&small), 1);
    healthy.store(true, Ordering::SeqCst);
    fixture.pull(&registry).unwrap();
    assert_eq!(registry.count_blob(&small), 1);
}

#[test]
fn lies_about_content_are_found_out_and_leave_nothing() {
    let image = TestImage::small();
    let layer = image.layer_digest(0);
    let fixture = store();

    let (wanted, length) = (layer.clone(), image.blobs[&layer].len());
    let other = noise(length, 7);
    let registry1 =
        registry(&image, move |r, reply| if r.is_blob(&wanted) { Reply::ok(other.clone()) } else { reply });
    let error = fixture.fails(&registry1);
    assert!(error.contains(&format!("does not match its digest: expected {layer}")), "{error}");

    let wanted = layer.clone();
    let registry2 = registry(&image, move |r, mut reply| {
        if r.is_blob(&wanted) {
            reply.body.push(0);
        }
        reply
    });
    assert!(fixture.fails(&registry2).contains(&format!("should have {length} bytes")));

    let wanted = layer.clone();
    let registry3 = registry(&image, move |r, mut reply| {
        if r.is_blob(&wanted) {
            reply.body.push(0);
            reply.chunked = true;
        }
        reply
    });
    assert!(fixture.fails(&registry3).contains(&format!("should have {length} bytes")));

    let registry4 = registry(&image, |r, reply| {
        if r.target.contains("sha256") && r.target.contains("/manifests/") { Reply::ok("{}") } else { reply }
    });
    let by_digest = registry4.reference(&format!("test/image@{}", image.manifest_digest()));
    let error = fixture.store.pull(&by_digest, &options(), &Silent).unwrap_err();
    assert!(matches!(error, PullError::Registry(RegistryError::DigestMismatch { .. })), "{error}");

    let mut wrong = image.clone();
    wrong.config["rootfs"]["diff_ids"][0] = json!(Digest::of(b"something else"));
    wrong.seal();
    assert!(
        fixture
            .fails(&FakeRegistry::with(wrong))
            .contains("does not match the image configuration: expected diffID")
    );
}

#[test]
fn documents_that_are_no_image_are_refused() {
    let fixture = store();
    let refuses = |change: &dyn Fn(&mut TestImage), expected: &str| {
        let mut image = TestImage::small();
        change(&mut image);
        let error = fixture.fails(&FakeRegistry::with(image));
        assert!(error.contains(expected), "expected {expected:?}, got {error:?}");
    };
    refuses(&|image| image.manifest["manifests"] = json!([]), "ambiguous");
    refuses(
        &|image| image.manifest["annotations"] = json!({"x": "y".repeat(5 << 20)}),
        "larger than 4194304 bytes",
    );
    refuses(&|image| image.manifest["config"]["size"] = json!(9 << 20), "larger than 8388608 bytes");
    refuses(&|image| image.manifest["config"]["mediaType"] = json!("application/vnd.x"), "artifact of type");
    refuses(
        &|image| {
            image.config["rootfs"]["diff_ids"].as_array_mut().unwrap().pop();
            image.seal();
        },
        "lists 2 layers but the image configuration 1",
    );
    refuses(
        &|image| {
            image.config["architecture"] = json!("arm64");
            image.seal();
        },
        "the image is for linux/arm64, not for linux/amd64",
    );
    refuses(&|image| image.manifest["layers"][0]["urls"] = json!(["http://x"]), "foreign layer");
}

#[test]
fn layers_that_explode_or_are_damaged_are_refused() {
    let fixture = store();
    let zeros = vec![0; 20 << 20];
    let bomb = TestImage::of(&[tar(&[("zeros", &zeros)])]);
    let registry = FakeRegistry::with(bomb);
    let limits = Limits { stream_bytes: 1 << 20, ..Limits::default() };
    let small = PullOptions { limits, ..options() };
    let error =
        fixture.store.pull(&registry.reference("test/image:1"), &small, &Silent).unwrap_err().to_string();
    assert!(error.contains("longer than 1048576 bytes"), "{error}");
    assert!(files_of(fixture.root.path()).is_empty());

    let plain = tar(&[("a", b"1")]);
    let whole = gzip(&plain);
    let cut = whole[..whole.len() - 6].to_vec();
    let image = TestImage::with_layers(&[(cut, Digest::of(&plain))]);
    assert!(fixture.fails(&FakeRegistry::with(image)).contains("cannot be decompressed"));
    let image = TestImage::with_layers(&[(b"\xfd7zXZ\0 and so on".to_vec(), Digest::of(&plain))]);
    assert!(fixture.fails(&FakeRegistry::with(image)).contains("xz compression is not supported"));
}

#[test]
fn two_pulls_at_once_do_not_disturb_each_other() {
    let registry = FakeRegistry::with(TestImage::small());
    let fixture = store();
    let ids: Vec<Digest> = std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let store = Store::open(fixture.root.path()).unwrap();
                    store.pull(&registry.reference("test/image:1"), &options(), &Silent).unwrap().id
                })
            })
            .collect();
        pulls.into_iter().map(|pull| pull.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert_eq!(fixture.store.images().unwrap().len(), 1);
    assert_eq!(std::fs::read_dir(fixture.root.path().join("tmp")).unwrap().count(), 0);
}

/// A store on a file system of 2 MiB, in a mount namespace of the thread that uses it.
#[test]
fn a_full_disk_is_one_clear_error_and_leaves_nothing() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    let layers = [tar(&[("small", b"x")]), tar(&[("big", &noise(5 << 20, 3))])];
    let registry = FakeRegistry::with(TestImage::of(&layers));
    let root = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let full = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).expect("this test needs root: it mounts a small tmpfs");
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("tmpfs"), root.path(), Some("tmpfs"), MsFlags::empty(), Some("size=2m")).unwrap();
            let store = Store::open(root.path()).unwrap();
            let error =
                store.pull(&registry.reference("test/image:1"), &options(), &Silent).unwrap_err().to_string();
            assert!(error.contains("no space left on the disk of the image store"), "{error}");
            assert_eq!(files_of(root.path()), [] as [std::path::PathBuf; 0]);
        });
        full.join().unwrap();
    });
}
