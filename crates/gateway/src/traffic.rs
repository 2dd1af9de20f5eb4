//! What is counted per model, under OpenTelemetry's `gen_ai` names.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::hedge::Begins;
use crate::metrics::{Counter, E2E_S, Histogram, TOKENS, TPOT_S, TTFT_S, describe, label, sample};
use crate::openai::Endpoint;
use crate::sse::Usage;

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It came whole.
    Done,
    /// The replica broke off.
    Broken,
    /// The client went.
    Cancelled,
    /// It was an error of the engine's.
    Error,
    /// It came whole, and another model's was given in its place.
    Replaced,
}

impl Ending {
    pub(crate) const ALL: [Self; 5] =
        [Self::Done, Self::Broken, Self::Cancelled, Self::Error, Self::Replaced];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Broken => "broken",
            Self::Cancelled => "cancelled",
            Self::Error => "error",
            Self::Replaced => "replaced",
        }
    }
}

/// Finds one of a model's histograms.
type Of = fn(&ModelTraffic) -> &Histogram;

/// Counts of one model.
#[derive(Debug)]
pub(crate) struct ModelTraffic {
    pub(crate) decisions: Counter,
    /// By endpoint and ending.
    endings: [[Counter; 5]; 4],
    duration: Histogram,
    pub(crate) ttft: Histogram,
    per_token: Histogram,
    input_tokens: Histogram,
    output_tokens: Histogram,
    pub(crate) begins: Begins,
}

impl Default for ModelTraffic {
    fn default() -> Self {
        Self {
            decisions: Counter::default(),
            endings: Default::default(),
            duration: Histogram::new(&E2E_S),
            ttft: Histogram::new(&TTFT_S),
            per_token: Histogram::new(&TPOT_S),
            input_tokens: Histogram::new(&TOKENS),
            output_tokens: Histogram::new(&TOKENS),
            begins: Begins::default(),
        }
    }
}

impl ModelTraffic {
    /// An answer has ended: after `e2e`, its first byte after `ttft`.
    pub(crate) fn ended(
        &self,
        endpoint: Endpoint,
        ending: Ending,
        ttft: Option<Duration>,
        e2e: Duration,
        usage: Option<Usage>,
    ) {
        self.endings[endpoint as usize][ending as usize].add(1);
        self.duration.observe_time(e2e);
        let Some(usage) = usage else { return };
        self.input_tokens.observe(usage.prompt_tokens as f64);
        if usage.completion_tokens > 0 {
            self.output_tokens.observe(usage.completion_tokens as f64);
        }
        if let Some(ttft) = ttft.filter(|_| usage.completion_tokens > 1) {
            let further = (usage.completion_tokens - 1) as f64;
            self.per_token.observe(e2e.saturating_sub(ttft).as_secs_f64() / further);
        }
    }

    /// All of it as JSON.
    pub(crate) fn state(&self) -> Value {
        let answers: BTreeMap<&str, u64> = Ending::ALL
            .iter()
            .map(|ending| {
                (ending.name(), self.endings.iter().map(|endings| endings[*ending as usize].get()).sum())
            })
            .collect();
        json!({
            "decisions": self.decisions.get(),
            "answers": answers,
            "e2e": self.duration.state(),
            "ttft": self.ttft.state(),
            "tpot": self.per_token.state(),
            "input_tokens": self.input_tokens.sum(),
            "output_tokens": self.output_tokens.sum(),
        })
    }

    /// Appends the metrics of all `models`.
    pub(crate) fn write<'a>(out: &mut String, models: impl Iterator<Item = (&'a str, &'a Self)> + Clone) {
        let labelled = |model: &str| format!("gen_ai_response_model=\"{}\"", label(model));
        let name = "boute_decisions_total";
        describe(out, name, "counter", "Requests by the model that was chosen.");
        for (model, traffic) in models.clone() {
            sample(out, name, &format!("model=\"{}\"", label(model)), traffic.decisions.get());
        }
        let name = "boute_answers_total";
        describe(out, name, "counter", "Answers by model, operation and how they ended.");
        for (model, traffic) in models.clone() {
            for (endpoint, endings) in Endpoint::ALL.iter().zip(&traffic.endings) {
                for (ending, count) in Ending::ALL.iter().zip(endings).filter(|(_, count)| count.get() > 0) {
                    let labels = format!(
                        "{},gen_ai_operation_name=\"{}\",ending=\"{}\"",
                        labelled(model),
                        endpoint.operation(),
                        ending.name()
                    );
                    sample(out, name, &labels, count.get());
                }
            }
        }
        let histograms: [(&str, &str, Of); 3] = [
            ("gen_ai_server_request_duration_seconds", "From arrival to the last byte.", |it| &it.duration),
            ("gen_ai_server_time_to_first_token_seconds", "From arrival to the first byte.", |it| &it.ttft),
            ("gen_ai_server_time_per_output_token_seconds", "Time per token after the first.", |it| {
                &it.per_token
            }),
        ];
        for (name, help, of) in histograms {
            describe(out, name, "histogram", help);
            models.clone().for_each(|(model, traffic)| of(traffic).write(out, name, &labelled(model)));
        }
        let name = "gen_ai_client_token_usage";
        describe(out, name, "histogram", "Tokens per request.");
        for (model, traffic) in models {
            for (kind, histogram) in [("input", &traffic.input_tokens), ("output", &traffic.output_tokens)] {
                histogram.write(out, name, &format!("{},gen_ai_token_type=\"{kind}\"", labelled(model)));
            }
        }
    }
}
