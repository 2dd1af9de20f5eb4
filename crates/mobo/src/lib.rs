//! Where to look next. Today: which points no other point beats.

pub mod pareto;
