use proptest::prelude::*;
use serde_json::json;

use super::*;

fn hex(n: u8) -> String {
    format!("sha256:{}", format!("{n:02x}").repeat(32))
}

fn layer_json(n: u8, media_type: &str) -> Value {
    json!({"mediaType": media_type, "digest": hex(n), "size": 10 + u64::from(n)})
}

fn manifest_json() -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPES[0],
        "config": {"mediaType": CONFIG_TYPES[0], "digest": hex(1), "size": 100},
        "layers": [layer_json(2, LAYER_TYPES[1]), layer_json(3, LAYER_TYPES[5])],
    })
}

fn parse_json(value: &Value, declared: Option<&str>) -> Result<Document, ManifestError> {
    parse(value.to_string().as_bytes(), declared)
}

fn complaint(value: &Value, declared: Option<&str>) -> String {
    parse_json(value, declared).unwrap_err().to_string()
}

#[test]
fn both_families_are_read() {
    for declared in
        [None, Some("application/vnd.docker.distribution.manifest.v2+json"), Some("application/json")]
    {
        let Document::Manifest(manifest) = parse_json(&manifest_json(), declared).unwrap() else {
            panic!("not a manifest")
        };
        assert_eq!(manifest.config.size, 100);
        assert_eq!(manifest.layers.iter().map(|l| l.size).collect::<Vec<_>>(), [12, 13]);
    }
}

#[test]
fn documents_that_can_be_read_in_two_ways_are_refused() {
    let mut both = manifest_json();
    both["manifests"] = json!([]);
    assert!(complaint(&both, None).contains("ambiguous"));
    let both = json!({"schemaVersion": 2, "manifests": [], "layers": []});
    assert!(complaint(&both, None).contains("\"layers\""));
    assert!(complaint(&manifest_json(), Some(INDEX_TYPES[0])).contains("ambiguous"));
    let mut lying = manifest_json();
    lying["mediaType"] = json!(INDEX_TYPES[1]);
    assert!(complaint(&lying, None).contains("manifest.list.v2+json"));
    let twice = r#"{"schemaVersion":2,"schemaVersion":2,"manifests":[]}"#;
    assert!(parse(twice.as_bytes(), None).unwrap_err().to_string().contains("duplicate field"));
}

#[test]
fn what_is_no_image_says_so() {
    assert!(complaint(&json!({"schemaVersion": 1, "fsLayers": []}), None).contains("schema 1"));
    assert!(complaint(&json!({"schemaVersion": 3, "manifests": []}), None).contains("schemaVersion 3"));
    assert!(complaint(&json!({"schemaVersion": 2}), None).contains("neither"));
    assert!(complaint(&json!([]), None).contains("not valid"));
    let mut chart = manifest_json();
    chart["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
    assert!(complaint(&chart, None).contains("helm"));
    let mut xz = manifest_json();
    xz["layers"][1]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+encrypted");
    assert!(complaint(&xz, None).contains("+encrypted"));
    let mut bad = manifest_json();
    bad["layers"][0]["digest"] = json!("sha256:../../x");
    assert!(complaint(&bad, None).contains("unusable digest"));
    let mut negative = manifest_json();
    negative["layers"][0]["size"] = json!(-1);
    assert!(complaint(&negative, None).contains("not valid"));
}

#[test]
fn foreign_layers_and_excess_are_refused() {
    let mut foreign = manifest_json();
    foreign["layers"][0]["urls"] = json!(["https://elsewhere.example/x"]);
    assert!(complaint(&foreign, None).contains("foreign"));
    let mut foreign = manifest_json();
    foreign["layers"][0]["mediaType"] = json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    assert!(complaint(&foreign, None).contains("foreign"));
    let mut many = manifest_json();
    many["layers"] = Value::Array(vec![layer_json(9, LAYER_TYPES[0]); MAX_LAYERS + 1]);
    assert!(complaint(&many, None).contains("129 layers"));
}

fn index_of(platforms: &[(&str, &str, Option<&str>)]) -> Vec<IndexEntry> {
    let entries: Vec<Value> = (1..)
        .zip(platforms)
        .map(|(n, (os, architecture, variant))| {
            json!({"mediaType": MANIFEST_TYPES[0], "digest": hex(n), "size": 1,
                   "platform": {"os": os, "architecture": architecture, "variant": variant}})
        })
        .collect();
    let Ok(Document::Index(index)) = parse_json(&json!({"schemaVersion": 2, "manifests": entries}), None)
    else {
        panic!("not an index")
    };
    index
}

#[test]
fn the_platform_is_chosen() {
    let index = index_of(&[
        ("unknown", "unknown", None),
        ("linux", "amd64", Some("v3")),
        ("linux", "arm64", Some("v8")),
        ("linux", "amd64", None),
    ]);
    let wanted = Platform::new("linux", "amd64", None);
    assert_eq!(choose(&index, &wanted).unwrap().descriptor.digest.to_string(), hex(4));
    let arm = Platform::new("linux", "arm64", None);
    assert_eq!(choose(&index, &arm).unwrap().descriptor.digest.to_string(), hex(3));
    let error = choose(&index, &Platform::new("linux", "s390x", None)).unwrap_err().to_string();
    assert_eq!(
        error,
        "the image is not available for linux/s390x, only for linux/amd64/v3, linux/arm64, linux/amd64"
    );
}

#[test]
fn dockers_nulls_in_configurations_are_fine() {
    let config = json!({
        "architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z",
        "config": {"Env": null, "Cmd": null, "Volumes": null, "ExposedPorts": null, "Labels": null, "OnBuild": null,
                   "Entrypoint": ["/bin/sh"], "WorkingDir": "", "User": "", "Hostname": "", "Healthcheck": {"Test": ["NONE"]}},
        "rootfs": {"type": "layers", "diff_ids": [hex(1)]},
        "history": [{"created": "2024-01-01T00:00:00Z", "empty_layer": true}],
        "container_config": {"x": 1}
    });
    let config = Config::parse(config.to_string().as_bytes()).unwrap();
    assert_eq!(config.diff_ids.len(), 1);
    assert!(config.check_platform(&Platform::new("linux", "amd64", None)).is_ok());
    let error = config.check_platform(&Platform::new("linux", "arm64", None)).unwrap_err().to_string();
    assert_eq!(error, "the image is for linux/amd64, not for linux/arm64");
    let two = [2, 3].map(|n| Descriptor { digest: hex(n).parse().unwrap(), size: 1 });
    assert!(
        config
            .check_layers(&two)
            .unwrap_err()
            .to_string()
            .contains("lists 2 layers but the image configuration 1")
    );
}

#[test]
fn one_blob_cannot_be_two_layers() {
    let config =
        json!({"architecture": "", "os": "", "rootfs": {"type": "layers", "diff_ids": [hex(1), hex(2)]}});
    let config = Config::parse(config.to_string().as_bytes()).unwrap();
    let twice = [7, 7].map(|n| Descriptor { digest: hex(n).parse().unwrap(), size: 1 });
    assert!(matches!(config.check_layers(&twice), Err(ManifestError::Contradiction(_))));
    assert!(config.check_platform(&Platform::default()).is_ok());
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes: Vec<u8>) {
        let _ = parse(&bytes, None);
        let _ = Config::parse(&bytes);
    }

    #[test]
    fn a_damaged_manifest_never_panics(position in 0usize..400, byte: u8) {
        let mut bytes = manifest_json().to_string().into_bytes();
        let position = position % bytes.len();
        bytes[position] = byte;
        let _ = parse(&bytes, None);
    }
}
