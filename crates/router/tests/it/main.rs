//! The router as its users meet it: train, keep, score.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod encoder;

use boute_router::{Scorer, Scratch};
use boute_spec::workload::{QualityData, Query, Split};
use proptest::prelude::*;

/// Sums, at which the first model fails, and letters, at which neither does.
fn data() -> QualityData {
    let query = |at: u32| {
        let sum = at.is_multiple_of(2);
        let prompt = if sum {
            format!("Compute {} + {} and halve it.", at * 7, at * 13 % 101)
        } else {
            format!("Write a friendly letter number {at} about the garden.")
        };
        Query {
            id: at.to_string(),
            prompt,
            task: String::new(),
            split: if at % 4 < 3 { Split::Train } else { Split::Test },
            prompt_tokens: None,
            scores: vec![
                if sum { f32::from(u8::from(at.is_multiple_of(10))) } else { 1.0 },
                f32::from(u8::from(!at.is_multiple_of(7))),
            ],
            output_tokens: vec![if sum { 300 + at % 40 } else { 50 + at % 10 }, 0],
        }
    };
    QualityData { models: vec!["small".into(), "large".into()], queries: (0..800).map(query).collect() }
}

fn scores(scorer: &Scorer, messages: &[&str]) -> (Vec<f32>, Scratch) {
    let mut scratch = Scratch::default();
    let mut scores = vec![0.0; scorer.models().len()];
    scorer.score_conversation(messages, &mut scratch, &mut scores);
    (scores, scratch)
}

#[test]
fn what_is_hard_for_whom_is_learned_and_kept() {
    let scorer = Scorer::train(&data(), 0, "digest").unwrap();
    let text = scorer.to_json();
    assert_eq!(text, Scorer::train(&data(), 0, "digest").unwrap().to_json(), "the same bytes");
    let read = Scorer::parse("r.json", &text).unwrap();
    assert_eq!(read, scorer);
    let (sum, scratch) = scores(&read, &["Compute 21 + 34 and halve it."]);
    assert!(sum[0] < 0.4 && sum[1] > 0.7, "{sum:?}");
    let tokens = read.answer_tokens(&scratch, 0).unwrap();
    assert!((250.0..400.0).contains(&tokens[3]) && tokens.is_sorted(), "{tokens:?}");
    assert_eq!(read.answer_tokens(&scratch, 1), None, "lengths of the large model are not recorded");
    let (letter, scratch) = scores(&read, &["Write a friendly letter about the garden."]);
    assert!(letter[0] > 0.8 && read.answer_tokens(&scratch, 0).unwrap()[3] < 100.0, "{letter:?}");
}

#[test]
fn the_whole_conversation_counts() {
    let scorer = Scorer::train(&data(), 0, "").unwrap();
    let last = "Compute that and halve it.";
    let alone = scores(&scorer, &[last]).0;
    let after = scores(&scorer, &["Write a friendly letter number 7 about the garden.", last]).0;
    assert!(after[0] > alone[0] + 0.05, "{alone:?} {after:?}");
}

#[test]
fn what_training_has_not_seen_goes_to_the_best_model() {
    let scorer = Scorer::train(&data(), 0, "").unwrap();
    let (novel, scratch) = scores(&scorer, &["Quid agis, domine? Salve iterum atque vale."]);
    assert_eq!(novel, [0.0, 1.0]);
    assert_eq!(scorer.best_single(), 1);
    assert!(scratch.novelty() > scorer.novelty_limits().1);
}

#[test]
fn reasons_name_words_of_the_query() {
    let scorer = Scorer::train(&data(), 0, "").unwrap();
    let reasons = scorer.reasons(&["Compute 21 + 34 and halve it."], 1, 0);
    assert!(reasons[0].1 > 0.0, "{reasons:?}");
    let part = |name: &str| reasons.iter().find(|(other, _)| other == name).map(|(_, part)| *part);
    assert!(part("compute").is_some_and(|part| part > 0.0), "{reasons:?}");
    assert!(part("halve it").is_some_and(|part| part > 0.0), "{reasons:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_broken_artefact_is_an_error(cut in 0.0..1.0_f64, byte: u8) {
        static TEXT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
        let text = TEXT.get_or_init(|| Scorer::train(&data(), 0, "").unwrap().to_json());
        let at = (cut * text.len() as f64) as usize;
        let _ = Scorer::parse("r.json", &text[..at]).unwrap_err();
        // Whatever else stands there: an error, or a router that scores.
        let mut bytes = text.clone().into_bytes();
        bytes[at] = byte;
        if let Ok(scorer) = Scorer::parse("r.json", &String::from_utf8_lossy(&bytes)) {
            scores(&scorer, &["Compute 21 + 34 and halve it."]);
        }
    }
}
