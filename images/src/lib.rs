//! Images.

pub mod erofs;
pub mod layer;
