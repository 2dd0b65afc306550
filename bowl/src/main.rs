#![doc = "see lib.rs"]
fn main() {}
