//! A request body is read, rewritten and read again; an engine's error is put in shape.
#![no_main]

use boute_gateway::openai::{Endpoint, Peek, openai_error};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let body = Bytes::copy_from_slice(data);
    let _ = openai_error(hyper::StatusCode::BAD_GATEWAY, &body);
    let Ok(peek) = Peek::read(&body) else { return };
    let Ok(_) = peek.model() else { return };
    for usage in [false, true] {
        let rewritten = peek.rewritten(&body, "a \"model\"", usage);
        let mut again = Peek::read(&rewritten).expect("what was a request stays one");
        assert_eq!(again.model().expect("it has a model"), "a \"model\"");
        assert_eq!(again.streams(), peek.streams());
        for endpoint in Endpoint::ALL {
            let _ = again.text(endpoint);
        }
    }
});
