//! What a few measured points make of the model.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use boute_perf::profile::{Fit, Point};
use boute_perf::{
    Batch, Calibration, ClosedLoop, ReplicaConfig, ReplicaModel, Speed, StepTime, default_engine,
};
use boute_spec::catalog::Catalog;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn config(speed: Option<Speed>) -> ReplicaConfig {
    let catalog = Catalog::builtin();
    let model = catalog.model("llama-3.1-8b").unwrap().clone();
    let gpu = catalog.gpu("L40S").unwrap().clone();
    let engine = default_engine(&gpu, &model.shape, 8192);
    ReplicaConfig { speed, ..ReplicaConfig::new(model, gpu, 1, 1, engine) }
}

const LOADS: [(u32, u32, f64); 10] = [
    (128, 64, 1.0),
    (512, 64, 1.0),
    (2048, 64, 1.0),
    (128, 64, 4.0),
    (512, 64, 4.0),
    (2048, 64, 4.0),
    (128, 64, 16.0),
    (512, 64, 16.0),
    (2048, 64, 16.0),
    (512, 256, 4.0),
];

/// Ten points of an engine of this speed, each off by its factor.
fn points<'a>(config: &'a ReplicaConfig, truth: Speed, off: &[f64]) -> Vec<Point<'a>> {
    let model =
        ReplicaModel::new(&ReplicaConfig { speed: Some(truth), ..config.clone() }, Calibration::builtin());
    let model = model.unwrap();
    LOADS
        .iter()
        .zip(off)
        .map(|(&(prompt_tokens, answer_tokens, clients), off)| {
            let load = ClosedLoop { prompt_tokens, answer_tokens, clients };
            let seen = model.closed_loop(&load);
            Point { config, load, ttft_s: seen.ttft_s * off, tpot_s: seen.tpot_s * off }
        })
        .collect()
}

/// Engines up to `e^slowest` times slower than the model of them.
fn speeds(slowest: f64) -> impl Strategy<Value = Speed> {
    (-0.5..slowest, -0.5..slowest, 0.0..10_000.0_f64, 0.0..200.0_f64).prop_map(
        |(compute, bandwidth, step_us, request_ms)| Speed {
            compute: compute.exp(),
            bandwidth: bandwidth.exp(),
            step_us,
            request_ms,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, rng_seed: RngSeed::Fixed(0), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ten_points_recover_the_speed(truth in speeds(1.0)) {
        let config = config(None);
        let points = points(&config, truth, &[1.0; 10]);
        let fit = Fit::new(&points, Calibration::builtin(), [0.0; 2]);
        prop_assert!(fit.after.tpot < 0.1 && fit.after.tpot <= fit.before.tpot + 0.01, "{fit:?}");
        prop_assert!(fit.after.ttft <= fit.before.ttft + 0.05, "{fit:?}");
    }

    /// Such as a CPU modelled as a GPU, where the prior of a GPU pulls hardest.
    #[test]
    fn engines_thousands_of_times_slower_are_found(truth in speeds(8.0)) {
        let config = config(None);
        let points = points(&config, truth, &[1.0; 10]);
        let fit = Fit::new(&points, Calibration::builtin(), [0.0; 2]);
        prop_assert!(fit.after.tpot < 0.3 && fit.after.ttft < 0.5, "{fit:?}");
    }

    #[test]
    fn noise_widens_the_interval(seed in prop::collection::vec(-0.1..0.1_f64, 10)) {
        let config = config(None);
        let truth = Speed { compute: 1.3, bandwidth: 1.2, step_us: 1000.0, request_ms: 10.0 };
        let off: Vec<f64> = seed.iter().map(|x| x.exp()).collect();
        let fit = Fit::new(&points(&config, truth, &off), Calibration::builtin(), [0.02, 0.02]);
        for [low, high] in [fit.spread.ttft, fit.spread.tpot] {
            prop_assert!(low <= 0.98 && (1.02..1.5).contains(&high), "{fit:?}");
        }
    }

    #[test]
    fn slower_constants_never_make_a_step_faster(
        speed in speeds(8.0), by in 1.0..3.0_f64, decodes in 0_u64..200, prefill_tokens in 0_u64..4096,
    ) {
        let batch = Batch {
            decodes,
            decode_context: 700 * decodes,
            prefill_tokens,
            prefill_chunks: u64::from(prefill_tokens > 0),
            prefill_pairs_twice: prefill_tokens * prefill_tokens,
            ..Batch::default()
        };
        let step = |speed| {
            ReplicaModel::new(&config(Some(speed)), Calibration::builtin()).unwrap().step_time(&batch)
        };
        let slower = step(Speed { compute: speed.compute * by, ..speed });
        prop_assert!(slower >= step(speed), "{slower:?}");
        let slower = step(Speed { bandwidth: speed.bandwidth * by, ..speed });
        prop_assert!(slower >= step(speed), "{slower:?}");
        let slower = step(Speed { step_us: speed.step_us * by, ..speed });
        prop_assert!(slower >= step(speed), "{slower:?}");
    }
}

#[test]
fn without_points_the_model_stands() {
    let fit = Speed::fit(&[], Calibration::builtin());
    let vllm = Calibration::builtin().engine.vllm;
    let want = Speed { compute: 1.0, bandwidth: 1.0, step_us: vllm.step_us, request_ms: vllm.request_ms };
    assert_eq!(fit, want);
}
