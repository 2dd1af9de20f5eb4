//! Scorers with sentence embeddings. Without the feature, the embedder is a made-up one.

use std::sync::Arc;

use boute_router::encoder::{Encode, digest};
use boute_router::{Scorer, Scratch};
use boute_spec::data_file::DataError;
use boute_spec::workload::{QualityData, Query, Split};

/// Sees the one thing about a text that its words do not tell.
#[derive(Debug)]
struct Parity(&'static str);

impl Encode for Parity {
    fn sha256(&self) -> &str {
        self.0
    }

    fn dimensions(&self) -> usize {
        2
    }

    fn encode(&self, text: &str) -> Option<Vec<f32>> {
        let number: u32 = text.split_whitespace().find_map(|word| word.parse().ok())?;
        Some(if number.is_multiple_of(2) { vec![1.0, 0.0] } else { vec![0.0, 1.0] })
    }
}

/// The small model fails at odd numbers.
fn data() -> QualityData {
    let query = |at: u32| Query {
        id: at.to_string(),
        prompt: format!("Say something about the number {} now.", 100_000 + at * 7919 % 65_521),
        task: String::new(),
        split: if at % 4 < 3 { Split::Train } else { Split::Test },
        prompt_tokens: None,
        scores: vec![f32::from(u8::from((at * 7919 % 65_521).is_multiple_of(2))), 0.9],
        output_tokens: vec![0, 0],
    };
    QualityData { models: vec!["small".into(), "large".into()], queries: (0..800).map(query).collect() }
}

fn trained() -> Scorer {
    Scorer::train_with(&data(), 0, "", Some(Arc::new(Parity("parity")))).unwrap()
}

fn parsed(text: &str, sha256: &'static str) -> Result<Scorer, DataError> {
    Scorer::parse_with("r.json", text, |_| Ok(Arc::new(Parity(sha256))))
}

fn scores(scorer: &Scorer, message: &str) -> Vec<f32> {
    let mut scores = vec![0.0; 2];
    scorer.score(message, &mut Scratch::default(), &mut scores);
    scores
}

#[test]
fn an_ensemble_knows_what_words_do_not_tell() {
    let scorer = trained();
    let small = |number: u32| scores(&scorer, &format!("Say something about the number {number} now."))[0];
    assert!(small(123_456) > 0.75 && small(123_457) < 0.25, "{} {}", small(123_456), small(123_457));
    let queries: Vec<Query> = data().queries.into_iter().filter(|query| query.split == Split::Test).collect();
    let together = scorer.score_queries(&data().models, queries.iter());
    for (at, query) in queries.iter().enumerate() {
        assert_eq!(together.predicted(at), scores(&scorer, &query.prompt), "together and alone");
    }
    let reasons = scorer.reasons(&["Say something about the number 123457 now."], 1, 0);
    assert_eq!(reasons[0].0, "sentence embedding", "{reasons:?}");
}

#[test]
fn an_ensemble_is_never_half_of_itself() {
    let scorer = trained();
    let (mut scratch, mut scores) = (Scratch::default(), vec![0.5; 2]);
    scorer.score_embedded(&["Say something about the number 123456 now."], None, &mut scratch, &mut scores);
    assert_eq!(scores, [0.0, 1.0], "the best single model answers");
    let default = Scorer::train(&data(), 0, "").unwrap();
    assert!(default.encoder().is_none());
    let mut alone = vec![0.0; 2];
    default.score("Say something about the number 123456 now.", &mut scratch, &mut alone);
    default.score_embedded(&["Say something about the number 123456 now."], None, &mut scratch, &mut scores);
    assert_eq!(scores, alone, "the default scorer misses nothing");
}

#[test]
fn an_artefact_is_read_with_its_own_encoder_alone() {
    let scorer = trained();
    let text = scorer.to_json();
    assert_eq!(text, trained().to_json(), "the same bytes");
    let read = parsed(&text, "parity").unwrap();
    assert_eq!(read, scorer);
    let prompt = "Say something about the number 123457 now.";
    assert_eq!(scores(&read, prompt), scores(&scorer, prompt));
    let other = parsed(&text, "another").unwrap_err().to_string();
    assert!(other.contains("the model parity, and given is the model another"), "{other}");
    let none = Scorer::parse("r.json", &text).unwrap_err().to_string();
    assert!(none.contains("reads the sentence embeddings of the model parity"), "{none}");
    let broken = text.replace("\"dimensions\": 2", "\"dimensions\": 3");
    assert!(parsed(&broken, "parity").unwrap_err().to_string().contains("do not fit together"));
    let plain = Scorer::train(&data(), 0, "").unwrap().to_json();
    assert!(!plain.contains("embedding") && parsed(&plain, "parity").unwrap().encoder().is_none());
}

#[test]
fn a_model_is_known_by_its_files() {
    // printf a > config.json; printf b > tokenizer.json; printf c > model.safetensors
    // sha256sum config.json tokenizer.json model.safetensors | sha256sum
    assert_eq!(
        digest([b"a", b"b", b"c"]),
        "49d6fff87baca574317978da3bedb7f49afcfe9962937a51b057f06e3acbe2c4"
    );
}

#[cfg(not(feature = "embeddings"))]
#[test]
fn a_program_without_embeddings_says_so() {
    let error = boute_router::encoder::open("minilm", [vec![], vec![], vec![]]).unwrap_err().to_string();
    assert!(error.contains("minilm: this boute was built without sentence embeddings"), "{error}");
    assert!(error.contains("--features embeddings"), "{error}");
}

#[cfg(feature = "embeddings")]
mod bert {
    use boute_router::encoder::{Bert, Encode};
    use serde_json::Value;

    /// Made by `tests/oracle/bert.py`, as are the embeddings.
    const CONFIG: &str = include_str!("../oracle/bert/config.json");
    const TOKENIZER: &str = include_str!("../oracle/bert/tokenizer.json");
    const WEIGHTS: &[u8] = include_bytes!("../oracle/bert/model.safetensors");
    const ORACLE: &str = include_str!("../oracle/bert.json");

    fn bert(config: &str, tokenizer: &str, weights: &[u8]) -> Result<Bert, String> {
        Bert::new("tiny", [config.into(), tokenizer.into(), weights.into()])
            .map_err(|error| error.to_string())
    }

    #[test]
    fn embeddings_are_those_of_another_implementation() {
        let bert = bert(CONFIG, TOKENIZER, WEIGHTS).unwrap();
        let rows: Vec<Value> = serde_json::from_str(ORACLE).unwrap();
        assert!(rows.len() >= 9);
        for row in rows {
            let text = row["text"].as_str().unwrap();
            let want: Vec<f64> =
                row["embedding"].as_array().unwrap().iter().filter_map(Value::as_f64).collect();
            let got = bert.encode(text).unwrap();
            assert_eq!((got.len(), want.len()), (bert.dimensions(), 32));
            for (got, want) in got.iter().zip(want) {
                assert!((f64::from(*got) - want).abs() < 2e-5, "{text:?}: {got} {want}");
            }
            assert_eq!(bert.encode_all(&[text, text]), [Some(got.clone()), Some(got)]);
        }
    }

    #[test]
    fn any_text_is_encoded() {
        let bert = bert(CONFIG, TOKENIZER, WEIGHTS).unwrap();
        for text in ["\0", "\u{1F600}", &"é".repeat(20_000), &"東京".repeat(5_000), "[MASK] [SEP]"] {
            let length: f32 = bert.encode(text).unwrap().iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-5, "{length}");
        }
    }

    #[test]
    fn bad_folders_are_refused() {
        let half = &WEIGHTS[..WEIGHTS.len() / 2];
        let with = |from: &str, to: &str| {
            assert!(CONFIG.contains(from), "{from}");
            CONFIG.replace(from, to)
        };
        for (config, tokenizer, weights, want) in [
            ("{", TOKENIZER, WEIGHTS, "tiny/config.json: not the configuration of a BERT"),
            (&with("\"gelu\"", "\"swish\""), TOKENIZER, WEIGHTS, "unknown variant `swish`"),
            (
                &with("\"num_attention_heads\": 4", "\"num_attention_heads\": 0"),
                TOKENIZER,
                WEIGHTS,
                "among 0 heads",
            ),
            (
                &with("\"num_attention_heads\": 4", "\"num_attention_heads\": 5"),
                TOKENIZER,
                WEIGHTS,
                "among 5 heads",
            ),
            (&with("_embeddings\": 24", "_embeddings\": 2"), TOKENIZER, WEIGHTS, "only 2 positions"),
            (
                &with("\"vocab_size\": 96", "\"vocab_size\": 50"),
                TOKENIZER,
                WEIGHTS,
                "the model knows 50 tokens",
            ),
            (CONFIG, "{}", WEIGHTS, "tiny/tokenizer.json: not a tokenizer"),
            (CONFIG, TOKENIZER, half, "tiny/model.safetensors: not the weights of this model"),
            (CONFIG, TOKENIZER, b"", "not the weights of this model"),
            (&with("_layers\": 2", "_layers\": 3"), TOKENIZER, WEIGHTS, "encoder.layer.2"),
            (&with("\"hidden_size\": 32", "\"hidden_size\": 64"), TOKENIZER, WEIGHTS, "not the weights"),
        ] {
            let error = bert(config, tokenizer, weights).unwrap_err();
            assert!(error.contains(want) && error.contains("help:"), "{error}\nwanted: {want}");
        }
    }
}
