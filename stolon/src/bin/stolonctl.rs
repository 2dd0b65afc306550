//! stolonctl
fn main() {}
