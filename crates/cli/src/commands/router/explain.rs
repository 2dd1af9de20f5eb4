//! `boute router explain`.

use std::fmt::Write;
use std::path::PathBuf;

use boute_router::Scratch;
use boute_router::decide::Decider;
use boute_router::lengths::QUANTILES;
use serde::Serialize;

use super::certify::Certificate;
use super::read_router;
use crate::failure::{Ending, Failure};
use crate::files::Input;
use crate::printer::Printer;

/// Reasons shown.
const REASONS: usize = 10;

/// Explains one decision.
#[derive(Debug, clap::Args)]
pub(crate) struct Explain {
    /// The router.
    router: PathBuf,
    /// The query: its text, or `-` to read it from standard input. Several are the messages of a conversation.
    #[arg(required = true)]
    messages: Vec<String>,
    /// The certified policy to decide by; without one, the largest score wins.
    #[arg(long)]
    certificate: Option<PathBuf>,
}

#[derive(Serialize)]
struct Explanation {
    model: String,
    novelty: f32,
    /// Novelty from which scores shrink to the means, and from which the best single model answers.
    novelty_limits: (f32, f32),
    models: Vec<ModelView>,
    /// What speaks for the model rather than the runner-up, in log odds.
    reasons: Vec<(String, f32)>,
}

#[derive(Serialize)]
struct ModelView {
    model: String,
    expected_score: f32,
    /// λ of the policy; `None` where the policy does not have the model.
    penalty: Option<f64>,
    /// 10 %, 50 % and 90 % quantiles, where lengths are known.
    answer_tokens: Option<[f32; 3]>,
}

pub(super) fn run(args: &Explain, printer: Printer) -> Result<Ending, Failure> {
    let (scorer, router) = read_router(&args.router)?;
    let messages =
        args.messages
            .iter()
            .map(|text| {
                if text == "-" { Input::read("-".as_ref()).map(|input| input.text) } else { Ok(text.clone()) }
            })
            .collect::<Result<Vec<String>, _>>()?;
    let messages: Vec<&str> = messages.iter().map(String::as_str).collect();
    let models = scorer.models();
    let mut scratch = Scratch::default();
    let mut scores = vec![0.0; models.len()];
    scorer.score_conversation(&messages, &mut scratch, &mut scores);
    let certificate = args.certificate.as_ref().map(|path| Certificate::read(path, &router)).transpose()?;
    let penalty = |model: &String| match &certificate {
        None => Some(0.0),
        Some(certificate) => {
            certificate.policy.iter().find(|penalty| penalty.model == *model).map(|penalty| penalty.lambda)
        }
    };
    let worth = |model: usize| penalty(&models[model]).map(|lambda| f64::from(scores[model]) - lambda);
    let chosen = match &certificate {
        Some(certificate) => {
            Decider::new(&certificate.routing_policy(), models).map_err(Failure::told)?.decide(&scores).model
        }
        None => best_of((0..models.len()).filter_map(|model| Some((model, worth(model)?)))),
    };
    let others = (0..models.len()).filter(|model| *model != chosen);
    let runner_up =
        best_of(others.map(|model| (model, worth(model).unwrap_or(f64::from(scores[model]) - 2.0))));
    // Words have no say in what is unlike anything in training.
    let known = scratch.novelty() < scorer.novelty_limits().1;
    let mut reasons =
        if models.len() > 1 && known { scorer.reasons(&messages, chosen, runner_up) } else { Vec::new() };
    reasons.truncate(REASONS);
    let middle = |tokens: [f32; QUANTILES.len()]| [tokens[1], tokens[3], tokens[5]];
    let explanation = Explanation {
        model: models[chosen].clone(),
        novelty: scratch.novelty(),
        novelty_limits: scorer.novelty_limits(),
        models: models
            .iter()
            .enumerate()
            .map(|(at, model)| ModelView {
                model: model.clone(),
                expected_score: scores[at],
                penalty: penalty(model),
                answer_tokens: scorer.answer_tokens(&scratch, at).map(middle),
            })
            .collect(),
        reasons,
    };
    printer.data(&explanation)?;
    printer.text(as_text(&explanation, &models[runner_up]));
    Ok(Ending::Done)
}

fn best_of(worths: impl Iterator<Item = (usize, f64)>) -> usize {
    worths.max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0))).map_or(0, |(model, _)| model)
}

fn as_text(explanation: &Explanation, runner_up: &str) -> String {
    let Explanation { model, novelty, novelty_limits: (start, end), models, reasons } = explanation;
    let mut text = format!("{model} answers\n");
    for view in models {
        let _ = write!(text, "  {}: expected score {:.3}", view.model, view.expected_score);
        let _ = match view.penalty {
            Some(0.0) => Ok(()),
            Some(lambda) => {
                let worth = f64::from(view.expected_score) - lambda;
                write!(text, ", less its price λ = {lambda:.3}: {worth:.3}")
            }
            None => write!(text, ", not in the policy"),
        };
        if let Some([low, middle, high]) = view.answer_tokens {
            let _ = write!(text, "; answer of about {middle:.0} tokens ({low:.0} to {high:.0})");
        }
        text.push('\n');
    }
    let state = match novelty {
        novelty if novelty >= end => "unlike anything in training: the best single model answers",
        novelty if novelty > start => "rather new: scores lean to the models' means",
        _ => "like the training queries",
    };
    let _ = writeln!(
        text,
        "  new words: {:.0} % ({state}; limits {:.0} and {:.0} %)",
        novelty * 100.0,
        start * 100.0,
        end * 100.0
    );
    if reasons.is_empty() {
        return text;
    }
    let _ =
        writeln!(text, "  what speaks for it (+) and for {runner_up} (−), in log odds before calibration:");
    for (name, part) in reasons {
        let _ = writeln!(text, "    {part:+.3}  {name}");
    }
    text
}
