//! Cgroups on a tree of plain directories.

use std::fs;
use std::path::Path;

use super::hierarchy::{Hierarchy, Kind};
use super::*;

fn plan(root: &Path, path: &str) -> CgroupPlan {
    let hierarchies = ["cpu", "memory"].map(|name| {
        fs::create_dir_all(root.join(name)).unwrap();
        Hierarchy { root: root.join(name), kind: Kind::Legacy { memory: name == "memory" } }
    });
    CgroupPlan { path: CgroupPath::parse(Path::new(path)).unwrap(), hierarchies: hierarchies.into() }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn a_cgroup_is_made_in_every_hierarchy_and_leaves_nothing() {
    let tree = tempfile::tempdir().unwrap();
    let plan = plan(tree.path(), "/kubepods/pod1/abc");
    // The engine's.
    fs::create_dir_all(tree.path().join("cpu/kubepods")).unwrap();
    let (cgroup, made) = plan.make();
    made.unwrap();
    for name in ["cpu", "memory"] {
        fs::write(tree.path().join(name).join("kubepods/pod1/abc/cgroup.procs"), "").unwrap();
    }
    cgroup.admit(4321).unwrap();
    for name in ["cpu", "memory"] {
        let processes = tree.path().join(name).join("kubepods/pod1/abc/cgroup.procs");
        assert_eq!(fs::read_to_string(&processes).unwrap(), "4321");
        fs::remove_file(processes).unwrap();
    }
    let record: CgroupRecord = serde_json::from_str(&serde_json::to_string(&plan.record()).unwrap()).unwrap();
    block_on(record.remove()).unwrap();
    block_on(record.remove()).unwrap();
    assert!(tree.path().join("cpu/kubepods").exists(), "what was there is the engine's");
    assert!(!tree.path().join("memory/kubepods/pod1/abc").exists());
    if nix::unistd::geteuid().is_root() {
        assert!(!tree.path().join("cpu/kubepods/pod1").exists());
        assert!(!tree.path().join("memory/kubepods").exists());
        assert!(tree.path().join("memory").exists(), "the hierarchy's root");
    }
}

#[test]
fn the_last_pod_removes_what_the_first_has_made() {
    let tree = tempfile::tempdir().unwrap();
    let (first, second) = (plan(tree.path(), "/default/a"), plan(tree.path(), "/default/b"));
    first.make().1.unwrap();
    second.make().1.unwrap();
    block_on(first.record().remove()).unwrap();
    assert!(tree.path().join("cpu/default/b").exists());
    block_on(second.record().remove()).unwrap();
    assert!(!tree.path().join("cpu/default/b").exists());
    if nix::unistd::geteuid().is_root() {
        assert_eq!(fs::read_dir(tree.path().join("cpu")).unwrap().count(), 0);
    }
}

#[test]
fn hierarchies_that_refuse_are_told_and_done_without() {
    let tree = tempfile::tempdir().unwrap();
    let plan = plan(tree.path(), "/default/a");
    fs::write(tree.path().join("cpu/default"), "no directory").unwrap();
    let (cgroup, made) = plan.make();
    let error = made.unwrap_err().to_string();
    assert!(error.contains("cpu/default/a"), "{error}");
    assert_eq!(cgroup.directories, [tree.path().join("memory/default/a")]);
    // There is no cgroup.procs among plain directories.
    assert!(cgroup.admit(1).unwrap_err().to_string().contains("memory/default/a"));
}

#[test]
fn controllers_are_passed_on_to_the_pods_cgroup() {
    let tree = tempfile::tempdir().unwrap();
    let root = tree.path().to_owned();
    fs::write(root.join("cgroup.controllers"), "cpuset cpu memory pids\n").unwrap();
    fs::write(root.join("cgroup.subtree_control"), "cpu memory\n").unwrap();
    let path = CgroupPath::parse(Path::new("/a")).unwrap();
    let plan = CgroupPlan { path, hierarchies: vec![Hierarchy { root: root.clone(), kind: Kind::Unified }] };
    plan.make().1.unwrap();
    // A plain file is overwritten from its start; the kernel would add.
    assert_eq!(fs::read_to_string(root.join("cgroup.subtree_control")).unwrap(), "+pidsemory\n");
    assert!(root.join("a").is_dir());
}

#[test]
fn a_record_that_names_no_cgroup_removes_nothing() {
    let tree = tempfile::tempdir().unwrap();
    fs::create_dir_all(tree.path().join("root")).unwrap();
    fs::create_dir_all(tree.path().join("other")).unwrap();
    for path in ["../other", "/"] {
        let record = CgroupRecord { path: path.into(), roots: vec![tree.path().join("root")] };
        assert!(block_on(record.remove()).is_err(), "{path}");
    }
    assert!(tree.path().join("other").exists());
}
