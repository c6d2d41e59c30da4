//! Every target: its name is that of the program.

#![no_main]

use std::cell::RefCell;

use hull_fuzz::{Body, target};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static BODY: RefCell<Body> =
        RefCell::new((target(env!("CARGO_BIN_NAME")).expect("the list in Cargo.toml is that in lib.rs").make)());
}

fuzz_target!(|input: &[u8]| BODY.with_borrow_mut(|body| body(input)));
