//! The OpenAI wire: the few fields that are read from a request, and errors in OpenAI's shape.

use std::borrow::Cow;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

/// Prompt tokens of a request, if the client knows: the balancer uses it, an emulated replica takes it as the truth.
pub(crate) const PROMPT_TOKENS: HeaderName = HeaderName::from_static("x-boute-prompt-tokens");

/// Largest request body.
pub(crate) const LARGEST_BODY: usize = 32 << 20;

/// The fields of a request that concern us; the rest is passed on unread.
#[derive(Debug, Deserialize)]
pub(crate) struct Peek<'a> {
    /// The model's name, as it stands in the body.
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    /// Chat messages.
    #[serde(borrow, default)]
    messages: Option<Vec<Message<'a>>>,
    /// Prompt of a completion: text, or a list of texts or tokens.
    #[serde(default)]
    prompt: Option<serde_json::Value>,
    /// Whether the answer is streamed.
    #[serde(default)]
    pub(crate) stream: bool,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    #[serde(default)]
    stream_options: StreamOptions,
}

#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Debug, Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    content: Option<Content<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content<'a> {
    #[serde(borrow)]
    Text(Cow<'a, str>),
    #[serde(borrow)]
    Parts(Vec<Part<'a>>),
}

#[derive(Debug, Deserialize)]
struct Part<'a> {
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
}

impl<'a> Peek<'a> {
    /// Reads a body.
    pub(crate) fn read(body: &'a [u8]) -> Result<Self, Failure> {
        serde_json::from_slice(body)
            .map_err(|error| Failure::bad_request(format!("the body is not a valid request: {error}"), None))
    }

    /// The model asked for.
    pub(crate) fn model(&self) -> Result<String, Failure> {
        let missing = || Failure::bad_request("`model` is missing or not text".into(), Some("model"));
        serde_json::from_str(self.model.ok_or_else(missing)?.get()).map_err(|_| missing())
    }

    /// `body` with another model in the place of the one asked for; every other byte stays.
    pub(crate) fn with_model(&self, body: &Bytes, model: &str) -> Bytes {
        let Some(raw) = self.model else { return body.clone() };
        let start = raw.get().as_ptr() as usize - body.as_ptr() as usize;
        let end = start + raw.get().len();
        let name = serde_json::Value::from(model).to_string();
        [&body[..start], name.as_bytes(), &body[end..]].concat().into()
    }

    /// The whole conversation as one text.
    pub(crate) fn text(&self) -> Result<String, Failure> {
        if let Some(messages) = &self.messages {
            if messages.is_empty() {
                return Err(Failure::bad_request("`messages` is empty".into(), Some("messages")));
            }
            let mut texts: Vec<&str> = Vec::new();
            for content in messages.iter().filter_map(|message| message.content.as_ref()) {
                match content {
                    Content::Text(text) => texts.push(text),
                    Content::Parts(parts) => {
                        texts.extend(parts.iter().filter_map(|part| part.text.as_deref()));
                    }
                }
            }
            return Ok(texts.join("\n"));
        }
        match &self.prompt {
            Some(serde_json::Value::String(text)) => Ok(text.clone()),
            Some(serde_json::Value::Array(items)) => {
                Ok(items.iter().filter_map(|item| item.as_str()).collect::<Vec<_>>().join("\n"))
            }
            _ => {
                Err(Failure::bad_request("neither `messages` nor `prompt` is there".into(), Some("messages")))
            }
        }
    }

    /// Longest answer asked for.
    pub(crate) fn answer_tokens(&self) -> Option<u32> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    /// Whether a stream ends with a chunk that counts tokens.
    pub(crate) fn wants_usage(&self) -> bool {
        self.stream_options.include_usage
    }
}

/// A request that is answered with an error.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<&'static str>,
    message: String,
}

impl Failure {
    /// 400.
    pub(crate) fn bad_request(message: String, param: Option<&'static str>) -> Self {
        let code = None;
        Self { status: StatusCode::BAD_REQUEST, kind: "invalid_request_error", code, param, message }
    }

    /// 404 for a model nobody serves.
    pub(crate) fn unknown_model(model: &str, known: &str) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            kind: "invalid_request_error",
            code: Some("model_not_found"),
            param: Some("model"),
            message: format!("the model `{model}` does not exist; there are {known}"),
        }
    }

    /// 404 and 405.
    pub(crate) fn no_such_path(status: StatusCode) -> Self {
        let message = "no such endpoint; see /v1/models, /v1/chat/completions, /v1/completions".into();
        Self { status, kind: "invalid_request_error", code: None, param: None, message }
    }

    /// 413.
    pub(crate) fn too_large() -> Self {
        let message = format!("the body is larger than {LARGEST_BODY} bytes");
        let (kind, code) = ("invalid_request_error", None);
        Self { status: StatusCode::PAYLOAD_TOO_LARGE, kind, code, param: None, message }
    }

    /// 502: replicas were reached for in vain.
    pub(crate) fn unreachable(model: &str, cause: &str) -> Self {
        Self {
            status: StatusCode::BAD_GATEWAY,
            kind: "server_error",
            code: Some("replica_unreachable"),
            param: None,
            message: format!("no replica of `{model}` could be reached: {cause}"),
        }
    }

    /// 503: there is no replica.
    pub(crate) fn no_replica(model: &str) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: "server_error",
            code: Some("no_replica"),
            param: None,
            message: format!("no replica serves `{model}`"),
        }
    }

    /// The error as JSON text.
    pub(crate) fn json(&self) -> String {
        let Self { kind, code, param, message, .. } = self;
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}}).to_string()
    }

    /// The error as a response.
    pub(crate) fn response(&self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.json()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// Prompt tokens: what the client says, or a quarter of the bytes.
pub(crate) fn prompt_tokens(headers: &axum::http::HeaderMap, text: &str) -> u32 {
    let said =
        headers.get(PROMPT_TOKENS).and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok());
    said.unwrap_or_else(|| u32::try_from(text.len() / 4).unwrap_or(u32::MAX)).max(1)
}

/// Reads a whole body, up to [`LARGEST_BODY`].
pub(crate) async fn read_body(body: Body) -> Result<Bytes, Failure> {
    axum::body::to_bytes(body, LARGEST_BODY).await.map_err(|error| {
        let too_large = std::error::Error::source(&error)
            .is_some_and(<dyn std::error::Error>::is::<http_body_util::LengthLimitError>);
        if too_large {
            Failure::too_large()
        } else {
            Failure::bad_request(format!("the body broke off: {error}"), None)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_model_is_replaced() {
        let body = Bytes::from_static(b"{ \"x\": 1e400, \"model\" : \"auto\", \"messages\":[{\"role\":\"user\",\"content\":\"hi \\u00e9\"}], \"seed\": 18446744073709551615 }");
        let peek = Peek::read(&body).unwrap();
        assert_eq!(peek.model().unwrap(), "auto");
        assert_eq!(peek.text().unwrap(), "hi é");
        let want = std::str::from_utf8(&body).unwrap().replace("\"auto\"", "\"llama \\\"x\\\"\"");
        assert_eq!(peek.with_model(&body, "llama \"x\""), want.as_bytes());
    }

    #[test]
    fn conversations_of_all_forms_are_read() {
        let text = |body: &str| {
            Peek::read(body.as_bytes()).and_then(|peek| peek.text()).map_err(|failure| failure.json())
        };
        let parts = r#"{"messages":[{"role":"system","content":"a"},{"role":"user","content":[{"type":"text","text":"b"},{"type":"image_url","image_url":{}}]},{"role":"assistant","content":null}]}"#;
        assert_eq!(text(parts).unwrap(), "a\nb");
        assert_eq!(text(r#"{"prompt":["a","b"]}"#).unwrap(), "a\nb");
        for bad in ["", "{", "[]", "{}", r#"{"messages":[]}"#, r#"{"messages":5}"#] {
            assert!(text(bad).unwrap_err().starts_with(r#"{"error":{"#), "{bad}");
        }
    }
}
