//! Which model answers a query, which replica of it, and with what guarantee. Pure.

pub mod balance;
pub mod decide;
