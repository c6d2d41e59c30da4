use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Reference {
    text.parse().unwrap_or_else(|e| panic!("{text:?}: {e}"))
}

#[test]
fn dockers_spellings() {
    let hex = "0123456789abcdef".repeat(4);
    let digest = format!("sha256:{hex}");
    for (given, canonical, familiar) in [
        ("debian", "docker.io/library/debian:latest", "debian:latest"),
        ("debian:12", "docker.io/library/debian:12", "debian:12"),
        ("library/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("index.docker.io/library/debian:12", "docker.io/library/debian:12", "debian:12"),
        ("user/app", "docker.io/user/app:latest", "user/app:latest"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"),
        ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
        ("LOCALHOST:5000/x/y:Tag_1.0-a", "localhost:5000/x/y:Tag_1.0-a", "localhost:5000/x/y:Tag_1.0-a"),
        ("Quay.IO/a__b/c--d.e_f", "quay.io/a__b/c--d.e_f:latest", "quay.io/a__b/c--d.e_f:latest"),
        ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
        ("[2001:DB8:0::1]/x", "[2001:db8::1]/x:latest", "[2001:db8::1]/x:latest"),
        ("127.0.0.1:05000/x", "127.0.0.1:5000/x:latest", "127.0.0.1:5000/x:latest"),
    ] {
        let reference = parse(given);
        assert_eq!(reference.canonical(), canonical, "{given}");
        assert_eq!(reference.to_string(), familiar, "{given}");
    }
    let pinned = parse(&format!("localhost:5000/x/y:tag@{digest}"));
    assert_eq!(pinned.tag(), Some("tag"));
    assert_eq!(pinned.digest().map(ToString::to_string), Some(digest.clone()));
    assert_eq!(pinned.to_string(), format!("localhost:5000/x/y:tag@{digest}"));
    assert_eq!(pinned.without_redundant_tag().to_string(), format!("localhost:5000/x/y@{digest}"));
    assert_eq!(parse(&format!("debian@{digest}")).tag(), None);
}

#[test]
fn errors_name_what_is_wrong() {
    let id = "a".repeat(64);
    let long = format!("quay.io/{}", "a".repeat(300));
    for (bad, expected) in [
        ("", "empty"),
        ("https://quay.io/x", "without https://"),
        (id.as_str(), "is an image id"),
        ("Debian", "lower case"),
        ("user/App:1", "\"user/App\" must be in lower case"),
        ("debian:", "tag \"\""),
        ("debian:-x", "tag \"-x\""),
        ("debian:a b", "tag \"a b\""),
        ("debian@sha256:12", "not 2"),
        ("debian@", "is not a digest"),
        ("a//b", "\"\" in the image name"),
        ("/a", "\"\" in the image name"),
        ("a/", "\"\" in the image name"),
        ("../a", "not a registry"),
        ("a/../b", "\"..\""),
        ("a___b", "\"a___b\""),
        ("-a", "\"-a\""),
        ("host:99999/x", "not a registry"),
        ("host:0/x", "not a registry"),
        ("host:+80/x", "not a registry"),
        ("host:/x", "not a registry"),
        ("[::1/x", "not a registry"),
        ("[zz]:5/x", "not a registry"),
        ("a.-b/x", "not a registry"),
        (long.as_str(), "308 characters"),
        ("d\u{e9}bian", "is not valid"),
    ] {
        let error = bad.parse::<Reference>().expect_err(bad).to_string();
        assert!(error.contains(expected), "{bad:?} gave {error:?}");
    }
}

prop_compose! {
    fn component()(text in "[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,6}){0,2}") -> String { text }
}

prop_compose! {
    fn any_reference()(
        host in proptest::option::of(prop_oneof![
            "[a-z0-9]{1,8}(\\.[a-z0-9]{1,5}){1,2}(:[1-9][0-9]{0,3})?",
            "localhost(:[1-9][0-9]{0,3})?",
            "\\[::[1-9a-f]\\](:[1-9][0-9]{0,3})?",
        ]),
        path in prop::collection::vec(component(), 1..4),
        tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
        digest in proptest::option::of("sha256:[0-9a-f]{64}"),
    ) -> String {
        // Without a registry the first component must not look like one.
        let mut text = host.unwrap_or_else(|| "user".to_owned()) + "/" + &path.join("/");
        if let Some(tag) = tag { text = text + ":" + &tag; }
        if let Some(digest) = digest { text = text + "@" + &digest; }
        text
    }
}

proptest! {
    #[test]
    fn both_forms_read_back_as_the_same_reference(text in any_reference()) {
        let reference = parse(&text);
        prop_assert_eq!(&parse(&reference.canonical()), &reference);
        prop_assert_eq!(&parse(&reference.to_string()), &reference);
        prop_assert!(reference.tag().is_some() || reference.digest().is_some());
    }

    #[test]
    fn anything_else_is_an_error_and_never_a_panic(text in "\\PC{0,80}") {
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert_eq!(&parse(&reference.canonical()), &reference);
            prop_assert!(!reference.repository().contains(".."));
        }
    }
}
