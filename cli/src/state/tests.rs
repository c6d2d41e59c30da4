//! Names and bundles under concurrency, lookup, removal.

use std::collections::{BTreeMap, HashSet};

use hull_shim::record::ExitRecord;

use super::status::repair;
use super::*;

fn record(id: &ContainerId) -> ContainerRecord {
    ContainerRecord {
        id: id.clone(),
        name: String::new(),
        image: "debian:12".into(),
        image_id: "sha256:0".into(),
        created: crate::output::time::now(),
        command: vec!["true".into()],
        tty: false,
        interactive: false,
        detached: false,
        auto_remove: false,
        labels: BTreeMap::new(),
        stop_signal: 15,
        stop_timeout: None,
    }
}

fn create(state: &State, name: Option<&str>) -> Result<Container, StateError> {
    let id = ContainerId::random().unwrap();
    let name = name.map(|name| name.parse::<Name>().unwrap());
    state.create(record(&id), name.as_ref(), b"{}").map(|(container, _)| container)
}

fn open() -> (tempfile::TempDir, State) {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(&folder.path().join("state")).unwrap();
    (folder, state)
}

#[test]
fn one_of_many_gets_the_name() {
    let (_folder, state) = open();
    let won: Vec<bool> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(|| create(&state, Some("web")).is_ok())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(won.iter().filter(|won| **won).count(), 1);
    assert_eq!(state.containers().unwrap().len(), 1, "the losers leave nothing");
    assert_eq!(fs::read_dir(state.root.join("tmp")).unwrap().count(), 0);
}

#[test]
fn random_names_do_not_collide_under_concurrency() {
    let (_folder, state) = open();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..10).for_each(|_| drop(create(&state, None).unwrap())));
        }
    });
    let containers = state.containers().unwrap();
    let names: HashSet<_> = containers.iter().map(|c| c.record.name.clone()).collect();
    assert_eq!((containers.len(), names.len()), (80, 80));
}

#[test]
fn a_name_in_use_is_refused_until_its_container_is_gone() {
    let (_folder, state) = open();
    let first = create(&state, Some("web")).unwrap();
    assert!(matches!(create(&state, Some("web")), Err(StateError::NameInUse { .. })));
    state.remove(&first).unwrap();
    state.remove(&first).unwrap();
    let second = create(&state, Some("web")).unwrap();
    // What a shim with the life cycle "remove" does:
    fs::remove_dir_all(&second.bundle).unwrap();
    assert!(state.find("web").is_err());
    create(&state, Some("web")).unwrap();
}

#[test]
fn containers_are_found_by_name_id_and_prefix() {
    let (_folder, state) = open();
    let container = create(&state, Some("web")).unwrap();
    let id = container.id.as_str();
    for key in ["web", "/web", id, &id[..12], &id[..40]] {
        assert_eq!(state.find(key).unwrap().id, container.id, "{key}");
    }
    for key in ["", "we", "../web", "zz", "/", &"0".repeat(64)] {
        assert!(matches!(state.find(key), Err(StateError::NotFound(_))), "{key}");
    }
    for _ in 0..16 {
        create(&state, None).unwrap();
    }
    // 17 ids begin with 16 digits: one of these is shared.
    let ambiguous = (0..16)
        .map(|digit| format!("{digit:x}"))
        .filter(|d| matches!(state.find(d), Err(StateError::Ambiguous(_))));
    assert!(ambiguous.count() >= 1);
}

#[test]
fn a_bundle_is_private_and_complete() {
    use std::os::unix::fs::PermissionsExt;
    let (_folder, state) = open();
    let id = ContainerId::random().unwrap();
    let (container, lock) = state.create(record(&id), None, b"{\"x\":1}").unwrap();
    assert_eq!(fs::metadata(&container.bundle).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read(container.bundle.join("config.json")).unwrap(), b"{\"x\":1}");
    assert!(container.try_lock().unwrap().is_none(), "its maker holds the lock");
    drop(lock);
    assert!(container.try_lock().unwrap().is_some());
}

#[test]
fn a_container_that_was_never_started_is_repaired_to_exited() {
    let (_folder, state) = open();
    let container = create(&state, Some("web")).unwrap();
    let exit = repair(&container).unwrap().unwrap();
    assert_eq!(exit.exit_code, 137);
    let runtime = crate::engine::runtime().unwrap();
    let status = runtime.block_on(observe(&container)).unwrap();
    assert_eq!(status, Some(Status::Exited(exit)));
    state.remove(&container).unwrap();
    assert_eq!(runtime.block_on(observe(&container)).unwrap(), None);
}

#[test]
fn a_container_that_is_being_started_is_left_alone() {
    let (_folder, state) = open();
    let id = ContainerId::random().unwrap();
    let (container, _lock) = state.create(record(&id), None, b"{}").unwrap();
    let runtime = crate::engine::runtime().unwrap();
    assert_eq!(runtime.block_on(observe(&container)).unwrap(), Some(Status::Created));
    assert!(ExitRecord::read(&container.bundle).unwrap().is_none());
}
