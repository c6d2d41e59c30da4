//! What the micro-guest tests need: guests made by hand, and a shim's side of the control socket.

#![allow(dead_code, reason = "each test program uses its part")]

pub mod guest;
pub mod shim;
