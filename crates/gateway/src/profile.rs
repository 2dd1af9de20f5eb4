//! Measuring a live engine: closed loops of clients over the OpenAI API, one load after the other.
//!
//! Every prompt begins with words of its own, so that no prefix cache helps. The clients of a loop first send one request
//! each that is not counted, of staggered lengths, and then requests whose lengths vary by a quarter: so they are out of
//! step, as real clients are. What is in flight when a loop's time is up is cancelled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::StatusCode;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::client::innermost;
use crate::engine_metrics::EngineMetrics;

/// Words that common tokenizers know whole.
const WORDS: [&str; 32] = [
    "the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "on", "not", "he",
    "his", "but", "at", "are", "this", "have", "from", "or", "had", "an", "they", "which", "one", "you",
    "all", "would",
];
/// Words of the two prompts by which tokens are told from words.
const PROBES: [u32; 2] = [50, 250];
/// A loop without an answer ends after this many failures.
const MOST_FAILURES: usize = 5;
/// A load in which a client has no answer yet goes on for this many times its share of the time.
const OVERTIME: u32 = 2;
/// A failed request is followed by a pause, so that a dead server is not hammered.
const PAUSE: Duration = Duration::from_millis(200);
/// Largest answer body that is read whole, and longest event of a stream.
const LARGEST: usize = 4 << 20;

/// One load: a closed loop of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Tokens of every prompt.
    pub prompt_tokens: u32,
    /// Mean tokens of the answers.
    pub answer_tokens: u32,
    /// Clients.
    pub clients: u32,
}

impl Load {
    /// No request is longer, prompt and answer together.
    const fn longest(self) -> u32 {
        self.prompt_tokens.saturating_add(self.answer_tokens.saturating_mul(2))
    }
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct ProfileConfig {
    /// Address, such as `http://127.0.0.1:8000`.
    pub url: String,
    /// Model to ask for; the only one there is if not given.
    pub model: Option<String>,
    /// The loads, in this order.
    pub loads: Vec<Load>,
    /// Wall time for all of them; loads that it does not suffice for are left out.
    pub budget: Duration,
    /// An answer whose next part takes longer has failed.
    pub patience: Duration,
    /// Seed of words and lengths.
    pub seed: u64,
}

/// One answered request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// Prompt tokens, if the engine counted them.
    pub prompt_tokens: Option<u32>,
    /// Answer tokens.
    pub answer_tokens: u32,
    /// Time to the first part of the text.
    pub ttft_s: f64,
    /// Time per token after the first; `None` for an answer of one token.
    pub tpot_s: Option<f64>,
}

/// What one load came to.
#[derive(Debug, Clone, PartialEq)]
pub struct MeasuredLoad {
    /// The load asked for.
    pub load: Load,
    /// Answered requests.
    pub timings: Vec<Timing>,
    /// Failed ones, by what went wrong.
    pub errors: BTreeMap<String, u64>,
}

/// What the engine is, and how it fared.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Name the model was asked for by.
    pub model: String,
    /// Version of the engine, if it tells.
    pub version: Option<String>,
    /// The engine's own counters over the run, if it has any.
    pub metrics: Option<EngineMetrics>,
    /// The loads.
    pub loads: Vec<MeasuredLoad>,
    /// Things the user should know.
    pub notes: Vec<String>,
}

/// Why an engine cannot be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// Not an address.
    #[error(
        "`{url}` is not an address\n  help: give one such as http://127.0.0.1:8000; https is not supported"
    )]
    Url {
        /// What was given.
        url: String,
    },
    /// Nothing there, or no models.
    #[error("{url}/v1/models: {cause}\n  help: start the engine first, and check host and port")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        cause: String,
    },
    /// It serves something else.
    #[error(
        "{url} does not serve `{model}`; it serves {served}\n  help: name one of these with `--served-model`"
    )]
    Model {
        /// Where.
        url: String,
        /// What was asked for.
        model: String,
        /// What there is.
        served: String,
    },
    /// A request by which the engine is tried out failed.
    #[error(
        "{url}/v1/chat/completions: {cause}\n  help: see the engine's log; it must serve chat completions, streamed too"
    )]
    Probe {
        /// Where.
        url: String,
        /// Why.
        cause: String,
    },
}

/// Measures all loads. `progress` is told what is going on, and the seconds that have passed of the budget.
///
/// # Errors
/// If the engine cannot be reached, does not serve the model, or does not answer the first requests. Loads that fail
/// later are listed with their errors.
pub async fn profile(
    config: &ProfileConfig,
    progress: impl Fn(&str, Duration),
) -> Result<Measured, ProfileError> {
    let started = Instant::now();
    progress("trying the engine out", Duration::ZERO);
    let (target, context) = Target::find(config).await?;
    let target = Arc::new(target);
    let before = target.metrics().await;
    let mut measured = Measured {
        model: target.model.clone(),
        version: target.version().await,
        metrics: None,
        loads: Vec::new(),
        notes: target.notes(),
    };
    let began = Instant::now();
    for (index, load) in config.loads.iter().enumerate() {
        let name = format!(
            "{} prompt + {} answer tokens, {} clients",
            load.prompt_tokens, load.answer_tokens, load.clients
        );
        if context.is_some_and(|context| load.longest() > context) {
            measured.notes.push(format!("left out: {name}: longer than the engine's context"));
            continue;
        }
        let left = config.budget.saturating_sub(began.elapsed());
        if left.is_zero() {
            measured.notes.push(format!("left out: {name}: no time left"));
            continue;
        }
        let share = left / (config.loads.len() - index) as u32;
        let closed_loop = closed_loop(&target, *load, share, config.seed.wrapping_add(index as u64));
        tokio::pin!(closed_loop);
        let found = loop {
            progress(&name, started.elapsed());
            if let Ok(found) = timeout(Duration::from_millis(250), &mut closed_loop).await {
                break found;
            }
        };
        measured.loads.push(found);
    }
    measured.metrics = match (before, target.metrics().await) {
        (Some(before), Some(after)) => Some(after.since(&before)),
        _ => None,
    };
    Ok(measured)
}

/// The engine, and how to talk to it.
struct Target {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
    model: String,
    /// Whether it takes `ignore_eos` and `min_tokens`, so that answers have the length asked for.
    full_answers: bool,
    /// Prompt tokens are this many, and this many a word.
    tokens: (f64, f64),
    patience: Duration,
}

impl Target {
    /// Finds the model, and tries out what the engine takes; with the longest prompt plus answer, if it tells.
    async fn find(config: &ProfileConfig) -> Result<(Self, Option<u32>), ProfileError> {
        let url = config.url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let parsed = url.parse::<hyper::Uri>().ok();
        if parsed.is_none_or(|uri| uri.scheme_str() != Some("http") || uri.host().is_none()) {
            return Err(ProfileError::Url { url: config.url.clone() });
        }
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(config.patience));
        let client = Client::builder(TokioExecutor::new())
            // A connection each: some servers close idle ones without a word.
            .pool_max_idle_per_host(0)
            .build(connector);
        let model = config.model.clone().unwrap_or_default();
        let patience = config.patience;
        let mut target = Self { client, url, model, full_answers: true, tokens: (0.0, 1.0), patience };
        let context = target.choose_model(config.model.as_deref()).await?;
        let url = target.url.clone();
        target.try_out(config.seed).await.map_err(|cause| ProfileError::Probe { url, cause })?;
        Ok((target, context))
    }

    async fn choose_model(&mut self, asked: Option<&str>) -> Result<Option<u32>, ProfileError> {
        let unreachable = |cause| ProfileError::Unreachable { url: self.url.clone(), cause };
        let list = self.get("/v1/models").await.map_err(unreachable)?;
        let list: Value = serde_json::from_str(&list).unwrap_or_default();
        let models = list["data"].as_array().map(Vec::as_slice).unwrap_or_default();
        let ids: Vec<&str> = models.iter().filter_map(|model| model["id"].as_str()).collect();
        if ids.is_empty() {
            return Err(unreachable("no list of models".into()));
        }
        let chosen = match asked {
            Some(asked) => ids.iter().position(|id| *id == asked),
            None => (ids.len() == 1).then_some(0),
        };
        let Some(chosen) = chosen else {
            let (url, model) = (self.url.clone(), asked.unwrap_or("one model alone").to_owned());
            return Err(ProfileError::Model { url, model, served: ids.join(", ") });
        };
        let model = models.iter().find(|model| model["id"] == ids[chosen]).unwrap_or(&Value::Null);
        // vLLM and SGLang; llama.cpp.
        let context = model["max_model_len"].as_u64().or(model["meta"]["n_ctx"].as_u64());
        ids[chosen].clone_into(&mut self.model);
        Ok(context.and_then(|context| u32::try_from(context).ok()))
    }

    /// Whether long answers can be had, how many tokens a word is, and whether streams stream.
    async fn try_out(&mut self, seed: u64) -> Result<(), String> {
        let mut random = Random(seed);
        let mut counted = [0.0; 2];
        for (words, counted) in PROBES.into_iter().zip(&mut counted) {
            let mut answer = self.whole(&random.prompt(words)).await;
            if self.full_answers
                && matches!(&answer, Err(Refusal { status: Some(status), .. }) if status.is_client_error())
            {
                self.full_answers = false;
                answer = self.whole(&random.prompt(words)).await;
            }
            let answer = answer.map_err(|refusal| refusal.cause)?;
            let tokens = answer["usage"]["prompt_tokens"].as_f64();
            *counted = tokens.ok_or("the answer has no `usage.prompt_tokens`")?;
        }
        let per_word = (counted[1] - counted[0]) / f64::from(PROBES[1] - PROBES[0]);
        if per_word <= 0.0 {
            return Err(format!(
                "prompts of {PROBES:?} words are said to be of {counted:?} tokens: that cannot be"
            ));
        }
        self.tokens = ((counted[0] - per_word * f64::from(PROBES[0])).max(0.0), per_word);
        self.stream(&random.prompt(PROBES[0]), 8).await.map(|_| ())
    }

    fn notes(&self) -> Vec<String> {
        let note = "the engine does not take `ignore_eos`: answers may be shorter than asked for";
        if self.full_answers { Vec::new() } else { vec![note.into()] }
    }

    fn words(&self, prompt_tokens: u32) -> u32 {
        let (fixed, per_word) = self.tokens;
        ((f64::from(prompt_tokens) - fixed) / per_word).round().max(1.0) as u32
    }

    /// The engine's counters, if it has any that we know.
    async fn metrics(&self) -> Option<EngineMetrics> {
        EngineMetrics::parse(&self.get("/metrics").await.ok()?)
    }

    /// vLLM's, then `SGLang`'s, then llama.cpp's way of telling its version.
    async fn version(&self) -> Option<String> {
        for (path, key) in [("/version", "version"), ("/server_info", "version"), ("/props", "build_info")] {
            let Ok(text) = self.get(path).await else { continue };
            let value: Value = serde_json::from_str(&text).unwrap_or_default();
            if let Some(version) = value[key].as_str() {
                return Some(version.to_owned());
            }
        }
        None
    }

    async fn get(&self, path: &str) -> Result<String, String> {
        let uri = format!("{}{path}", self.url).parse().map_err(|_| "not an address".to_owned())?;
        let answered = async {
            let response = self.client.get(uri).await.map_err(|error| innermost(&error))?;
            let status = response.status();
            let body = read(response.into_body()).await?;
            if status.is_success() { Ok(body) } else { Err(format!("status {}", status.as_u16())) }
        };
        timeout(self.patience, answered).await.unwrap_or_else(|_| Err(self.impatient()))
    }

    fn impatient(&self) -> String {
        format!("no answer within {} s", self.patience.as_secs_f64())
    }

    fn body(&self, prompt: &str, answer_tokens: u32, stream: bool) -> String {
        let mut body = json!({
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": answer_tokens,
            "stream": stream,
        });
        if stream {
            body["stream_options"] = json!({"include_usage": true});
        }
        if self.full_answers {
            body["ignore_eos"] = true.into();
            body["min_tokens"] = answer_tokens.into();
        }
        body.to_string()
    }

    async fn post(&self, body: String) -> Result<hyper::body::Incoming, Refusal> {
        let request = hyper::Request::post(format!("{}/v1/chat/completions", self.url))
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Refusal::of(error.to_string()))?;
        let response = self.client.request(request).await.map_err(|error| Refusal::of(innermost(&error)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let text = read(response.into_body()).await.unwrap_or_default();
        let body: Value = serde_json::from_str(&text).unwrap_or_default();
        let message = body["error"]["message"].as_str().or(body["message"].as_str()).unwrap_or(&text);
        let message: String = message.chars().take(200).collect();
        Err(Refusal { status: Some(status), cause: format!("status {}: {message}", status.as_u16()) })
    }

    /// One token, unstreamed.
    async fn whole(&self, prompt: &str) -> Result<Value, Refusal> {
        let answered = async {
            let body = self.post(self.body(prompt, 1, false)).await?;
            let text = read(body).await.map_err(Refusal::of)?;
            serde_json::from_str(&text)
                .map_err(|error| Refusal::of(format!("the answer is not JSON: {error}")))
        };
        timeout(self.patience, answered).await.unwrap_or_else(|_| Err(Refusal::of(self.impatient())))
    }

    /// A streamed answer, timed.
    async fn stream(&self, prompt: &str, answer_tokens: u32) -> Result<Timing, String> {
        let body = self.body(prompt, answer_tokens, true);
        let sent = Instant::now();
        let answered = timeout(self.patience, self.post(body)).await.map_err(|_| self.impatient())?;
        let mut body = answered.map_err(|refusal| refusal.cause)?;
        let mut answer = Answer::default();
        let mut unread: Vec<u8> = Vec::new();
        while !answer.done {
            let frame = timeout(self.patience, body.frame()).await.map_err(|_| self.impatient())?;
            let Some(frame) = frame else { break };
            let now = sent.elapsed();
            let Ok(data) = frame.map_err(|error| format!("broken off: {error}"))?.into_data() else {
                continue;
            };
            unread.extend_from_slice(&data);
            while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = unread.drain(..=end).collect();
                answer.read(&line, now)?;
            }
            if unread.len() > LARGEST {
                return Err("the answer is not a stream of events".into());
            }
        }
        answer.timing()
    }
}

/// What has been read of a streamed answer.
#[derive(Debug, Default)]
struct Answer {
    first: Option<Duration>,
    last: Duration,
    parts: u32,
    /// Prompt and answer tokens, as the engine counts.
    counted_prompt: Option<u32>,
    counted: Option<u32>,
    done: bool,
}

impl Answer {
    /// Takes in a line of the stream that came at `now`.
    fn read(&mut self, line: &[u8], now: Duration) -> Result<(), String> {
        let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else { return Ok(()) };
        if data == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        let event: Value =
            serde_json::from_slice(data).map_err(|error| format!("an event is not JSON: {error}"))?;
        if let Some(error) = event.get("error") {
            let message = error["message"].as_str().unwrap_or("no message");
            return Err(format!("the stream says: {message}"));
        }
        let tokens = |key| event["usage"][key].as_u64().and_then(|tokens| u32::try_from(tokens).ok());
        self.counted_prompt = tokens("prompt_tokens").or(self.counted_prompt);
        self.counted = tokens("completion_tokens").or(self.counted);
        let choice = &event["choices"][0];
        let text = ["content", "reasoning_content", "reasoning"].into_iter();
        if text.filter_map(|key| choice["delta"][key].as_str()).any(|text| !text.is_empty()) {
            self.first.get_or_insert(now);
            self.parts += 1;
        }
        // The end of the text may be an event of its own; an opening event with a role alone is no token.
        if self.first.is_some() && !choice.is_null() {
            self.last = now;
        }
        Ok(())
    }

    fn timing(self) -> Result<Timing, String> {
        if !self.done {
            return Err("the stream ended without [DONE]".into());
        }
        let first = self.first.ok_or("the stream has no text")?;
        let answer_tokens = self.counted.unwrap_or(self.parts).max(1);
        let rest = f64::from(answer_tokens - 1);
        let tpot_s = (answer_tokens > 1).then(|| (self.last.saturating_sub(first)).as_secs_f64() / rest);
        Ok(Timing { prompt_tokens: self.counted_prompt, answer_tokens, ttft_s: first.as_secs_f64(), tpot_s })
    }
}

/// A request that was not answered.
struct Refusal {
    status: Option<StatusCode>,
    cause: String,
}

impl Refusal {
    const fn of(cause: String) -> Self {
        Self { status: None, cause }
    }
}

/// What one loop shares.
struct Loop {
    target: Arc<Target>,
    load: Load,
    /// Clients that have an answer that counts, or have given up.
    settled: AtomicUsize,
    failures: AtomicUsize,
    answered: AtomicBool,
}

impl Loop {
    fn hopeless(&self) -> bool {
        !self.answered.load(Ordering::Relaxed) && self.failures.load(Ordering::Relaxed) >= MOST_FAILURES
    }
}

/// Runs one load for `budget`, and up to [`OVERTIME`] times that until every client has an answer.
async fn closed_loop(target: &Arc<Target>, load: Load, budget: Duration, seed: u64) -> MeasuredLoad {
    let shared = Arc::new(Loop {
        target: Arc::clone(target),
        load,
        settled: AtomicUsize::new(0),
        failures: AtomicUsize::new(0),
        answered: AtomicBool::new(false),
    });
    let (answers, mut received) = tokio::sync::mpsc::unbounded_channel();
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for index in 0..load.clients {
        // A stream of random numbers for each client of each loop.
        let random = Random(seed.wrapping_mul(1 << 20).wrapping_add(u64::from(index)));
        clients.spawn(client(Arc::clone(&shared), index, random, answers.clone()));
    }
    drop(answers);
    let mut measured = MeasuredLoad { load, timings: Vec::new(), errors: BTreeMap::new() };
    while let Some(answer) = received.recv().await {
        match answer {
            Ok(timing) => measured.timings.push(timing),
            Err(error) => *measured.errors.entry(error).or_default() += 1,
        }
        let settled = shared.settled.load(Ordering::Relaxed) == load.clients as usize;
        if started.elapsed() >= if settled { budget } else { OVERTIME * budget } {
            break;
        }
    }
    clients.shutdown().await;
    measured
}

async fn client(
    shared: Arc<Loop>,
    index: u32,
    mut random: Random,
    answers: tokio::sync::mpsc::UnboundedSender<Result<Timing, String>>,
) {
    let Load { prompt_tokens, answer_tokens, clients } = shared.load;
    let words = shared.target.words(prompt_tokens);
    let first = (u64::from(answer_tokens) * u64::from(index + 1)).div_ceil(u64::from(clients)) as u32;
    // Not counted; a failure will show again.
    let _ = shared.target.stream(&random.prompt(words), first.max(2)).await;
    let (mut settled, mut failed) = (false, 0);
    while !shared.hopeless() {
        let length = f64::from(answer_tokens) * random.between(0.75, 1.25);
        let answer = shared.target.stream(&random.prompt(words), (length.round() as u32).max(2)).await;
        if answer.is_ok() {
            shared.answered.store(true, Ordering::Relaxed);
        } else {
            failed += 1;
            shared.failures.fetch_add(1, Ordering::Relaxed);
            sleep(PAUSE).await;
        }
        if !settled && (answer.is_ok() || failed == MOST_FAILURES) {
            settled = true;
            shared.settled.fetch_add(1, Ordering::Relaxed);
        }
        if answers.send(answer).is_err() {
            return;
        }
    }
}

/// `SplitMix64` (Steele, Lea, Flood, OOPSLA 2014): words and lengths need no better.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A prompt of so many words that begins like no other.
    fn prompt(&mut self, words: u32) -> String {
        (0..words).map(|_| WORDS[(self.next() % WORDS.len() as u64) as usize]).collect::<Vec<_>>().join(" ")
    }
}

async fn read(body: hyper::body::Incoming) -> Result<String, String> {
    let body = http_body_util::Limited::new(body, LARGEST).collect().await;
    let bytes = body.map_err(|error| format!("the answer broke off: {error}"))?.to_bytes();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(lines: &[(&str, u64)]) -> Result<Timing, String> {
        let mut answer = Answer::default();
        for (line, ms) in lines {
            answer.read(line.as_bytes(), Duration::from_millis(*ms))?;
        }
        answer.timing()
    }

    #[test]
    fn time_runs_from_the_first_text_to_the_end_of_the_last() {
        let role = r#"data: {"choices":[{"delta":{"role":"assistant","content":""}}]}"#;
        let word = r#"data: {"choices":[{"delta":{"content":"a"}}]}"#;
        let thought = r#"data:{"choices":[{"delta":{"reasoning_content":"a"}}]}"#;
        let end = r#"data: {"choices":[{"delta":{},"finish_reason":"length"}]}"#;
        let usage = r#"data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":5}}"#;
        let done = "data: [DONE]";
        let timing = answer(&[
            (role, 1),
            ("", 1),
            (": ping", 2),
            (thought, 100),
            (word, 150),
            (end, 180),
            (usage, 500),
            (done, 500),
        ])
        .unwrap();
        let want = Timing { prompt_tokens: Some(9), answer_tokens: 5, ttft_s: 0.1, tpot_s: Some(0.02) };
        assert_eq!(timing, want);
        // Without a count, parts are tokens.
        let timing = answer(&[(word, 10), (word, 20), (word, 30), (done, 30)]).unwrap();
        assert_eq!((timing.answer_tokens, timing.tpot_s), (3, Some(0.01)));
        assert_eq!(answer(&[(word, 10), (done, 30)]).unwrap().tpot_s, None);
        assert_eq!(answer(&[(word, 10)]).unwrap_err(), "the stream ended without [DONE]");
        assert_eq!(answer(&[(role, 10), (done, 10)]).unwrap_err(), "the stream has no text");
        assert_eq!(
            answer(&[(r#"data: {"error":{"message":"full"}}"#, 1)]).unwrap_err(),
            "the stream says: full"
        );
        assert!(answer(&[("data: {", 1)]).unwrap_err().contains("not JSON"));
    }

    #[test]
    fn prompts_differ_from_the_start() {
        let mut random = Random(7);
        let prompts: std::collections::BTreeSet<String> =
            (0..1000).map(|_| random.prompt(300).chars().take(64).collect()).collect();
        assert_eq!(prompts.len(), 1000);
    }
}
