//! The `sockhop` program.
fn main() {}
