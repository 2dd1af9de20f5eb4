//! The OpenAI wire: the few fields that are read from a request, and errors in OpenAI's shape.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::json;
use serde_json::value::RawValue;

use crate::http::{Response, json_response};

/// Prompt tokens of a request, if the client knows: the balancer uses it, an emulated replica takes it as the truth.
pub(crate) const PROMPT_TOKENS: HeaderName = HeaderName::from_static("x-boute-prompt-tokens");

/// Bytes of text per token where nobody counts them.
const BYTES_PER_TOKEN: u64 = 4;

/// What is asked of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/embeddings`
    Embeddings,
    /// `/v1/responses`
    Responses,
}

impl Endpoint {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Chat, Self::Completions, Self::Embeddings, Self::Responses];

    /// Its path.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
            Self::Responses => "/v1/responses",
        }
    }

    /// `gen_ai.operation.name` of OpenTelemetry's semantic conventions.
    pub const fn operation(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "text_completion",
            Self::Embeddings => "embeddings",
            Self::Responses => "generate_content",
        }
    }

    /// The endpoint with this path.
    pub fn of(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|endpoint| endpoint.path() == path)
    }

    /// Whether a stream says its token counts only when asked by `stream_options`.
    const fn counts_on_demand(self) -> bool {
        matches!(self, Self::Chat | Self::Completions)
    }
}

/// The fields of a request that concern us; the rest is passed on unread.
#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object")]
pub struct Peek<'a> {
    #[serde(borrow, default, deserialize_with = "raw")]
    model: Option<&'a RawValue>,
    /// Chat messages.
    #[serde(default)]
    messages: Text,
    /// Prompt of a completion: text, or a list of texts or tokens.
    #[serde(default)]
    prompt: Text,
    /// Input of an embedding or a response.
    #[serde(default)]
    input: Text,
    #[serde(default)]
    instructions: Text,
    stream: Option<bool>,
    #[serde(borrow, default, deserialize_with = "raw")]
    stream_options: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "raw")]
    max_tokens: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "raw")]
    max_completion_tokens: Option<&'a RawValue>,
}

/// A value as it stands in the body, `null` too.
fn raw<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
struct StreamOptions<'a> {
    #[serde(borrow, default, deserialize_with = "raw")]
    include_usage: Option<&'a RawValue>,
}

impl<'a> Peek<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// If it is no JSON object, or a field that is read has another type than OpenAI's, or stands there twice.
    pub fn read(body: &'a [u8]) -> Result<Self, Failure> {
        serde_json::from_slice(body)
            .map_err(|error| Failure::bad_request(format!("the body is not a valid request: {error}"), None))
    }

    /// The model asked for.
    ///
    /// # Errors
    /// If it is missing or no text.
    pub fn model(&self) -> Result<Cow<'a, str>, Failure> {
        let missing = || Failure::bad_request("`model` is missing or not text".into(), Some("model"));
        let raw = self.model.ok_or_else(missing)?.get();
        let plain = raw.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        match plain.filter(|text| !text.contains('\\')) {
            Some(plain) => Ok(Cow::Borrowed(plain)),
            None => serde_json::from_str(raw).map(Cow::Owned).map_err(|_| missing()),
        }
    }

    /// Whether the answer is streamed.
    pub fn streams(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// All text of the request, in its order; empty if there is none.
    ///
    /// # Errors
    /// If a chat has no messages.
    pub fn text(&mut self, endpoint: Endpoint) -> Result<Text, Failure> {
        let text = match endpoint {
            Endpoint::Chat if self.messages.items == 0 => {
                let why = "`messages` is missing, empty or not a list";
                return Err(Failure::bad_request(why.into(), Some("messages")));
            }
            Endpoint::Chat => &mut self.messages,
            Endpoint::Completions => &mut self.prompt,
            Endpoint::Embeddings => &mut self.input,
            Endpoint::Responses => {
                let input = std::mem::take(&mut self.input);
                self.instructions.append(&input);
                &mut self.instructions
            }
        };
        Ok(std::mem::take(text))
    }

    /// Longest answer asked for.
    pub fn answer_tokens(&self) -> Option<u32> {
        let asked = self.max_completion_tokens.or(self.max_tokens)?;
        asked.get().parse().ok()
    }

    /// Whether a stream is to end with a chunk that counts tokens.
    pub fn wants_usage(&self) -> bool {
        let options = self.stream_options.map(|raw| serde_json::from_str::<StreamOptions<'_>>(raw.get()));
        matches!(options, Some(Ok(StreamOptions { include_usage: Some(asked) })) if asked.get() == "true")
    }

    /// Whether a stream's tokens are counted only if we ask in the client's stead.
    pub fn needs_usage(&self, endpoint: Endpoint) -> bool {
        self.streams() && endpoint.counts_on_demand() && !self.wants_usage()
    }

    /// `body` with another model in the place of the one asked for and, with `usage`, a request for token counts; every
    /// other byte stays.
    pub fn rewritten(&self, body: &Bytes, model: &str, usage: bool) -> Bytes {
        let mut edits = Vec::new();
        if let Some(raw) = self.model {
            let name = serde_json::Value::from(model).to_string();
            if name != raw.get() {
                edits.push((offset(body, raw.get()), raw.get().len(), name));
            }
        }
        if usage {
            edits.extend(self.usage_edit(body));
        }
        if edits.is_empty() {
            return body.clone();
        }
        edits.sort_unstable();
        let mut rewritten = Vec::with_capacity(body.len() + 64);
        let mut done = 0;
        for (at, length, text) in edits {
            rewritten.extend_from_slice(&body[done..at]);
            rewritten.extend_from_slice(text.as_bytes());
            done = at + length;
        }
        rewritten.extend_from_slice(&body[done..]);
        rewritten.into()
    }

    /// Where `include_usage` goes: (position, bytes replaced, text). `None` if `stream_options` is nothing we know: the
    /// engine will say so.
    fn usage_edit(&self, body: &Bytes) -> Option<(usize, usize, String)> {
        let Some(options) = self.stream_options.map(RawValue::get) else {
            // The body is an object that has a model: a key and a comma may follow its brace.
            let brace = body.iter().position(|byte| *byte == b'{')?;
            return Some((brace + 1, 0, r#""stream_options":{"include_usage":true},"#.into()));
        };
        let at = offset(body, options);
        if options == "null" {
            return Some((at, options.len(), r#"{"include_usage":true}"#.into()));
        }
        let read: StreamOptions<'_> = serde_json::from_str(options).ok()?;
        if let Some(raw) = read.include_usage {
            return Some((offset(body, raw.get()), raw.get().len(), "true".into()));
        }
        let comma = if options[1..].trim_start().starts_with('}') { "" } else { "," };
        Some((at + 1, 0, format!(r#""include_usage":true{comma}"#)))
    }
}

/// Where `part` stands in `body`, of which it is a slice.
fn offset(body: &Bytes, part: &str) -> usize {
    part.as_ptr() as usize - body.as_ptr() as usize
}

/// The text in a request: strings, and the `text` and `content` of lists of parts and messages, joined by line breaks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Text {
    /// The text.
    pub text: String,
    /// Prompt tokens given as numbers.
    pub token_ids: u64,
    /// Elements of the outermost list.
    items: usize,
}

impl Text {
    fn push(&mut self, text: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.text.push_str(text);
    }

    fn append(&mut self, other: &Self) {
        if !other.text.is_empty() {
            self.push(&other.text);
        }
        self.token_ids += other.token_ids;
    }

    /// Prompt tokens: what the client says, or what is counted or estimated from the text.
    pub fn tokens(&self, headers: &HeaderMap) -> u32 {
        let said = headers.get(PROMPT_TOKENS).and_then(|value| value.to_str().ok()?.parse().ok());
        let estimated = self.text.len() as u64 / BYTES_PER_TOKEN + self.token_ids;
        said.unwrap_or_else(|| u32::try_from(estimated).unwrap_or(u32::MAX)).max(1)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut text = Self::default();
        Collect { text: &mut text, depth: 0 }.deserialize(deserializer)?;
        Ok(text)
    }
}

/// Adds what it meets to a [`Text`].
struct Collect<'t> {
    text: &'t mut Text,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Collect<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Collect<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, or a list")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.text.push(text);
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        self.text.token_ids += 1;
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Self { text, depth } = self;
        while items.next_element_seed(Collect { text: &mut *text, depth: depth + 1 })?.is_some() {
            if depth == 0 {
                text.items += 1;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let Self { text, depth } = self;
        while let Some(name) = fields.next_key::<Cow<'_, str>>()? {
            if matches!(&*name, "content" | "text") {
                fields.next_value_seed(Collect { text: &mut *text, depth: depth + 1 })?;
            } else {
                fields.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// A request that is answered with an error.
#[derive(Debug, Clone)]
pub struct Failure {
    pub(crate) status: StatusCode,
    kind: &'static str,
    pub(crate) code: Option<&'static str>,
    param: Option<&'static str>,
    message: String,
    retry_after_s: Option<u64>,
    allow: Option<&'static str>,
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl Failure {
    const fn new(
        status: StatusCode,
        kind: &'static str,
        code: Option<&'static str>,
        message: String,
    ) -> Self {
        Self { status, kind, code, param: None, message, retry_after_s: None, allow: None }
    }

    /// 400.
    pub(crate) fn bad_request(message: String, param: Option<&'static str>) -> Self {
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, INVALID, None, message) }
    }

    /// 401.
    pub(crate) fn bad_key() -> Self {
        let message = "the API key is missing or not known: send `Authorization: Bearer KEY`".into();
        Self::new(StatusCode::UNAUTHORIZED, INVALID, Some("invalid_api_key"), message)
    }

    /// 404 for a model nobody serves.
    pub(crate) fn unknown_model(model: &str, known: &str) -> Self {
        let message = format!("the model `{model}` does not exist; there are {known}");
        let param = Some("model");
        Self { param, ..Self::new(StatusCode::NOT_FOUND, INVALID, Some("model_not_found"), message) }
    }

    /// 404 for feedback on a request nobody remembers.
    pub(crate) fn unknown_request(id: &str) -> Self {
        let message = format!("no recent request of yours has the id `{id}`");
        let param = Some("request_id");
        Self { param, ..Self::new(StatusCode::NOT_FOUND, INVALID, Some("request_not_found"), message) }
    }

    /// 404.
    pub(crate) fn no_such_path() -> Self {
        let paths = Endpoint::ALL.map(Endpoint::path).join(", ");
        let message = format!("no such endpoint; there are /v1/models, {paths}");
        Self::new(StatusCode::NOT_FOUND, INVALID, None, message)
    }

    /// 405.
    pub(crate) fn wrong_method(method: &Method, allow: &'static str) -> Self {
        let message = format!("this endpoint does not answer {method}, but {allow}");
        Self { allow: Some(allow), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, None, message) }
    }

    /// 408: the client takes too long to send its request.
    pub(crate) fn slow_client() -> Self {
        let message = "the body did not come in time".into();
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, Some("request_timeout"), message)
    }

    /// 413.
    pub(crate) fn too_large(largest: usize) -> Self {
        let message = format!("the body is larger than {largest} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, None, message)
    }

    /// 429: this key's limit.
    pub(crate) fn over_limit(limit: &str, retry_after_s: u64) -> Self {
        let message = format!("over the limit of {limit} of this key");
        let code = Some("rate_limit_exceeded");
        Self {
            retry_after_s: Some(retry_after_s),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", code, message)
        }
    }

    /// 429: the gateway is full.
    pub(crate) fn overloaded() -> Self {
        let message = "too many requests are in flight and waiting".into();
        Self {
            retry_after_s: Some(1),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("overloaded"), message)
        }
    }

    /// 502: replicas were reached for in vain.
    pub(crate) fn unreachable(model: &str, cause: &str) -> Self {
        let message = format!("no replica of `{model}` could be reached: {cause}");
        Self::new(StatusCode::BAD_GATEWAY, SERVER, Some("replica_unreachable"), message)
    }

    /// What a client is told whose stream breaks off.
    pub(crate) fn broken_off(model: &str, cause: &str) -> Self {
        let message = format!("the replica of `{model}` broke off: {cause}");
        Self::new(StatusCode::BAD_GATEWAY, SERVER, Some("replica_broke_off"), message)
    }

    /// 503: there is no replica.
    pub(crate) fn no_replica(model: &str) -> Self {
        let message = format!("no replica serves `{model}` now");
        Self {
            retry_after_s: Some(1),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("no_replica"), message)
        }
    }

    /// 504: the replica took too long to begin its answer.
    pub(crate) fn too_slow(model: &str) -> Self {
        let message = format!("no replica of `{model}` began its answer in time");
        Self::new(StatusCode::GATEWAY_TIMEOUT, SERVER, Some("timeout"), message)
    }

    /// The error as JSON text.
    pub fn json(&self) -> String {
        let Self { kind, code, param, message, .. } = self;
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}}).to_string()
    }

    /// The error as a response.
    pub(crate) fn response(&self) -> Response {
        let mut response = json_response(self.json());
        *response.status_mut() = self.status;
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(allow) = self.allow {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

/// An engine's error body in OpenAI's shape: unchanged if it has it, completed if it nearly has, wrapped otherwise.
pub fn openai_error(status: StatusCode, body: &Bytes) -> Bytes {
    let read: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let keys = ["message", "type", "param", "code"];
    let inner = read.get("error").filter(|error| error.is_object()).unwrap_or(&read);
    if read["error"].is_object() && keys.iter().all(|key| inner.get(key).is_some()) {
        return body.clone();
    }
    let plain = || match &read["error"] {
        serde_json::Value::String(text) => text.clone(),
        _ => String::from_utf8_lossy(body).chars().take(1000).collect(),
    };
    let message = inner["message"].as_str().map_or_else(plain, str::to_owned);
    let kind = if status.is_server_error() { SERVER } else { INVALID };
    let kind = inner["type"].as_str().unwrap_or(kind);
    json!({"error": {"message": message, "type": kind, "param": inner["param"], "code": inner["code"]}})
        .to_string()
        .into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rewritten(body: &str, model: &str, usage: bool) -> String {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let rewritten = Peek::read(&body).unwrap().rewritten(&body, model, usage);
        String::from_utf8(rewritten.to_vec()).unwrap()
    }

    #[test]
    fn only_the_model_is_replaced() {
        let body = "{ \"x\": 1e400, \"model\" : \"auto\", \"messages\":[{\"role\":\"user\",\"content\":\"hi \\u00e9\"}], \"seed\": 18446744073709551615 }";
        let mut peek = Peek::read(body.as_bytes()).unwrap();
        assert_eq!(peek.model().unwrap(), "auto");
        assert_eq!(peek.text(Endpoint::Chat).unwrap().text, "hi é");
        let want = body.replace("\"auto\"", "\"llama \\\"x\\\"\"");
        assert_eq!(rewritten(body, "llama \"x\"", false), want);
        assert_eq!(rewritten(body, "auto", false), body);
    }

    #[test]
    fn usage_is_asked_for_whatever_the_options_are() {
        for (given, want) in [
            (r#" {"model":"m"}"#, r#" {"stream_options":{"include_usage":true},"model":"m"}"#),
            (
                r#"{"stream_options":null,"model":"m"}"#,
                r#"{"stream_options":{"include_usage":true},"model":"m"}"#,
            ),
            (
                r#"{"stream_options": { } ,"model":"m"}"#,
                r#"{"stream_options": {"include_usage":true } ,"model":"m"}"#,
            ),
            (
                r#"{"model":"m","stream_options":{"x":1}}"#,
                r#"{"model":"m","stream_options":{"include_usage":true,"x":1}}"#,
            ),
            (
                r#"{"model":"m","stream_options":{"include_usage": false}}"#,
                r#"{"model":"m","stream_options":{"include_usage": true}}"#,
            ),
            (r#"{"model":"m","stream_options":5}"#, r#"{"model":"m","stream_options":5}"#),
        ] {
            assert_eq!(rewritten(given, "m", true), want);
        }
        let asked = Peek::read(br#"{"stream":true,"stream_options":{"include_usage":true}}"#).unwrap();
        assert!(asked.wants_usage() && !asked.needs_usage(Endpoint::Chat));
        let unasked = Peek::read(br#"{"stream":true}"#).unwrap();
        assert!(unasked.needs_usage(Endpoint::Chat) && !unasked.needs_usage(Endpoint::Responses));
    }

    #[test]
    fn conversations_of_all_forms_are_read() {
        let text = |endpoint, body: &str| {
            Peek::read(body.as_bytes())
                .and_then(|mut peek| peek.text(endpoint))
                .map(|text| (text.text, text.token_ids))
                .map_err(|failure| failure.json())
        };
        let parts = r#"{"messages":[{"role":"system","content":"a"},{"role":"user","content":[{"type":"text","text":"b"},{"type":"image_url","image_url":{"url":"data:x"}}]},{"role":"assistant","content":null}]}"#;
        assert_eq!(text(Endpoint::Chat, parts).unwrap(), ("a\nb".into(), 0));
        assert_eq!(text(Endpoint::Completions, r#"{"prompt":["a","b"]}"#).unwrap(), ("a\nb".into(), 0));
        assert_eq!(text(Endpoint::Completions, r#"{"prompt":[1,2,3]}"#).unwrap(), (String::new(), 3));
        let responses =
            r#"{"input":[{"role":"user","content":[{"type":"input_text","text":"b"}]}],"instructions":"a"}"#;
        assert_eq!(text(Endpoint::Responses, responses).unwrap(), ("a\nb".into(), 0));
        assert_eq!(text(Endpoint::Embeddings, r#"{"input":"a"}"#).unwrap(), ("a".into(), 0));
        for bad in ["", "{", "[]", "{}", r#"{"messages":[]}"#, r#"{"messages":5}"#, r#"{"messages":"x"}"#] {
            assert!(text(Endpoint::Chat, bad).unwrap_err().starts_with(r#"{"error":{"#), "{bad}");
        }
        let twice = r#"{"model":"small","model":"large"}"#;
        assert!(Peek::read(twice.as_bytes()).is_err(), "an engine might take the other one");
    }

    #[test]
    fn errors_of_engines_get_openais_shape() {
        let shaped = |body: &str| {
            let body = openai_error(StatusCode::BAD_REQUEST, &Bytes::copy_from_slice(body.as_bytes()));
            String::from_utf8(body.to_vec()).unwrap()
        };
        let whole = r#"{"error":{"message":"m","type":"t","param":null,"code":7}}"#;
        assert_eq!(shaped(whole), whole);
        for (given, message) in [
            (r#"{"error":{"code":400,"message":"from llama.cpp","type":"t"}}"#, "from llama.cpp"),
            (r#"{"object":"error","message":"from old vLLM","type":"t"}"#, "from old vLLM"),
            (r#"{"error":"bare"}"#, "bare"),
            ("<html>bad</html>", "<html>bad</html>"),
            ("", ""),
        ] {
            let read: serde_json::Value = serde_json::from_str(&shaped(given)).unwrap();
            assert_eq!(read["error"]["message"], message);
            assert!(["type", "param", "code"].iter().all(|key| read["error"].get(key).is_some()), "{given}");
        }
    }

    proptest! {
        /// Whatever the bytes, reading ends in a request or an error.
        #[test]
        fn any_bytes_are_read(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Peek::read(&body).and_then(|mut peek| peek.text(Endpoint::Chat));
            let _ = openai_error(StatusCode::BAD_GATEWAY, &body.into());
        }

        /// A rewritten body is JSON that differs in the model and in `include_usage` alone.
        #[test]
        fn a_rewritten_body_says_the_same(model in ".{0,8}", new in ".{0,8}", text in ".{0,20}", options in 0..4) {
            let options = ["null", "{}", r#"{"include_usage":false,"x":2}"#, r#"{"x":[{}]}"#][options as usize];
            let value = json!({
                "a": {"model": 1}, "model": model, "messages": [{"content": text}], "stream": true,
                "stream_options": serde_json::from_str::<serde_json::Value>(options).unwrap(),
            });
            let read: serde_json::Value = serde_json::from_str(&rewritten(&value.to_string(), &new, true)).unwrap();
            prop_assert_eq!(&read["model"], &new);
            prop_assert_eq!(&read["stream_options"]["include_usage"], true);
            prop_assert_eq!(&read["stream_options"]["x"], &value["stream_options"]["x"]);
            prop_assert_eq!((&read["messages"], &read["a"]), (&value["messages"], &value["a"]));
        }
    }
}
