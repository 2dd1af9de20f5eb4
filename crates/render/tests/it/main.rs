//! Exports against the schemas of what they are for.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../src/fixture.rs"]
mod fixture;

mod exports;
mod schema;
