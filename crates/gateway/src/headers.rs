//! Headers: which of them go on to a replica, and which back.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

/// A client's own id of its request, or the one that it was given.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Headers of one connection only.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Takes out what concerns one connection only.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if let Some(named) = headers.get(header::CONNECTION).cloned() {
        let named = named.to_str().unwrap_or_default().split(',').map(str::trim);
        // Length and kind of the body stay whatever the peer says of them.
        for name in named.filter(|name| !name.starts_with("content-")) {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    for name in &HOP_BY_HOP[1..] {
        headers.remove(name);
    }
}

/// The client's headers as a replica gets them. Our own keys are not for replicas, and a copy of the answer must be
/// readable.
pub(crate) fn forwarded_headers(mut headers: HeaderMap, id: &HeaderValue, keyed: bool) -> HeaderMap {
    strip_hop_by_hop(&mut headers);
    for name in [header::HOST, header::CONTENT_LENGTH, header::EXPECT, header::ACCEPT_ENCODING] {
        headers.remove(name);
    }
    if keyed {
        headers.remove(header::AUTHORIZATION);
    }
    headers.insert(REQUEST_ID, id.clone());
    headers
}
