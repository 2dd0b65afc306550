//! stolon-keeper
fn main() {}
