//! A plain HTTP/1.1 client for few, short questions: what an engine says of itself, a judge's opinion.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::timeout;

/// Largest answer that is read.
const LARGEST_ANSWER: usize = 32 << 20;

/// Asks servers over plain HTTP.
#[derive(Debug, Clone)]
pub struct HttpClient {
    client: Client<HttpConnector, Full<Bytes>>,
    patience: Duration,
}

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// The `date` header, where there is one.
    pub date: Option<String>,
    /// The body; what is not UTF-8 is replaced.
    pub body: String,
}

impl Answer {
    /// Whether the status is 2xx.
    pub const fn is_success(&self) -> bool {
        matches!(self.status, 200..300)
    }
}

impl HttpClient {
    /// A client that gives up on an answer after `patience`.
    pub fn new(patience: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(patience));
        // A connection each: some servers close idle ones without a word.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Self { client, patience }
    }

    /// GET.
    ///
    /// # Errors
    /// Says why there is no answer: not an `http://` address, refused, too slow, too long.
    pub async fn get(&self, url: &str) -> Result<Answer, String> {
        self.ask(Method::GET, url, None, String::new()).await
    }

    /// POST of JSON, with a key as bearer token where one is given.
    ///
    /// # Errors
    /// As for [`Self::get`].
    pub async fn post_json(&self, url: &str, key: Option<&str>, body: String) -> Result<Answer, String> {
        self.ask(Method::POST, url, key, body).await
    }

    async fn ask(
        &self,
        method: Method,
        url: &str,
        key: Option<&str>,
        body: String,
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(url);
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(key) = key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| error.to_string())?;
        if request.uri().scheme_str() != Some("http") {
            return Err("not an http:// address".into());
        }
        let answered = async {
            let response = self.client.request(request).await.map_err(|error| innermost(&error))?;
            let status = response.status().as_u16();
            let date = response.headers().get(header::DATE).map(HeaderValue::to_str);
            let date = date.and_then(Result::ok).map(str::to_owned);
            let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
            let body = body.map_err(|error| error.to_string())?.to_bytes();
            Ok(Answer { status, date, body: String::from_utf8_lossy(&body).into_owned() })
        };
        let late = || Err(format!("no answer within {} s", self.patience.as_secs_f64()));
        timeout(self.patience, answered).await.unwrap_or_else(|_| late())
    }
}

/// The innermost cause: "connection refused" says more than "client error".
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
