//! stolon-proxy
fn main() {}
