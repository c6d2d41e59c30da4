//! A file as memory, as a guest finds it: what it reads, and where its writes go.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests, with helpers outside of test functions")]

mod support;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use hull_protocol::vmm::FailureCode::{InvalidRequest, WrongState};
use hull_protocol::vmm::{DiskAccess, ExitReason, PmemConfig, Request};
use support::guest::{Code, ENTRY, Elf};
use support::shim::{Vmm, machine};

const LENGTH: u64 = 2 << 20;
/// The guest's page tables.
const TABLES: u32 = 0x20_0000;
/// Where the guest's tables show the first address beyond 4 GiB, which is where the file is.
const WINDOW: u32 = 0xc000_0000;

fn pmem(access: DiskAccess) -> Request {
    Request::AddPmem(PmemConfig { name: "data".into(), length: LENGTH, access })
}

/// Code that has paging on: the first GiB as it is, and the file in the window.
fn with_file_in_window() -> Code {
    // mov eax, 0x20; mov cr4, eax: physical address extension
    let code = Code::new().raw(&[0xb8, 0x20, 0, 0, 0, 0x0f, 0x22, 0xe0]);
    // mov eax, TABLES; mov cr3, eax
    let code = code.raw(&[0xb8]).raw(&TABLES.to_le_bytes()).raw(&[0x0f, 0x22, 0xd8]);
    // mov ecx, EFER; rdmsr; or eax, LME; wrmsr: long mode, in which this code is compatibility mode
    let code = code.raw(&[0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32, 0x0d, 0, 1, 0, 0, 0x0f, 0x30]);
    // mov eax, cr0; or eax, 1 << 31; mov cr0, eax; jmp next
    code.raw(&[0x0f, 0x20, 0xc0, 0x0d, 0, 0, 0, 0x80, 0x0f, 0x22, 0xc0, 0xeb, 0])
}

fn kernel(code: &Code) -> Vec<u8> {
    const WRITABLE: u64 = 3;
    const LARGE_WRITABLE: u64 = 0x83;
    let table = |index: u64| u64::from(TABLES) + index * 0x1000 + WRITABLE;
    let top = [table(1)];
    let middle = [table(2), 0, 0, table(3)];
    let identity = (0..512).map(|index| (index << 21) + LARGE_WRITABLE);
    let window = [(1 << 32) + LARGE_WRITABLE];
    let bytes =
        |entries: &mut dyn Iterator<Item = u64>| -> Vec<u8> { entries.flat_map(u64::to_le_bytes).collect() };
    let elf = Elf::new(code.bytes()).pvh_entry(Some(ENTRY));
    let elf = elf.segment(TABLES, &bytes(&mut top.into_iter()));
    let elf = elf.segment(TABLES + 0x1000, &bytes(&mut middle.into_iter()));
    let elf = elf.segment(TABLES + 0x2000, &bytes(&mut identity.into_iter()));
    elf.segment(TABLES + 0x3000, &bytes(&mut window.into_iter())).build()
}

/// Reads the file's first word, writes another, reads again.
fn what_the_guest_sees(access: DiskAccess, file: &File) -> Vec<u8> {
    let code = with_file_in_window().load(WINDOW).print_eax();
    let code = code.store(WINDOW, u32::from_le_bytes(*b"evil")).load(WINDOW).print_eax();
    let vmm = Vmm::greeted();
    vmm.describe(machine(1), &kernel(&code.shut_down()), b"initramfs");
    vmm.done(&pmem(access), &[file.as_fd()]);
    vmm.done(&Request::Boot, &[]);
    let (reason, console, _) = vmm.end();
    assert_eq!(reason, ExitReason::Shutdown);
    console
}

fn file() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(LENGTH).unwrap();
    file.write_all_at(b"good", 0).unwrap();
    file
}

fn first_word(file: &File) -> [u8; 4] {
    let mut word = [0; 4];
    file.read_exact_at(&mut word, 0).unwrap();
    word
}

/// The descriptor allows writing, so that only the mapping and the slot keep the guest from it.
#[test]
fn a_write_to_a_read_only_file_goes_nowhere() {
    let file = file();
    assert_eq!(what_the_guest_sees(DiskAccess::ReadOnly, &file), b"goodgood");
    assert_eq!(&first_word(&file), b"good");
}

#[test]
fn a_write_to_a_writable_file_is_in_the_file() {
    let file = file();
    assert_eq!(what_the_guest_sees(DiskAccess::ReadWrite, &file), b"goodevil");
    assert_eq!(&first_word(&file), b"evil");
}

#[test]
fn a_file_needs_a_machine_and_its_descriptor() {
    let file = file();
    let vmm = Vmm::greeted();
    vmm.refused(&pmem(DiskAccess::ReadOnly), &[file.as_fd()], WrongState);
    vmm.describe(machine(1), &Code::new().shut_down().kernel(), b"initramfs");
    vmm.refused(&pmem(DiskAccess::ReadOnly), &[], InvalidRequest);
    vmm.refused(&pmem(DiskAccess::ReadOnly), &[file.as_fd(), file.as_fd()], InvalidRequest);
    let long = PmemConfig { name: "data".into(), length: u64::MAX - 511, access: DiskAccess::ReadOnly };
    vmm.refused(&Request::AddPmem(long), &[file.as_fd()], InvalidRequest);
    vmm.done(&pmem(DiskAccess::ReadOnly), &[file.as_fd()]);
    vmm.refused(&pmem(DiskAccess::ReadOnly), &[file.as_fd()], WrongState);
    vmm.done(&Request::Boot, &[]);
    assert_eq!(vmm.end().0, ExitReason::Shutdown);
}
