//! stolon-sentinel
fn main() {}
