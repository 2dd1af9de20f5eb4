//! Laws of the cost model, over random models, GPUs, parallelism and batches.

mod profile;

use boute_perf::{Batch, Calibration, ClosedLoop, ReplicaConfig, ReplicaModel, StepTime, default_engine};
use boute_spec::catalog::{Catalog, Precision};
use boute_spec::units::SimTime;
use proptest::prelude::*;

fn replicas() -> impl Strategy<Value = (ReplicaConfig, ReplicaModel)> {
    let catalog = Catalog::builtin();
    let precision =
        prop::sample::select(vec![Precision::Bf16, Precision::Fp8, Precision::Int4, Precision::Nvfp4]);
    let (models, gpus) = (0..catalog.models().len(), 0..catalog.gpus().len());
    (models, gpus, 0_u32..4, 1_u32..5, precision).prop_filter_map(
        "fits",
        |(model, gpu, tp, pp, precision)| {
            let (mut model, gpu) =
                (Catalog::builtin().models()[model].clone(), Catalog::builtin().gpus()[gpu].clone());
            model.precision = precision;
            let engine = default_engine(&gpu, &model.shape, 2048);
            let config = ReplicaConfig::new(model, gpu, 1 << tp, pp, engine);
            let replica = ReplicaModel::new(&config, Calibration::builtin()).ok()?;
            Some((config, replica))
        },
    )
}

/// A batch made of chunks (new tokens, tokens before them) and decoding contexts.
fn batches() -> impl Strategy<Value = Batch> {
    let chunks = prop::collection::vec((1_u64..2048, 0_u64..4096), 0..4);
    let decodes = prop::collection::vec(1_u64..8192, 0..300);
    (chunks, decodes).prop_filter_map("not empty", |(chunks, decodes)| {
        let batch = Batch {
            prefill_tokens: chunks.iter().map(|(n, _)| n).sum(),
            prefill_chunks: chunks.len() as u64,
            prefill_pairs_twice: chunks.iter().map(|(n, k)| n * (2 * k + n)).sum(),
            prefill_context: chunks.iter().map(|(_, k)| k).sum(),
            prefill_ends: chunks.len() as u64,
            decodes: decodes.len() as u64,
            decode_context: decodes.iter().sum(),
        };
        (batch.prefill_tokens + batch.decodes > 0).then_some(batch)
    })
}

/// FLOPs that the step cannot do without, whole replica: projections, active experts, attention scores and values.
fn flops(config: &ReplicaConfig, batch: &Batch) -> (f64, f64) {
    let shape = &config.model.shape;
    let tokens = (batch.prefill_tokens + batch.decodes) as f64;
    let hidden = f64::from(shape.hidden);
    let layers = f64::from(shape.layers);
    let (dense, experts) = shape.moe.as_ref().map_or((layers, 0.0), |moe| {
        let used = f64::from(moe.experts_per_token * moe.expert_ffn + moe.shared_ffn);
        (f64::from(moe.dense_layers), (layers - f64::from(moe.dense_layers)) * 3.0 * hidden * used)
    });
    let attention_layers = f64::from(shape.attention_layers());
    let recurrent = shape.linear_attention.as_ref().map_or(0.0, |linear| {
        let out = f64::from(linear.value_heads * linear.value_dim);
        f64::from(linear.layers) * hidden * (linear.projected() + out)
    });
    let weights = attention_layers * shape.attention_parameters()
        + recurrent
        + dense * 3.0 * hidden * f64::from(shape.ffn)
        + experts;
    let window = shape.sliding_window.as_ref().map_or(0.0, |window| f64::from(window.layers));
    let pairs = batch.prefill_pairs_twice as f64 / 2.0 + batch.decode_context as f64;
    let width = shape
        .mla
        .as_ref()
        .map_or(2 * shape.head_dim, |mla| mla.nope_head_dim + mla.rope_head_dim + mla.value_head_dim);
    let attention = (attention_layers - window) * 2.0 * f64::from(shape.heads * width) * pairs;
    (2.0 * weights * tokens, attention)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, max_global_rejects: 1 << 16,
        failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_beats_peak_compute((config, replica) in replicas(), batch in batches()) {
        let gpus = f64::from(config.tp * config.pp);
        let narrow = config.gpu.fp4_flops.or(config.gpu.fp8_flops).unwrap_or(config.gpu.bf16_flops);
        let peak = match config.model.precision {
            Precision::Bf16 | Precision::Int4 => config.gpu.bf16_flops,
            Precision::Fp8 => config.gpu.fp8_flops.unwrap_or(config.gpu.bf16_flops),
            Precision::Nvfp4 => narrow,
        };
        let (gemm, attention) = flops(&config, &batch);
        let least = gemm / (gpus * peak) + attention / (gpus * config.gpu.bf16_flops);
        let took = replica.step_time(&batch).seconds();
        prop_assert!(took >= least * (1.0 - 1e-9), "{took} s < {least} s at peak");
    }

    /// What is kept of earlier steps changes nothing.
    #[test]
    fn a_step_takes_as_long_whatever_was_asked_before((config, replica) in replicas(), asked in prop::collection::vec(batches(), 1..8)) {
        let decoding = |batch: &Batch| Batch { decodes: batch.decodes, decode_context: batch.decode_context, ..Batch::default() };
        let batches = asked.iter().flat_map(|batch| [*batch, decoding(batch), Batch { decodes: batch.prefill_tokens, ..decoding(batch) }]);
        for batch in batches.filter(|batch| batch.prefill_tokens + batch.decodes > 0) {
            let fresh = ReplicaModel::new(&config, Calibration::builtin()).unwrap();
            prop_assert_eq!(replica.step_time(&batch), fresh.step_time(&batch));
            prop_assert_eq!(replica.step_time(&batch), fresh.step_time(&batch));
        }
    }

    #[test]
    fn nothing_beats_peak_bandwidth((config, replica) in replicas(), batch in batches()) {
        let shape = &config.model.shape;
        // Dense models read all layer weights in every step, and the contexts of the decoding sequences.
        prop_assume!(shape.moe.is_none() && shape.sliding_window.is_none());
        let embeddings = f64::from(shape.vocab) * f64::from(shape.hidden) * if shape.tied_embeddings { 1.0 } else { 2.0 };
        let weights = (shape.parameters() - embeddings) * config.model.precision.bytes_per_weight();
        let cache = f64::from(2 * shape.kv_heads * shape.head_dim * 2 * shape.attention_layers()) * batch.decode_context as f64;
        let gpus = f64::from(config.tp * config.pp);
        let least = (weights + cache) / (gpus * config.gpu.bandwidth_bytes_per_s);
        let took = replica.step_time(&batch).seconds();
        prop_assert!(took >= least * (1.0 - 1e-9), "{took} s < {least} s at peak");
    }

    #[test]
    fn more_work_never_takes_less((config, replica) in replicas(), batch in batches(), more in batches()) {
        // With pipeline stages another sequence may fill a bubble; total work per stage is what grows then.
        prop_assume!(config.pp == 1);
        let sum = Batch {
            prefill_tokens: batch.prefill_tokens + more.prefill_tokens,
            prefill_chunks: batch.prefill_chunks + more.prefill_chunks,
            prefill_pairs_twice: batch.prefill_pairs_twice + more.prefill_pairs_twice,
            prefill_context: batch.prefill_context + more.prefill_context,
            prefill_ends: batch.prefill_ends + more.prefill_ends,
            decodes: batch.decodes + more.decodes,
            decode_context: batch.decode_context + more.decode_context,
        };
        prop_assert!(replica.step_time(&sum) >= replica.step_time(&batch));
    }

    #[test]
    fn a_faster_memory_is_never_slower((config, replica) in replicas(), batch in batches(), factor in 1.0_f64..3.0) {
        let mut faster = config.clone();
        faster.gpu.bandwidth_bytes_per_s *= factor;
        let faster = ReplicaModel::new(&faster, Calibration::builtin()).unwrap();
        prop_assert!(faster.step_time(&batch) <= replica.step_time(&batch));
    }

    #[test]
    fn more_gpus_are_slower_only_by_communication((config, replica) in replicas(), batch in batches()) {
        let mut wider = config.clone();
        wider.tp *= 2;
        let Ok(wider) = ReplicaModel::new(&wider, Calibration::builtin()) else { return Ok(()) };
        // All-reduces at the slowest calibrated bus, 2 GB/s with 23.1 µs each.
        let tokens = (batch.prefill_tokens + batch.decodes) as f64;
        let each = 26.3e-6 + 2.0 * 2.0 * tokens * f64::from(config.model.shape.hidden) / 2e9;
        let slack = 2.0 * f64::from(config.model.shape.layers) * each;
        prop_assert!(wider.step_time(&batch).seconds() <= replica.step_time(&batch).seconds() + slack);
    }

    #[test]
    fn the_closed_form_is_the_sum((_, replica) in replicas(), decodes in 1_u64..200, each in 1_u64..9000, steps in 0_u64..500) {
        let context = decodes * each;
        let summed = (0..steps)
            .map(|step| replica.step_time(&Batch { decodes, decode_context: context + step * decodes, ..Batch::default() }))
            .fold(SimTime::ZERO, |sum, time| sum + time);
        prop_assert_eq!(replica.decode_time(decodes, context, steps), summed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, max_global_rejects: 1 << 16,
        failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn more_clients_wait_longer((_, replica) in replicas(), prompt in 1_u32..4096, answer in 1_u32..4096, clients in 1_u32..2000) {
        let of = |clients: u32| replica.closed_loop(&ClosedLoop { prompt_tokens: prompt, answer_tokens: answer, clients: f64::from(clients) });
        let (few, more) = (of(clients), of(clients + 1));
        prop_assert!(more.tpot_s >= few.tpot_s * (1.0 - 1e-9), "{} < {}", more.tpot_s, few.tpot_s);
        prop_assert!(few.ttft.total_s() == few.ttft_s && few.ttft_s.is_finite() && few.tpot_s > 0.0);
        prop_assert!(few.ttft_s >= few.prompt.total_s());
    }

    /// What closed loops promise stays below what the GPUs can compute: all their tokens but the last, which nothing follows, at
    /// peak.
    #[test]
    fn no_closed_loop_beats_peak_compute((config, replica) in replicas(), prompt in 1_u32..4096, answer in 2_u32..2048, clients in 1_u32..1024) {
        let load = ClosedLoop { prompt_tokens: prompt, answer_tokens: answer, clients: f64::from(clients) };
        let estimate = replica.closed_loop(&load);
        let (prompt, answer) = (f64::from(prompt), f64::from(answer));
        let loops_per_s = f64::from(clients) / (estimate.ttft_s + (answer - 1.0) * estimate.tpot_s);
        let batch = Batch { prefill_tokens: prompt as u64, prefill_pairs_twice: (prompt * prompt) as u64, ..Batch::default() };
        let (gemm, attention) = flops(&config, &batch);
        let narrow = config.gpu.fp4_flops.or(config.gpu.fp8_flops).unwrap_or(config.gpu.bf16_flops);
        let gpus = f64::from(config.tp * config.pp);
        let busy = loops_per_s * (gemm * (prompt + answer - 1.0) / prompt / narrow + attention / config.gpu.bf16_flops) / gpus;
        prop_assert!(busy <= 1.0, "{busy} of the peak");
    }

    #[test]
    fn intervals_hold_the_prediction((config, replica) in replicas()) {
        let spread = Calibration::builtin().spread(config.kind(replica.source()));
        for [low, high] in [spread.ttft, spread.tpot] {
            prop_assert!(0.0 < low && low <= 1.0 && 1.0 <= high && high.is_finite());
        }
    }
}

/// Not a law but a sanity check against published measurements: Llama-3.1-8B bf16 on one H100 decodes a lone sequence in
/// 6–9 ms per token, Llama-3.1-70B fp8 on two in 13–20 ms.
#[test]
fn speeds_are_those_people_see() {
    let replica = |model: &str, precision, tp| {
        let catalog = Catalog::builtin();
        let mut model = catalog.model(model).unwrap().clone();
        model.precision = precision;
        let gpu = catalog.gpu("H100-SXM").unwrap().clone();
        let engine = default_engine(&gpu, &model.shape, 8192);
        ReplicaModel::new(&ReplicaConfig::new(model, gpu, tp, 1, engine), Calibration::builtin()).unwrap()
    };
    let small = replica("llama-3.1-8b", Precision::Bf16, 1).decode_step_s(1, 1000);
    let large = replica("llama-3.1-70b", Precision::Fp8, 2).decode_step_s(1, 1000);
    assert!((0.006..0.009).contains(&small), "{small}");
    assert!((0.013..0.020).contains(&large), "{large}");
}
