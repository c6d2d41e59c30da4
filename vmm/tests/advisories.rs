//! `docs/advisories.md` names tests that exist. And the tests of it that belong to no device.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests, with helpers outside of test functions")]

mod support;

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use hull_vmm::boot::kernel;
use hull_vmm::layout::RamSize;
use support::guest::{Code, Elf};
use support::shim::file;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The functions of all Rust files below a folder, without those that were built.
fn functions(folder: &Path, found: &mut HashSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let names = text.lines().map(|line| line.trim_start().trim_start_matches("async "));
            let names = names.filter_map(|line| line.strip_prefix("fn "));
            found.extend(names.filter_map(|name| name.split_once('(')).map(|(name, _)| name.to_owned()));
        }
    }
}

#[test]
fn every_test_that_is_named_exists() {
    let mut found = HashSet::new();
    for folder in ["images", "shim", "tests", "vmm"] {
        functions(&root().join(folder), &mut found);
    }
    let text = fs::read_to_string(root().join("docs/advisories.md")).unwrap();
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 20, "{} advisories", rows.len());
    for row in rows {
        let tests = row.trim_end_matches(" |").rsplit_once(" | ").unwrap().1;
        let named: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty() || tests.starts_with("does not concern us: "), "{row}");
        for name in named {
            assert!(found.contains(name), "{name} does not exist");
        }
    }
}

/// linux-loader's GHSA-52h2-m2cf-9jh6.
#[test]
fn ghsa_52h2_a_kernel_that_is_cut_off_anywhere_is_an_error_at_once() {
    let ram = RamSize::from_mib(32).unwrap();
    let ranges = [(vm_memory::GuestAddress(0), 32 << 20)];
    let memory = hull_vmm::memory::GuestMemory::from_ranges(&ranges).unwrap();
    let whole = Elf::new(Code::new().halt().bytes()).build();
    let initramfs = file(b"initramfs");
    kernel::load(&memory, ram, &file(&whole), &initramfs).unwrap();
    for length in 0..whole.len() {
        // The note comes last, and may be padded.
        let cut = kernel::load(&memory, ram, &file(&whole[..length]), &initramfs);
        assert!(cut.is_err(), "{length} of {} bytes are a kernel", whole.len());
    }
}
