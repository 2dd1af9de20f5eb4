//! `boute quality collect`: prompts → answers → scores, a line per prompt, resumable.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use boute_gateway::{Answer, HttpClient};
use boute_spec::data_file::parse_quality;
use boute_spec::units::RequestsPerSecond;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::judge::{Judge, JudgeArgs, key_of};
use crate::failure::{Ending, Failure};
use crate::files::{Input, open_lines};
use crate::printer::Printer;
use crate::progress::{Progress, catch_ctrl_c, stop_requested};

/// A request that fails is sent this often in all, after pauses that double.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// Asks every model every prompt and scores the answers: `quality.jsonl`, which `boute plan` and `boute router train` read. A
/// prompt is written when all models have answered it; run again with the same output, it goes on where it was stopped.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Prompts, JSON lines: `{"prompt", "answer"?, "id"?, "task"?}`; `answer` is the reference that the judge compares with.
    prompts: PathBuf,
    /// Who answers for a model, over plain HTTP: `llama-3.1-8b=http://10.0.0.5:8000`; once for each model, small to large.
    #[arg(long = "endpoint", value_name = "MODEL=URL", required = true)]
    endpoints: Vec<String>,
    /// Environment variable that holds the endpoints' API key.
    #[arg(long, value_name = "VARIABLE")]
    key: Option<String>,
    /// Quality data; lines that are there already are kept and not asked again.
    #[arg(long, short, default_value = "quality.jsonl")]
    output: PathBuf,
    #[command(flatten)]
    judge: JudgeArgs,
    /// Longest answer, in tokens.
    #[arg(long, default_value_t = 1024)]
    max_tokens: u32,
    /// Prompts under way at once; each is sent to every model.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// Most requests per second to the models, such as "2 req/s".
    #[arg(long)]
    rate: Option<RequestsPerSecond>,
    /// Seconds to wait for an answer.
    #[arg(long, default_value_t = 300)]
    patience: u64,
}

/// A question.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Question {
    #[serde(default)]
    pub(crate) id: String,
    pub(crate) prompt: String,
    #[serde(default)]
    pub(crate) answer: Option<String>,
    #[serde(default)]
    task: String,
}

/// A line of the output.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    prompt: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    task: String,
    scores: BTreeMap<String, f64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    output_tokens: BTreeMap<String, u32>,
}

/// A model and where it answers.
#[derive(Debug)]
struct Endpoint {
    model: String,
    url: String,
}

/// What all requests share.
struct Shared {
    client: HttpClient,
    endpoints: Vec<Endpoint>,
    judge: Judge,
    key: Option<String>,
    max_tokens: u32,
    pace: Pace,
}

pub(crate) fn run(args: &Args, printer: Printer) -> Result<Ending, Failure> {
    let judge = args.judge.judge()?;
    let endpoints = args.endpoints.iter().map(|text| endpoint(text)).collect::<Result<Vec<_>, _>>()?;
    let models: Vec<String> = endpoints.iter().map(|endpoint| endpoint.model.clone()).collect();
    if models.iter().collect::<BTreeSet<_>>().len() < models.len() {
        return Err(Failure::input(
            "a model has two endpoints",
            "put a balancer before them, such as `boute serve`",
        ));
    }
    let input = Input::read(&args.prompts)?;
    let prompts = prompts(&input, judge.needs_reference())?;
    if prompts.is_empty() {
        let hint = "a line is {\"prompt\": …, \"answer\": …}";
        return Err(Failure::input(format_args!("`{}` has no prompts", input.name), hint));
    }
    let (mut output, known) = open(&args.output, &models)?;
    let asked: Vec<Question> = prompts.into_iter().filter(|prompt| !known.contains(&prompt.id)).collect();
    if !known.is_empty() {
        printer.say(format_args!(
            "{} has {} prompts already; {} are left",
            args.output.display(),
            known.len(),
            asked.len()
        ));
    }
    let shared = Arc::new(Shared {
        client: HttpClient::new(Duration::from_secs(args.patience)),
        endpoints,
        judge,
        key: args.key.as_deref().map(key_of).transpose()?,
        max_tokens: args.max_tokens,
        pace: Pace::new(args.rate),
    });
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::unexpected)?;
    catch_ctrl_c(&runtime);
    let mut told = Told::new(&models, asked.len());
    let progress = Progress::new(printer.quiet);
    runtime.block_on(collect(&shared, asked, usize::from(args.concurrency), |row| {
        if let Ok(row) = &row {
            let line = serde_json::to_string(row).map_err(Failure::unexpected)?;
            writeln!(output, "{line}").map_err(|error| Failure::unwritable(&args.output, &error))?;
        }
        told.book(row);
        progress.at(&told.means(), told.done(), told.total);
        Ok(())
    }))?;
    progress.finish();
    for (error, count) in &told.errors {
        printer.say(format_args!("{count} prompts failed: {error}"));
    }
    printer.text(format_args!("{} prompts scored: {}\n", told.scored, told.means()));
    printer.data(&json!({
        "file": args.output, "scored": told.scored, "known": known.len(), "failed": told.errors, "mean": told.mean_scores(),
    }))?;
    let whole = told.scored == told.total;
    if whole {
        printer.say(format_args!("Next: `quality: {{data: {}}}` in boute.yaml", args.output.display()));
    } else {
        printer.say("run it again to ask what is left");
    }
    Ok(if whole { Ending::Done } else { Ending::Unmet })
}

fn endpoint(text: &str) -> Result<Endpoint, Failure> {
    let parts = text.split_once('=').filter(|(model, url)| !model.is_empty() && url.starts_with("http://"));
    let (model, url) = parts.ok_or_else(|| {
        Failure::input(
            format_args!("`--endpoint {text}` is not MODEL=http://HOST:PORT"),
            "write it like `llama-3.1-8b=http://10.0.0.5:8000`; https is not spoken",
        )
    })?;
    let url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
    Ok(Endpoint { model: model.into(), url })
}

/// Reads the prompts; those without id get their line's number.
fn prompts(input: &Input, referenced: bool) -> Result<Vec<Question>, Failure> {
    let (mut prompts, mut ids) = (Vec::new(), BTreeSet::new());
    for (number, line) in (1..).zip(input.text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |what: &str| {
            Failure::input(
                format_args!("{}:{number}: {what}", input.name),
                "a line is {\"prompt\": …, \"answer\": …, \"id\": …, \"task\": …}; all but `prompt` may be left out",
            )
        };
        let mut prompt: Question = serde_json::from_str(line).map_err(|error| wrong(&error.to_string()))?;
        if prompt.id.is_empty() {
            prompt.id = format!("line-{number}");
        }
        if referenced && prompt.answer.is_none() {
            return Err(wrong("there is no `answer` to compare with"));
        }
        if !ids.insert(prompt.id.clone()) {
            return Err(wrong("its `id` was there before"));
        }
        prompts.push(prompt);
    }
    Ok(prompts)
}

/// Opens the output for more lines, and says which prompts it has.
fn open(path: &Path, models: &[String]) -> Result<(fs::File, BTreeSet<String>), Failure> {
    let (file, text) = open_lines(path)?;
    if text.is_empty() {
        return Ok((file, BTreeSet::new()));
    }
    let name = path.display().to_string();
    let known = parse_quality(&name, &text, models).map_err(Failure::told)?;
    if known.queries.len() < text.lines().count() {
        return Err(Failure::input(
            format_args!("`{name}` has prompts without scores of {}", models.join(", ")),
            "it was collected with other models: give another output",
        ));
    }
    Ok((file, known.queries.into_iter().map(|query| query.id).collect()))
}

/// Asks all prompts, some at once; `book` gets what each came to. Ctrl-C lets those under way end.
async fn collect(
    shared: &Arc<Shared>,
    prompts: Vec<Question>,
    concurrency: usize,
    mut book: impl FnMut(Result<Row, String>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (places, mut tasks) = (Arc::new(Semaphore::new(concurrency)), JoinSet::new());
    for prompt in prompts {
        let place = Arc::clone(&places).acquire_owned().await.map_err(Failure::unexpected)?;
        if stop_requested() {
            break;
        }
        let shared = Arc::clone(shared);
        tasks.spawn(async move {
            let row = row(&shared, prompt).await;
            drop(place);
            row
        });
        while let Some(joined) = tasks.try_join_next() {
            book(joined.map_err(Failure::unexpected)?)?;
        }
    }
    while let Some(joined) = tasks.join_next().await {
        book(joined.map_err(Failure::unexpected)?)?;
    }
    Ok(())
}

/// All models' answers to one prompt.
async fn row(shared: &Shared, prompt: Question) -> Result<Row, String> {
    let (mut scores, mut output_tokens) = (BTreeMap::new(), BTreeMap::new());
    for endpoint in &shared.endpoints {
        let (reply, tokens) = reply(shared, endpoint, &prompt.prompt).await?;
        let score = shared.judge.score(&prompt, &reply, &shared.client).await?;
        scores.insert(endpoint.model.clone(), score);
        output_tokens.extend(tokens.map(|tokens| (endpoint.model.clone(), tokens)));
    }
    let Question { id, prompt, task, .. } = prompt;
    Ok(Row { id, prompt, task, scores, output_tokens })
}

/// What an engine says that does not answer.
fn refusal(answer: &Answer) -> String {
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let said = body["error"]["message"].as_str().map(|said| format!(": {said}")).unwrap_or_default();
    format!("says status {}{said}", answer.status)
}

/// What a model answers, and in how many tokens.
async fn reply(shared: &Shared, endpoint: &Endpoint, prompt: &str) -> Result<(String, Option<u32>), String> {
    let body = json!({
        "model": endpoint.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": shared.max_tokens,
        "temperature": 0,
    });
    let url = format!("{}/v1/chat/completions", endpoint.url);
    let mut attempt = 0;
    loop {
        shared.pace.turn().await;
        let answer = shared.client.post_json(&url, shared.key.as_deref(), body.to_string()).await;
        let error = match answer {
            Ok(answer) if answer.is_success() => {
                let answer: Value = serde_json::from_str(&answer.body).map_err(|error| error.to_string())?;
                let text = answer["choices"][0]["message"]["content"].as_str();
                let text =
                    text.ok_or_else(|| format!("{}: the answer has no text", endpoint.model))?.to_owned();
                let tokens = answer["usage"]["completion_tokens"].as_u64();
                return Ok((text, tokens.and_then(|tokens| u32::try_from(tokens).ok())));
            }
            // What the engine will not take now it will not take later.
            Ok(answer) if matches!(answer.status, 400..=499) && answer.status != 429 => {
                return Err(format!("{} {}", endpoint.model, refusal(&answer)));
            }
            Ok(answer) => format!("{} {}", endpoint.model, refusal(&answer)),
            Err(error) => format!("{}: {error}", endpoint.model),
        };
        attempt += 1;
        if attempt == ATTEMPTS || stop_requested() {
            return Err(error);
        }
        sleep(PAUSE * (1 << attempt)).await;
    }
}

/// Keeps requests apart.
struct Pace {
    gap: Duration,
    next: Mutex<Instant>,
}

impl Pace {
    fn new(rate: Option<RequestsPerSecond>) -> Self {
        let gap = rate.filter(|rate| rate.get() > 0.0).map(|rate| Duration::from_secs_f64(1.0 / rate.get()));
        Self { gap: gap.unwrap_or_default(), next: Mutex::new(Instant::now()) }
    }

    /// Resolves when it is the caller's turn.
    async fn turn(&self) {
        let due = {
            let mut next = self.next.lock().await;
            let due = (*next).max(Instant::now());
            *next = due + self.gap;
            due
        };
        sleep_until(due).await;
    }
}

/// What is known so far.
struct Told {
    sums: BTreeMap<String, f64>,
    scored: u64,
    total: u64,
    errors: BTreeMap<String, u64>,
}

impl Told {
    fn new(models: &[String], total: usize) -> Self {
        let sums = models.iter().map(|model| (model.clone(), 0.0)).collect();
        Self { sums, scored: 0, total: total as u64, errors: BTreeMap::new() }
    }

    fn book(&mut self, row: Result<Row, String>) {
        match row {
            Ok(row) => {
                self.scored += 1;
                for (model, score) in row.scores {
                    *self.sums.entry(model).or_default() += score;
                }
            }
            Err(error) => *self.errors.entry(error).or_default() += 1,
        }
    }

    fn done(&self) -> u64 {
        self.scored + self.errors.values().sum::<u64>()
    }

    fn mean_scores(&self) -> BTreeMap<&str, f64> {
        let count = self.scored.max(1) as f64;
        self.sums.iter().map(|(model, sum)| (model.as_str(), sum / count)).collect()
    }

    fn means(&self) -> String {
        let means = self.mean_scores();
        means.iter().map(|(model, mean)| format!("{model} {mean:.3}")).collect::<Vec<_>>().join(", ")
    }
}
