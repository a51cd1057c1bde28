//! Laid out; its parts follow.
fn main() {}
