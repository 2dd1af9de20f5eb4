//! Laws of the simulator, and agreement with a plain reference that steps through every token.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod linear;
mod reference;

use boute_perf::{Batch, StepTime};
use boute_router::balance::ReplicaSpeed;
use boute_router::decide::Decider;
use boute_sim::fleet::replica_of;
use boute_sim::{
    Disaggregation, Engine, EngineConfig, EngineEvent, EngineRequest, ReplicaSpec, Request, simulate,
    simulate_closed_loop,
};
use boute_spec::catalog::Catalog;
use boute_spec::plan::{Disaggregated, EngineFlags, ModelShare, PrefillInstances, ReplicaGroup};
use boute_spec::slo::Metric;
use boute_spec::units::{Fraction, RequestsPerSecond, SimTime, UsdPerHour};
use proptest::prelude::*;

/// Affine in everything, in picoseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affine {
    pub(crate) scale: u64,
}

impl StepTime for Affine {
    fn step_time(&self, batch: &Batch) -> SimTime {
        let work = 2_000_000
            + 11_000 * batch.prefill_tokens
            + 3 * batch.prefill_pairs_twice
            + 90_000 * batch.decodes
            + 41 * batch.decode_context;
        SimTime(self.scale * work)
    }
}

const EXACT: Affine = Affine { scale: 1 };

fn config(seqs: u32, tokens: u32, kv_blocks: u64) -> EngineConfig {
    EngineConfig {
        max_num_seqs: seqs,
        max_num_batched_tokens: tokens.max(seqs),
        kv_blocks,
        prefix_caching: true,
    }
}

/// Arrival gap in picoseconds, prompt, answer.
fn workloads() -> impl Strategy<Value = Vec<(u64, u32, u32)>> {
    prop::collection::vec((0_u64..40_000_000, 1_u32..300, 1_u32..120), 1..40)
}

fn configs() -> impl Strategy<Value = EngineConfig> {
    (1_u32..12, 16_u32..256, 27_u64..120, any::<bool>()).prop_map(|(seqs, tokens, blocks, prefix_caching)| {
        EngineConfig { prefix_caching, ..config(seqs, tokens, blocks) }
    })
}

/// Runs a workload through one engine; events, and whether the KV cache was ever overfull.
fn run(
    config: EngineConfig,
    step_time: Affine,
    gap_scale: u64,
    work: &[(u64, u32, u32)],
) -> (Vec<EngineEvent>, bool) {
    run_received(config, step_time, gap_scale, work, |_| false)
}

/// The same where some requests come with their prompt and first answer token.
fn run_received(
    config: EngineConfig,
    step_time: Affine,
    gap_scale: u64,
    work: &[(u64, u32, u32)],
    received: fn(u64) -> bool,
) -> (Vec<EngineEvent>, bool) {
    let mut engine = Engine::new(config, step_time);
    let (mut now, mut events, mut overfull) = (SimTime::ZERO, Vec::new(), false);
    for (id, &(gap, input_tokens, output_tokens)) in (0..).zip(work) {
        now += SimTime(gap * gap_scale);
        while let Some(next) = engine.next_event().filter(|next| *next <= now) {
            engine.advance(next, &mut events);
            overfull |= engine.kv_usage() > 1.0;
        }
        engine.advance(now, &mut events);
        let request = EngineRequest { id, input_tokens, output_tokens, ..EngineRequest::default() };
        let taken = if received(id) { engine.receive(now, request) } else { engine.submit(now, request) };
        taken.unwrap();
    }
    while let Some(next) = engine.next_event() {
        engine.advance(next, &mut events);
        overfull |= engine.kv_usage() > 1.0;
    }
    assert_eq!((engine.running(), engine.waiting()), (0, 0));
    assert_eq!(engine.kv_usage(), 0.0);
    (events, overfull)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_begins_and_ends_once(config in configs(), work in workloads()) {
        let (events, overfull) = run(config, EXACT, 1, &work);
        prop_assert!(!overfull);
        let mut first = vec![None; work.len()];
        let mut last = vec![None; work.len()];
        for event in events {
            let (slot, id, at) = match event {
                EngineEvent::FirstToken { id, at } => (&mut first, id, at),
                EngineEvent::Finished { id, at } => (&mut last, id, at),
            };
            prop_assert!(slot[id as usize].replace(at).is_none(), "twice");
        }
        for (first, last) in first.into_iter().zip(last) {
            prop_assert!(first.unwrap() <= last.unwrap());
        }
    }

    #[test]
    fn skipping_ahead_equals_stepping_through_every_token(config in configs(), work in workloads()) {
        let (events, _) = run(config, EXACT, 1, &work);
        prop_assert_eq!(events, reference::run(config, EXACT, &work, |_| false));
    }

    #[test]
    fn what_is_received_goes_on_with_its_second_token(config in configs(), work in workloads()) {
        let work: Vec<_> = work.into_iter().map(|(gap, input, output)| (gap, input, output + 1)).collect();
        for received in [|id| id % 3 > 0, |_| true] {
            let (events, overfull) = run_received(config, EXACT, 1, &work, received);
            prop_assert!(!overfull);
            let begun = |event: &EngineEvent| matches!(event, EngineEvent::FirstToken { id, .. } if received(*id));
            prop_assert!(!events.iter().any(begun), "its first token came elsewhere");
            let ended = events.iter().filter(|event| matches!(event, EngineEvent::Finished { .. })).count();
            prop_assert_eq!(ended, work.len());
            prop_assert_eq!(events, reference::run(config, EXACT, &work, received));
        }
    }

    #[test]
    fn twice_the_time_in_is_twice_the_time_out(config in configs(), work in workloads()) {
        let (events, _) = run(config, EXACT, 1, &work);
        let (slower, _) = run(config, Affine { scale: 2 }, 2, &work);
        let doubled: Vec<_> = events.into_iter().map(|event| match event {
            EngineEvent::FirstToken { id, at } => EngineEvent::FirstToken { id, at: SimTime(2 * at.0) },
            EngineEvent::Finished { id, at } => EngineEvent::Finished { id, at: SimTime(2 * at.0) },
        }).collect();
        prop_assert_eq!(doubled, slower);
    }

    #[test]
    fn looking_often_changes_nothing(config in configs(), work in workloads(), every in 100_000_u64..5_000_000) {
        let (events, _) = run(config, EXACT, 1, &work);
        let mut engine = Engine::new(config, EXACT);
        let (mut now, mut seen, mut look) = (0, Vec::new(), 0);
        for (id, &(gap, input_tokens, output_tokens)) in (0..).zip(&work) {
            now += gap;
            while look < now {
                engine.advance(SimTime(look), &mut seen);
                engine.generated(0);
                look += every;
            }
            engine.advance(SimTime(now), &mut seen);
            engine.submit(SimTime(now), EngineRequest { id, input_tokens, output_tokens, ..EngineRequest::default() }).unwrap();
        }
        engine.advance(SimTime::MAX, &mut seen);
        prop_assert_eq!(events, seen);
    }

    #[test]
    fn cancelling_frees_everything(
        config in configs(),
        work in workloads(),
        victim in 0_usize..40,
        units in 0_u64..4,
    ) {
        let config = EngineConfig { kv_blocks: config.kv_blocks + 32 * units, ..config };
        let mut engine = Engine::new(config, EXACT);
        let (mut now, mut events) = (SimTime::ZERO, Vec::new());
        for (id, &(gap, input_tokens, output_tokens)) in (0..).zip(&work) {
            now += SimTime(gap);
            engine.advance(now, &mut events);
            let input_tokens = input_tokens + 512 * units as u32;
            let hash_ids = (0..units).map(|unit| id % 3 * 100 + unit).collect();
            engine.submit(now, EngineRequest { id, input_tokens, output_tokens, hash_ids }).unwrap();
            if id % 3 == 0 {
                engine.cancel(now, (victim as u64) % (id + 1));
            }
        }
        while let Some(next) = engine.next_event() {
            engine.advance(next, &mut events);
        }
        prop_assert_eq!((engine.running(), engine.waiting(), engine.kv_usage()), (0, 0, 0.0));
    }
}

/// A replica of a kind: its speed is what balancing goes by, and its scale what it takes.
fn replica(model: usize, scale: u64, config: EngineConfig) -> ReplicaSpec<Affine> {
    ReplicaSpec {
        model,
        config,
        step_time: Affine { scale },
        speed: ReplicaSpeed {
            prompt_tokens_per_s: 8e7 / scale as f64,
            answer_tokens_per_s: 8e6 / scale as f64,
            seconds_per_answer_token: 2e-6 * scale as f64,
        },
        request_time: SimTime(5),
        expected_output_tokens: 40,
        disaggregated: None,
    }
}

/// The same behind engines that compute its prompts.
fn split(mut replica: ReplicaSpec<Affine>, instances: (u32, u32), transfer_time: u64) -> ReplicaSpec<Affine> {
    replica.disaggregated = Some(Disaggregation {
        prefill_instances: instances.0,
        decode_instances: instances.1,
        config: replica.config,
        step_time: replica.step_time,
        transfer_time: SimTime(transfer_time),
    });
    replica
}

/// Replicas of several kinds that all run model 0, some of them disaggregated.
fn fleets() -> impl Strategy<Value = Vec<ReplicaSpec<Affine>>> {
    let kind = (1_u64..5, configs(), prop::option::of((1_u32..4, 1_u32..4)), 0_u64..20_000);
    prop::collection::vec(kind, 1..5).prop_map(|kinds| {
        let of = |(scale, config, instances, transfer_time)| match instances {
            None => replica(0, scale, config),
            Some(instances) => split(replica(0, scale, config), instances, transfer_time),
        };
        kinds.into_iter().map(of).collect()
    })
}

/// Requests of a workload for [`simulate`]; their arrivals in order.
fn requests(work: &[(u64, u32, u32)]) -> impl Iterator<Item = Request<'_>> {
    work.iter().scan(0, |now, (gap, input_tokens, output_tokens)| {
        *now += gap;
        Some(Request {
            arrival: SimTime(*now),
            scores: &[],
            input_tokens: *input_tokens,
            output_tokens: std::slice::from_ref(output_tokens),
            hash_ids: &[],
            again: None,
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_fleet_answers_everything_the_same_each_time(fleet in fleets(), work in workloads()) {
        let run = || simulate(fleet.clone(), &Decider::Constant(0), requests(&work));
        let simulation = run();
        prop_assert_eq!(simulation.outcomes.len() as u64 + simulation.failed, work.len() as u64);
        prop_assert_eq!(simulation.failed, 0);
        let ends = simulation.outcomes.iter().map(|outcome| outcome.arrival + outcome.e2e);
        prop_assert!(ends.is_sorted(), "in order of the last token");
        prop_assert!(simulation.outcomes.iter().all(|outcome| outcome.ttft <= outcome.e2e));
        prop_assert_eq!(&simulation, &run());
    }

    #[test]
    fn a_closed_loop_has_each_client_wait_for_its_answer(
        fleet in fleets(),
        work in workloads(),
        clients in 1_usize..9,
    ) {
        let mut spans = Vec::new();
        let mut seen = vec![false; work.len()];
        let totals = simulate_closed_loop(fleet, &Decider::Constant(0), clients, requests(&work), |index, it| {
            assert!(!std::mem::replace(&mut seen[index], true), "once");
            spans.push((it.arrival, it.arrival + it.e2e));
        });
        prop_assert_eq!(totals.failed, 0);
        prop_assert!(seen.into_iter().all(|seen| seen), "every request is answered");
        // At every sending, as many requests are in flight as there are clients, until they run out.
        for (sent, (start, _)) in spans.iter().enumerate() {
            let in_flight = spans.iter().filter(|(from, to)| from <= start && start < to).count();
            prop_assert!(in_flight <= clients, "{sent}: {in_flight} of {clients}");
        }
        let starts: std::collections::BTreeSet<_> = spans.iter().map(|(start, _)| *start).collect();
        let ends: std::collections::BTreeSet<_> = spans.iter().map(|(_, end)| *end).collect();
        prop_assert!(starts.iter().all(|start| *start == SimTime::ZERO || ends.contains(start)));
    }

    #[test]
    fn chains_of_prefixes_never_overfill(
        work in prop::collection::vec((0_u64..60_000_000, 0_u64..4, 1_u64..5, 1_u32..600, 1_u32..200), 1..40),
        blocks in 230_u64..500,
    ) {
        let mut engine = Engine::new(config(8, 256, blocks), EXACT);
        let (mut now, mut events) = (SimTime::ZERO, Vec::new());
        for (id, &(gap, family, units, rest, output_tokens)) in (0..).zip(&work) {
            now += SimTime(gap);
            while let Some(next) = engine.next_event().filter(|next| *next <= now) {
                engine.advance(next, &mut events);
                prop_assert!(engine.kv_usage() <= 1.0);
            }
            let hash_ids = (0..units).map(|unit| family * 100 + unit).collect();
            let input_tokens = units as u32 * 512 + rest;
            engine.submit(now, EngineRequest { id, input_tokens, output_tokens, hash_ids }).unwrap();
        }
        while let Some(next) = engine.next_event() {
            engine.advance(next, &mut events);
            prop_assert!(engine.kv_usage() <= 1.0);
        }
        prop_assert_eq!(engine.kv_usage(), 0.0);
        let finished = events.iter().filter(|event| matches!(event, EngineEvent::Finished { .. })).count();
        prop_assert_eq!(finished, work.len());
    }
}

/// Prompts that take two engines most of their time.
fn long_prompts(count: u64) -> Vec<(u64, u32, u32)> {
    (0..count).map(|at| (5_000_000 + at % 7 * 500_000, 200 + (at * 37 % 300) as u32, 40)).collect()
}

#[test]
fn decoding_is_never_interrupted_by_a_prompt_computed_elsewhere() {
    let config = config(64, 512, 2000);
    let tpot_p99 = |fleet: Vec<ReplicaSpec<Affine>>| {
        let work = long_prompts(2000);
        let simulation = simulate(fleet, &Decider::Constant(0), requests(&work));
        assert_eq!(simulation.outcomes.len(), 2000);
        let mut tpot: Vec<f64> = simulation.outcomes.iter().map(|it| it.metric_s(Metric::Tpot)).collect();
        tpot.sort_unstable_by(f64::total_cmp);
        (tpot[1979], tpot[1999])
    };
    // The same load per decoding engine: two of them, with and without two more that compute prompts.
    let together = tpot_p99(vec![replica(0, 1, config); 2]);
    let apart = tpot_p99(vec![split(replica(0, 1, config), (2, 2), 0)]);
    assert!(apart.0 < together.0 / 1.5, "{apart:?} {together:?}");
    // No token waits for more than the one step that its KV cache comes into, and a step of all sequences.
    let batch = Batch { decodes: 64, decode_context: 64 * 540, ..Batch::default() };
    assert!(apart.1 <= EXACT.step_time(&batch).seconds() * 40.0 / 39.0, "{apart:?}");
}

#[test]
fn a_lone_request_waits_for_its_kv_cache_once() {
    let alone = |transfer_time| {
        let fleet = vec![split(replica(0, 1, config(8, 512, 1000)), (1, 1), transfer_time)];
        simulate(fleet, &Decider::Constant(0), requests(&[(0, 100, 5)])).outcomes[0]
    };
    let (free, slow) = (alone(0), alone(1_000_000));
    let prompt = Batch { prefill_tokens: 100, prefill_pairs_twice: 100 * 100, ..Batch::default() };
    // Protocol and tokenising take 5 ps.
    assert_eq!(free.ttft, EXACT.step_time(&prompt) + SimTime(5));
    assert_eq!(free.e2e, free.ttft + EXACT.decode_time(1, 100, 4));
    assert_eq!((slow.ttft, slow.e2e), (free.ttft, free.e2e + SimTime(100 * 1_000_000)));
}

#[test]
fn a_kv_cache_crosses_the_slower_link_in_as_many_parts_as_gpus_hold_it() {
    let catalog = Catalog::builtin();
    let gpus = ["L40S", "H100-SXM"].map(|name| catalog.gpu(name).unwrap().clone());
    let model = catalog.model("llama-3.1-8b").unwrap();
    let engine = EngineFlags {
        max_num_seqs: 64,
        max_num_batched_tokens: 2048,
        gpu_memory_utilization: 0.9,
        max_model_len: 4096,
        enable_prefix_caching: false,
    };
    let share = ModelShare {
        model: model.id.clone(),
        load_fraction: Fraction::new(1.0).unwrap(),
        quality: Fraction::default(),
        output_length_scale: 1.0,
        mean_prompt_tokens: 1000.0,
        mean_answer_tokens: 100.0,
    };
    let group = |tp, prefill_tp, instances| ReplicaGroup {
        id: "group".into(),
        model: model.id.clone(),
        gpu: "H100-SXM".into(),
        tp,
        pp: 1,
        replicas: 1,
        usd_per_hour: UsdPerHour::default(),
        planned_rate_per_replica: RequestsPerSecond::new(2.0).unwrap(),
        kv_cache_tokens: 100_000,
        engine: engine.clone(),
        disaggregated: Some(Disaggregated {
            decode_instances: 1,
            prefill: PrefillInstances {
                instances,
                gpu: "L40S".into(),
                tp: prefill_tp,
                pp: 1,
                kv_cache_tokens: 100_000,
                engine: engine.clone(),
            },
        }),
    };
    let replica = |group: &ReplicaGroup| replica_of(group, model, &gpus, 0, &share).unwrap();
    // 8 KV heads of 128 elements, keys and values in 16 bits, in 32 layers.
    let bytes = 2.0 * 2.0 * 8.0 * 128.0 * 32.0;
    let [slow, fast] = [&gpus[0], &gpus[1]].map(|gpu| gpu.network_bytes_per_s);
    for (tp, prefill_tp) in [(1, 1), (1, 2), (4, 1), (1, 8)] {
        let group = group(tp, prefill_tp, 1);
        let expected = (bytes / f64::from(prefill_tp) / slow).max(bytes / f64::from(tp) / fast);
        let transfer_s = replica(&group).disaggregated.unwrap().transfer_time.seconds();
        assert!((transfer_s - expected).abs() < 2e-12, "{tp} {prefill_tp}: {transfer_s} {expected}");
    }
    // The balancer sees the prompt speed of all that prefill, and the answer speed of the one that decodes.
    let [one, three] = [1, 3].map(|instances| replica(&group(1, 1, instances)).speed);
    assert!((three.prompt_tokens_per_s / one.prompt_tokens_per_s - 3.0).abs() < 1e-9);
    assert_eq!(three.answer_tokens_per_s, one.answer_tokens_per_s);
}

#[test]
fn a_prefill_engine_sends_one_kv_cache_after_the_other() {
    let fleet = || vec![split(replica(0, 1, config(8, 512, 1000)), (1, 2), 10_000_000)];
    let work = [(0, 100, 2), (0, 100, 2)];
    let outcomes = simulate(fleet(), &Decider::Constant(0), requests(&work)).outcomes;
    // The second KV cache leaves when the first is over.
    assert_eq!(outcomes[1].e2e, outcomes[0].e2e + SimTime(100 * 10_000_000));
    // An answer of one token ends where its prompt does, and what is too large for a decode engine is refused.
    let work = [(0, 100, 1), (0, 900, 100_000)];
    let simulation = simulate(fleet(), &Decider::Constant(0), requests(&work));
    assert_eq!((simulation.outcomes.len(), simulation.failed), (1, 1));
    assert_eq!(simulation.outcomes[0].ttft, simulation.outcomes[0].e2e);
}

#[test]
fn the_prefix_used_least_recently_is_forgotten_first() {
    // Room for four prompts of two units and some: the fifth pushes the first out, its second unit before its first.
    let mut engine = Engine::new(config(1, 2048, 4 * 66), EXACT);
    let (mut now, mut events) = (SimTime::ZERO, Vec::new());
    let mut ttft = |id: u64, family: u64| {
        let hash_ids = [2 * family, 2 * family + 1].into();
        engine.submit(now, EngineRequest { id, input_tokens: 1030, output_tokens: 2, hash_ids }).unwrap();
        let from = now;
        now += SimTime::from_seconds(1.0);
        events.clear();
        engine.advance(now, &mut events);
        let EngineEvent::FirstToken { at, .. } = events[0] else { panic!() };
        at.since(from)
    };
    let cold = ttft(0, 0);
    let warm = ttft(1, 0);
    assert!(warm < cold);
    for (id, family) in (2..).zip([1, 2, 3]) {
        assert_eq!(ttft(id, family), cold);
    }
    assert_eq!(ttft(5, 3), warm);
    assert_eq!(ttft(6, 4), cold);
    let partly = ttft(7, 0);
    assert!(warm < partly, "what builds on a prefix goes before it");
}

#[test]
fn a_lone_request_takes_its_closed_form_time() {
    let (events, _) = run(config(8, 64, 1000), EXACT, 1, &[(0, 100, 5)]);
    // Chunks of 64 and 36 tokens, then 4 decode steps at contexts of 100 to 103.
    let step = |batch: Batch| EXACT.step_time(&batch);
    let first = step(Batch { prefill_tokens: 64, prefill_pairs_twice: 64 * 64, ..Batch::default() })
        + step(Batch { prefill_tokens: 36, prefill_pairs_twice: 36 * (128 + 36), ..Batch::default() });
    let last = first + EXACT.decode_time(1, 100, 4);
    assert_eq!(
        events,
        [EngineEvent::FirstToken { id: 0, at: first }, EngineEvent::Finished { id: 0, at: last }]
    );
}

#[test]
fn what_can_never_fit_is_refused() {
    let mut engine = Engine::new(config(8, 64, 10), EXACT);
    let request = EngineRequest { id: 1, input_tokens: 150, output_tokens: 11, ..EngineRequest::default() };
    assert_eq!(engine.submit(SimTime::ZERO, request).unwrap_err().needed_blocks, 11);
}

#[test]
fn a_prefix_is_computed_once() {
    let mut engine = Engine::new(config(8, 2048, 1000), EXACT);
    let mut events = Vec::new();
    let request = |id| EngineRequest { id, input_tokens: 1030, output_tokens: 2, hash_ids: [7, 8].into() };
    engine.submit(SimTime::ZERO, request(0)).unwrap();
    engine.advance(SimTime::from_seconds(1.0), &mut events);
    engine.submit(SimTime::from_seconds(1.0), request(1)).unwrap();
    engine.advance(SimTime::from_seconds(2.0), &mut events);
    let EngineEvent::FirstToken { at: cold, .. } = events[0] else { panic!() };
    let EngineEvent::FirstToken { at: warm, .. } = events[2] else { panic!() };
    // 6 of 1,030 tokens are left to compute.
    let six = Batch { prefill_tokens: 6, prefill_pairs_twice: 6 * (2 * 1024 + 6), ..Batch::default() };
    assert_eq!(warm.since(SimTime::from_seconds(1.0)), EXACT.step_time(&six));
    assert!(cold > EXACT.step_time(&six));
}

#[test]
fn a_fleet_loses_nothing_and_prefers_the_faster_replica() {
    let replica = |model, scale| replica(model, scale, config(16, 512, 500));
    let scores: Vec<[f32; 2]> =
        (0..400).map(|at| if at % 4 == 0 { [0.1, 0.9] } else { [0.5, 0.5] }).collect();
    let requests: Vec<_> = scores
        .iter()
        .zip(0_u64..)
        .map(|(scores, at)| Request {
            arrival: SimTime(at * 15_000_000),
            scores,
            input_tokens: 100,
            output_tokens: &[40, 30],
            hash_ids: &[],
            again: None,
        })
        .collect();
    let policy = boute_spec::policy::RoutingPolicy::Utility {
        penalties: ["s", "l"]
            .map(|model| boute_spec::policy::ModelPenalty { model: model.into(), lambda: 0.0 })
            .into(),
    };
    let decider = Decider::new(&policy, &["s".into(), "l".into()]).unwrap();
    let fleet = || vec![replica(0, 1), replica(0, 4), replica(1, 2)];
    let simulation = simulate(fleet(), &decider, requests.iter().copied());
    assert_eq!(simulation.outcomes.len(), 400);
    assert_eq!(simulation.outcomes.iter().filter(|outcome| outcome.model == 1).count(), 100);
    let served = |replica| simulation.outcomes.iter().filter(|outcome| outcome.replica == replica).count();
    assert!(served(0) > served(1), "{} {}", served(0), served(1));
    assert_eq!(simulation, simulate(fleet(), &decider, requests.iter().copied()));
    // Without a replica of the chosen model the request is counted, not lost.
    let simulation = simulate(vec![replica(0, 1)], &decider, requests.iter().copied());
    assert_eq!((simulation.outcomes.len(), simulation.failed), (300, 100));
}

/// In a cascade the second model is asked when the first has answered, and the query's time runs from its arrival.
#[test]
fn a_query_that_is_asked_again_takes_both_answers() {
    let fleet = |large: u32| {
        let replicas = [(0, 1), (1, 2)].map(|(model, scale)| replica(model, scale, config(16, 512, 500)));
        replicas.into_iter().take(1 + large as usize).collect::<Vec<_>>()
    };
    let request = |again, at: u64| Request {
        arrival: SimTime(at),
        scores: &[],
        input_tokens: 100,
        output_tokens: &[40, 30],
        hash_ids: &[],
        again,
    };
    let run = |fleet, model, again, at| {
        let simulation = simulate(fleet, &Decider::Constant(model), [request(again, at)]);
        assert_eq!((simulation.outcomes.len(), simulation.failed), (1, 0));
        simulation.outcomes[0]
    };
    let (first, second) = (run(fleet(1), 0, None, 7), run(fleet(1), 1, None, 7));
    let both = run(fleet(1), 0, Some(1), 7);
    assert_eq!((both.model, both.output_tokens, both.arrival), (1, 30, SimTime(7)));
    assert_eq!((both.ttft, both.e2e), (first.e2e + second.ttft, first.e2e + second.e2e));
    // Where the second is gone, the first answer stands.
    assert_eq!(run(fleet(0), 0, Some(1), 7), first);
}
