use super::*;

mod client;
mod files;
mod hostile;
mod names;
mod quiet;
