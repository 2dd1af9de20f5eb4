//! The linear step time: exactness of its closed form, what it refuses, and Vidur's run replayed with it.

use boute_perf::{Batch, StepTime};
use boute_router::decide::Decider;
use boute_sim::{EngineConfig, InvalidStepTime, LinearStepTime, ReplicaSpec, Request, StepLimits, simulate};
use boute_spec::data_file::parse_requests;
use boute_spec::outcome::quantile;
use boute_spec::units::SimTime;
use proptest::prelude::*;

const VIDUR: &str = include_str!("../data/vidur_8b_step_time.json");
const LIMITS: StepLimits = StepLimits { tokens: 512, seqs: 128, context: 4096 };

fn parse(basis: &str, seconds: &str) -> Result<LinearStepTime, InvalidStepTime> {
    LinearStepTime::parse(&format!("{{\"basis\": [{basis}], \"seconds\": [{seconds}]}}"))
}

#[test]
fn each_term_is_what_the_table_says() {
    let batch = Batch {
        prefill_tokens: 290,
        prefill_pairs_twice: 2 * 51_000,
        decodes: 10,
        decode_context: 12_000,
        ..Batch::default()
    };
    let terms = [
        ("1", 1.0),
        ("T", 300.0),
        ("A", 51_000.0),
        ("K", 12_000.0),
        ("D>0", 1.0),
        ("P>0", 1.0),
        ("max(T-128,0)", 172.0),
        ("max(T-300,0)", 0.0),
    ];
    for (term, value) in terms {
        let step_time = parse(&format!("\"{term}\""), "1e-6").unwrap();
        assert_eq!(step_time.step_time(&batch), SimTime::from_seconds(1e-6 * value), "{term}");
    }
    let idle = Batch { prefill_tokens: 0, decodes: 0, ..batch };
    for term in ["D>0", "P>0"] {
        assert_eq!(parse(&format!("\"{term}\""), "1").unwrap().step_time(&idle), SimTime::ZERO);
    }
}

#[test]
fn what_cannot_be_used_is_refused_by_name() {
    let refused = |basis: &str, seconds: &str| parse(basis, seconds).unwrap_err().to_string();
    assert!(refused("\"1\", \"Q\"", "1, 2").starts_with("`Q` in `basis` is not a term"));
    assert!(refused("\"max(T-x,0)\"", "1").contains("`max(T-x,0)`"));
    assert!(refused("\"1\", \"1\"", "1, 2").contains("occurs twice"));
    assert!(refused("\"1\", \"T\"", "1").contains("`basis` has 2 terms, `seconds` 1"));
    assert!(refused("\"1\"", "NaN").contains("line 1"));
    assert!(refused("\"1\"", "null").contains("line 1"));
    assert!(LinearStepTime::parse("{\"basis\": [], \"seconds\": [], \"unit\": 1}").is_err());
}

#[test]
fn steps_that_take_no_time_are_refused() {
    let no_time = |basis: &str, seconds: &str| parse(basis, seconds).unwrap().check(LIMITS).is_err();
    assert!(no_time("", ""));
    assert!(no_time("\"1\"", "0"));
    assert!(no_time("\"1\"", "-0.001"));
    assert!(no_time("\"1\", \"T\"", "0.01, -0.001"), "at 512 tokens");
    assert!(no_time("\"D>0\"", "0.01"), "a step of prompts alone");
    assert!(no_time("\"1\", \"K\"", "0.01, -1e-6"), "128 long sequences");
    assert!(!no_time("\"1\", \"T\", \"max(T-128,0)\"", "0.01, 1e-4, -5e-5"), "a slope may fall");
    LinearStepTime::parse(VIDUR).unwrap().check(LIMITS).unwrap();
}

proptest! {
    #[test]
    fn a_stretch_is_the_sum_of_its_steps(decodes in 1_u64..300, each in 1_u64..9000, steps in 0_u64..200) {
        let step_time = LinearStepTime::parse(VIDUR).unwrap();
        let context = decodes * each;
        let sum = (0..steps)
            .map(|step| Batch { decodes, decode_context: context + step * decodes, ..Batch::default() })
            .fold(SimTime::ZERO, |sum, batch| sum + step_time.step_time(&batch));
        prop_assert_eq!(step_time.decode_time(decodes, context, steps), sum);
    }
}

#[test]
fn vidur_is_met_within_five_percent() {
    let text = include_str!("../data/vidur_8b_requests.csv");
    let trace = parse_requests("requests", text).unwrap();
    let config = EngineConfig {
        max_num_seqs: 128,
        max_num_batched_tokens: 512,
        kv_blocks: 25_000,
        prefix_caching: false,
    };
    let replica = ReplicaSpec::alone(config, LinearStepTime::parse(VIDUR).unwrap());
    let requests = trace.requests().iter().map(Request::from);
    let outcomes = simulate(vec![replica], &Decider::Constant(0), requests).outcomes;
    let ours: Vec<[f64; 3]> = outcomes
        .iter()
        .map(|it| times(f64::from(it.output_tokens), it.ttft.seconds(), it.e2e.seconds()))
        .collect();
    let theirs: Vec<[f64; 3]> = text
        .lines()
        .skip(1)
        .map(|line| {
            let cells: Vec<f64> = line.split(',').map(|cell| cell.parse().unwrap()).collect();
            times(cells[2], cells[3], cells[4])
        })
        .collect();
    for metric in 0..3 {
        for share in [0.50, 0.95] {
            let [ours, theirs] = [&ours, &theirs].map(|rows| {
                let mut values: Vec<f64> = rows.iter().map(|row| row[metric]).collect();
                values.sort_unstable_by(f64::total_cmp);
                quantile(&values, share)
            });
            assert!((ours / theirs - 1.0).abs() < 0.05, "{metric} p{share}: {ours} and {theirs}");
        }
    }
}

/// TTFT, Vidur's TBT (per answer token, the first one too) and E2E.
fn times(answer_tokens: f64, ttft_s: f64, e2e_s: f64) -> [f64; 3] {
    [ttft_s, (e2e_s - ttft_s) / answer_tokens, e2e_s]
}
