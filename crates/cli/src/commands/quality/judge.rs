//! Scores of answers: by comparison with a reference, by a program, or by another model.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use boute_gateway::HttpClient;
use regex_lite::Regex;
use serde_json::{Value, json};

use super::collect::Question;
use crate::failure::Failure;

/// How answers are scored.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Judge")]
pub(crate) struct JudgeArgs {
    /// exact: the answer, or its last line, is the reference; numeric: its last number is; regex: `--pattern` finds it;
    /// command: a program passes it; llm: another model grades it.
    #[arg(long, value_enum)]
    judge: Kind,
    /// What finds the answer in what a model says: what the last match of the first group (or of all of it) holds must be
    /// the reference.
    #[arg(long, value_name = "REGEX", required_if_eq("judge", "regex"))]
    pattern: Option<String>,
    /// A program that passes (0) or fails (1) an answer, such as one that runs unit tests. It gets
    /// `{"prompt", "answer", "reply", …}` as JSON on stdin.
    #[arg(long, value_name = "COMMAND", required_if_eq("judge", "command"))]
    command: Option<String>,
    /// Seconds a program may take; then the answer has failed.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    command_limit: u64,
    /// OpenAI-compatible endpoint of the model that grades, over plain HTTP.
    #[arg(long, value_name = "URL", required_if_eq("judge", "llm"))]
    judge_url: Option<String>,
    /// Its name there.
    #[arg(long, value_name = "MODEL", required_if_eq("judge", "llm"))]
    judge_model: Option<String>,
    /// Environment variable that holds its API key.
    #[arg(long, value_name = "VARIABLE")]
    judge_key: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    Exact,
    Numeric,
    Regex,
    Command,
    Llm,
}

/// A judge that is ready to judge.
#[derive(Debug)]
pub(crate) enum Judge {
    Exact,
    Numeric,
    Regex(Regex),
    Command { line: String, limit: Duration },
    Llm { url: String, model: String, key: Option<String> },
}

impl JudgeArgs {
    /// The judge that was chosen.
    pub(crate) fn judge(&self) -> Result<Judge, Failure> {
        let given = |value: &Option<String>| {
            value.clone().ok_or_else(|| Failure::unexpected("an argument is missing"))
        };
        Ok(match self.judge {
            Kind::Exact => Judge::Exact,
            Kind::Numeric => Judge::Numeric,
            Kind::Regex => Judge::Regex(Regex::new(&given(&self.pattern)?).map_err(|error| {
                Failure::input(
                    format_args!("`--pattern` is no regular expression: {error}"),
                    "see docs.rs/regex-lite",
                )
            })?),
            Kind::Command => {
                Judge::Command { line: given(&self.command)?, limit: Duration::from_secs(self.command_limit) }
            }
            Kind::Llm => {
                let key = self.judge_key.as_deref().map(key_of).transpose()?;
                let url = given(&self.judge_url)?;
                let url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
                Judge::Llm { url, model: given(&self.judge_model)?, key }
            }
        })
    }
}

/// An API key from the environment: not from the command line, which others can see.
pub(crate) fn key_of(variable: &str) -> Result<String, Failure> {
    std::env::var(variable).map_err(|_| {
        Failure::input(
            format_args!("the environment has no `{variable}`"),
            format_args!("export {variable}=…, or leave the key out"),
        )
    })
}

impl Judge {
    /// Whether prompts must bring a reference answer.
    pub(crate) const fn needs_reference(&self) -> bool {
        matches!(self, Self::Exact | Self::Numeric | Self::Regex(_))
    }

    /// The score of a reply, 0 to 1.
    ///
    /// # Errors
    /// If it could not be judged.
    pub(crate) async fn score(
        &self,
        prompt: &Question,
        reply: &str,
        client: &HttpClient,
    ) -> Result<f64, String> {
        let reference = prompt.answer.as_deref().unwrap_or_default();
        let passed = match self {
            Self::Exact => exact(reply, reference),
            Self::Numeric => numeric(reply, reference),
            Self::Regex(pattern) => found(pattern, reply, reference),
            Self::Command { line, limit } => {
                let told = json!({
                    "id": prompt.id, "prompt": prompt.prompt, "answer": prompt.answer, "reply": reply,
                });
                let (line, limit) = (line.clone(), *limit);
                let ran = tokio::task::spawn_blocking(move || run(&line, &told, limit)).await;
                ran.map_err(|error| error.to_string())??
            }
            Self::Llm { url, model, key } => {
                return graded(client, url, model, key.as_deref(), prompt, reply).await;
            }
        };
        Ok(f64::from(u8::from(passed)))
    }
}

/// Case, blanks and a full stop do not matter.
fn plain(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").trim_end_matches('.').to_lowercase()
}

fn exact(reply: &str, reference: &str) -> bool {
    let last = reply.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    plain(reply) == plain(reference) || plain(last) == plain(reference)
}

/// The last number of a text; commas that group digits, and what stands before or after it, do not matter.
fn last_number(text: &str) -> Option<f64> {
    let text = text.replace(',', "");
    let of_number = |c: char| c.is_ascii_digit() || matches!(c, '.' | '-' | 'e' | 'E' | '+');
    let mut parts = text.split(|c| !of_number(c)).rev();
    parts.find_map(|part| part.trim_matches(['.', 'e', 'E', '+']).trim_end_matches('-').parse().ok())
}

fn numeric(reply: &str, reference: &str) -> bool {
    let (Some(said), Some(wanted)) = (last_number(reply), last_number(reference)) else { return false };
    (said - wanted).abs() <= 1e-6 * wanted.abs().max(1.0)
}

fn found(pattern: &Regex, reply: &str, reference: &str) -> bool {
    let last = pattern.captures_iter(reply).last();
    let held = last.as_ref().and_then(|captures| captures.get(1).or(captures.get(0)));
    held.is_some_and(|held| plain(held.as_str()) == plain(reference))
}

/// Runs `line` by the shell with `question` on its stdin.
fn run(line: &str, question: &Value, limit: Duration) -> Result<bool, String> {
    let started = Instant::now();
    let mut child = Command::new("sh")
        .args(["-c", line])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("the judge does not start: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program need not read what it is told.
        let _ = stdin.write_all(question.to_string().as_bytes());
    }
    loop {
        match child.try_wait().map_err(|error| error.to_string())?.map(|status| status.code()) {
            Some(Some(0)) => return Ok(true),
            Some(Some(1)) => return Ok(false),
            Some(code) => {
                let code =
                    code.map_or_else(|| "by a signal".to_owned(), |code| format!("with status {code}"));
                return Err(format!("the judge ended {code}; 0 is passed, 1 is failed"));
            }
            None if started.elapsed() >= limit => {
                // What does not end has failed; it may end just now.
                let _ = child.kill();
                let _ = child.wait();
                return Ok(false);
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

async fn graded(
    client: &HttpClient,
    url: &str,
    model: &str,
    key: Option<&str>,
    prompt: &Question,
    reply: &str,
) -> Result<f64, String> {
    let reference = prompt.answer.as_ref().map(|answer| format!("\n\n[Reference answer]\n{answer}"));
    let question = format!(
        "Grade how well the answer serves the question: 10 is correct, complete and to the point, 0 is useless or wrong. \
         End with one line of the form `Grade: N`.\n\n[Question]\n{}{}\n\n[Answer]\n{reply}",
        prompt.prompt,
        reference.unwrap_or_default()
    );
    let body = json!({
        "model": model, "temperature": 0, "messages": [{"role": "user", "content": question}],
    });
    let answer = client.post_json(&format!("{url}/v1/chat/completions"), key, body.to_string()).await?;
    if !answer.is_success() {
        return Err(format!("the judge says status {}", answer.status));
    }
    let answer: Value = serde_json::from_str(&answer.body).map_err(|error| error.to_string())?;
    let said = answer["choices"][0]["message"]["content"].as_str().unwrap_or_default();
    grade(said).ok_or_else(|| "the judge gave no line `Grade: N` with N from 0 to 10".to_owned())
}

fn grade(said: &str) -> Option<f64> {
    let (_, after) = said.rsplit_once("Grade:")?;
    let number: String = after.trim_start().chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    number
        .trim_end_matches('.')
        .parse()
        .ok()
        .filter(|grade| (0.0..=10.0).contains(grade))
        .map(|grade| grade / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_compared_as_people_would() {
        assert!(
            exact("Paris.", "paris")
                && exact("It is\n\n Paris \n", "Paris")
                && !exact("Paris, France", "Paris")
        );
        assert!(
            numeric("So it costs $1,234.50.", "1234.5")
                && numeric("-3", "-3")
                && numeric("about 2e3", "2000")
        );
        assert!(!numeric("3 or 4", "3") && !numeric("none", "3") && !numeric("3", "none"));
        let letter = Regex::new(r"answer is \(?([A-J])\)?").unwrap();
        assert!(found(&letter, "The answer is A. No, the answer is (B).", "B") && !found(&letter, "B", "B"));
        assert_eq!((grade("Fine.\nGrade: 7"), grade("Grade: 11"), grade("7")), (Some(0.7), None, None));
    }

    #[test]
    fn programs_judge_within_their_limit() {
        let ran = |line: &str| run(line, &json!({"reply": "42"}), Duration::from_millis(500));
        assert_eq!(ran("grep -q 42"), Ok(true));
        assert_eq!(ran("grep -q 43"), Ok(false));
        assert_eq!(ran("sleep 20"), Ok(false));
        assert!(ran("exit 7").unwrap_err().contains("status 7"));
    }
}
