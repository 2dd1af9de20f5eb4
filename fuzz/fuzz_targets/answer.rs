#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| boute_fuzz::answer(data));
