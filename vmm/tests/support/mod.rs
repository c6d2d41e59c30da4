//! What the micro-guest tests need: guests made by hand, and a shim's side of the control socket.

#![allow(dead_code, reason = "each test program uses its part")]

pub mod attacks;
pub mod broker;
pub mod control;
pub mod driver;
pub mod guest;
pub mod random;
pub mod shim;
pub mod tap;
pub mod victim;
