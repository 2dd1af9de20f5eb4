//! What clients may ask: each path and method with who answers it. All but the models' own answers are given here.

use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode};
use serde_json::json;

use crate::forward::Asked;
use crate::headers::REQUEST_ID;
use crate::http::{Request, Response, Service, full, json_response, read_body};
use crate::keys::Key;
use crate::openai::{Endpoint, Failure};
use crate::serve::Inner;

impl Service for Inner {
    async fn answer(self: Arc<Self>, request: Request, peer: IpAddr) -> Response {
        let arrived = Instant::now();
        let id = request.headers().get(&REQUEST_ID).cloned().unwrap_or_else(|| self.request_id());
        let origin = request.headers().get(header::ORIGIN).filter(|origin| self.allows(origin)).cloned();
        let mut response = match self.dispatch(request, peer, &id, arrived).await {
            Ok(response) => response,
            Err(failure) => {
                self.errors.add(failure.code.unwrap_or("invalid_request"));
                failure.response()
            }
        };
        response.headers_mut().insert(REQUEST_ID, id);
        if let Some(origin) = origin {
            allow_origin(response.headers_mut(), origin);
        }
        response
    }
}

impl Inner {
    /// An id for a request that has none: when this process began, and a count.
    fn request_id(&self) -> HeaderValue {
        let count = self.next_id.fetch_add(1, Relaxed);
        let text = format!("boute-{:x}-{count:x}", self.started_ms);
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("boute"))
    }

    async fn dispatch(
        self: &Arc<Self>,
        request: Request,
        peer: IpAddr,
        id: &HeaderValue,
        arrived: Instant,
    ) -> Result<Response, Failure> {
        let (method, path) = (request.method(), request.uri().path());
        let reads = matches!(*method, Method::GET | Method::HEAD);
        if *method == Method::OPTIONS {
            return Ok(preflight());
        }
        if path == "/health" && reads {
            return Ok(self.health());
        }
        let key = self.key_of(request.headers())?;
        if let Some(endpoint) = Endpoint::of(path) {
            if *method != Method::POST {
                return Err(Failure::wrong_method(method, "POST"));
            }
            let asked = Asked { endpoint, id, arrived, key, peer };
            return self.forward(request, asked).await;
        }
        match path {
            "/v1/models" if reads => Ok(self.models()),
            "/v1/models" | "/health" => Err(Failure::wrong_method(method, "GET")),
            "/v1/feedback" if *method == Method::POST => {
                let body = read_body(request.into_body(), self.limits.client.body).await?;
                self.feedback(&body, key.as_deref())
            }
            "/v1/feedback" => Err(Failure::wrong_method(method, "POST")),
            _ => match path.strip_prefix("/v1/models/").filter(|_| reads) {
                Some(name) => self.model(name),
                None => Err(Failure::no_such_path()),
            },
        }
    }

    fn key_of(&self, headers: &HeaderMap) -> Result<Option<Arc<Key>>, Failure> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.as_ref().map(|keys| keys.owner(headers).cloned()).transpose()
    }

    pub(crate) fn health(&self) -> Response {
        let (routes, now) = (self.routes(), self.now_ms());
        let well = routes.replicas().filter(|replica| replica.is_well(now)).count();
        let stopping = self.stopping.load(Relaxed);
        let status = if stopping { "stopping" } else { "ok" };
        let all = routes.replicas().count();
        let json = json!({"status": status, "replicas": all, "replicas_well": well});
        let mut response = json_response(json.to_string());
        if stopping {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        response
    }

    fn models(&self) -> Response {
        let routes = self.routes();
        let data: Vec<_> = routes.names().into_iter().map(model_json).collect();
        json_response(json!({"object": "list", "data": data}).to_string())
    }

    fn model(&self, name: &str) -> Result<Response, Failure> {
        let routes = self.routes();
        let names = routes.names();
        if names.contains(&name) {
            return Ok(json_response(model_json(name).to_string()));
        }
        Err(Failure::unknown_model(name, &names.join(", ")))
    }

    fn feedback(&self, body: &[u8], key: Option<&Key>) -> Result<Response, Failure> {
        let feedback = self.quality.feedback(body, key.map_or(0, |key| key.number))?;
        if let Some(log) = &self.decisions {
            log.rated(&feedback);
        }
        let json =
            json!({"request_id": feedback.request_id, "model": &*feedback.model, "score": feedback.score});
        Ok(json_response(json.to_string()))
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        self.allow_origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes())
    }
}

fn model_json(id: &str) -> serde_json::Value {
    json!({"id": id, "object": "model", "created": 0, "owned_by": "boute"})
}

/// What a browser asks before it sends a request of a web page.
fn preflight() -> Response {
    let mut response = hyper::Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, OPTIONS"));
    response
}

fn allow_origin(headers: &mut HeaderMap, origin: HeaderValue) {
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, POST, OPTIONS"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "*, authorization"),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, "*"),
        (header::ACCESS_CONTROL_MAX_AGE, "3600"),
        (header::VARY, "origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
}
