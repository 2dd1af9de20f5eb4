//! The command line of boute.

fn main() {}
