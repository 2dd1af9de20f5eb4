//! However a stream is cut to pieces, what passes without stripping is what came, and with stripping does not depend on the
//! cut.
#![no_main]

use boute_gateway::sse::Watch;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fn through(data: &[u8], piece: usize, strip: bool) -> Vec<u8> {
    let mut watch = Watch::new(true, strip);
    let mut passed = Vec::new();
    for piece in data.chunks(piece) {
        passed.extend_from_slice(&watch.pass(Bytes::copy_from_slice(piece)));
    }
    passed.extend_from_slice(&watch.rest());
    passed
}

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let piece = usize::from(*first).max(1);
    assert_eq!(through(rest, piece, false), rest);
    assert_eq!(through(rest, piece, true), through(rest, rest.len().max(1), true));
});
