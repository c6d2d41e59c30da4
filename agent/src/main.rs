//! The monitor process.
fn main() {}
