//! A file of keys is read, or told why not.
#![no_main]

use boute_gateway::Keys;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(error) = Keys::parse("keys", text) {
        assert!(error.line > 0);
    }
});
