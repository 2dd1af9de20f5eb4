//! Replica configurations that fit: every model on every GPU type at every parallelism. Pairs of them that share the work
//! are made in [`crate::disaggregate`].

use boute_perf::{Calibration, FitError, ReplicaConfig, ReplicaModel, default_engine};
use boute_spec::catalog::Gpu;
use boute_spec::plan::{Disaggregated, ModelShare, PrefillInstances, ReplicaGroup};
use boute_spec::units::{RequestsPerSecond, UsdPerHour};

use crate::problem::Problem;

/// GPUs of one replica, at most: one node.
const MOST_GPUS: u32 = 8;

/// A replica configuration that fits. If it is disaggregated, `offer`, `config` and `kv_cache_tokens` are those of one engine
/// that decodes.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Index of the model.
    pub model: usize,
    /// Index of the offer.
    pub offer: usize,
    /// The configuration.
    pub config: ReplicaConfig,
    /// Tokens its KV cache holds.
    pub kv_cache_tokens: u64,
    /// Rent of one replica.
    pub usd_per_hour: f64,
    /// Share of the time that it is there.
    pub available: f64,
    /// The engines that compute its prompts, if it is disaggregated.
    pub prefill: Option<Prefill>,
}

/// The engines of a disaggregated replica that compute prompts.
#[derive(Debug, Clone)]
pub struct Prefill {
    /// Index of the offer.
    pub offer: usize,
    /// The configuration of one.
    pub config: ReplicaConfig,
    /// Tokens the KV cache of one holds.
    pub kv_cache_tokens: u64,
    /// How many of them.
    pub instances: u32,
    /// How many engines decode.
    pub decode_instances: u32,
}

impl Candidate {
    /// GPUs of one replica.
    pub fn gpus(&self) -> u32 {
        self.gpus_by_offer().iter().map(|(_, gpus)| gpus).sum()
    }

    /// GPUs of one replica on an offer.
    pub fn gpus_on(&self, offer: usize) -> u32 {
        self.gpus_by_offer().iter().filter(|(at, _)| *at == offer).map(|(_, gpus)| gpus).sum()
    }

    /// Those of the engines that decode (or do everything), then those of the engines that compute prompts.
    fn gpus_by_offer(&self) -> [(usize, u32); 2] {
        let own = self.config.tp * self.config.pp;
        self.prefill.as_ref().map_or([(self.offer, own), (self.offer, 0)], |prefill| {
            let theirs = prefill.config.tp * prefill.config.pp;
            [(self.offer, own * prefill.decode_instances), (prefill.offer, theirs * prefill.instances)]
        })
    }

    /// Whether there are GPUs for one replica.
    pub(crate) fn in_stock(&self, problem: &Problem) -> bool {
        let mut offers = problem.offers.iter().enumerate();
        offers.all(|(offer, it)| it.stock.is_none_or(|stock| self.gpus_on(offer) <= stock))
    }

    /// The offer of the engines that compute its prompts, if it is disaggregated.
    pub fn prefill_offer(&self) -> Option<usize> {
        self.prefill.as_ref().map(|prefill| prefill.offer)
    }

    /// The configurations of its engines.
    pub fn configs(&self) -> impl Iterator<Item = &ReplicaConfig> {
        [&self.config].into_iter().chain(self.prefill.as_ref().map(|prefill| &prefill.config))
    }

    /// The GPU types of its engines.
    pub(crate) fn gpu_types(&self) -> Vec<Gpu> {
        self.configs().map(|config| config.gpu.clone()).collect()
    }

    /// Whether `group` is one of these.
    pub(crate) fn is_of(&self, group: &ReplicaGroup) -> bool {
        let own = self.group(1, 0.0);
        let engines = |group: &ReplicaGroup| -> Vec<_> {
            let of = group.instances().into_iter();
            of.map(|it| (it.role, it.count, it.gpu.to_owned(), it.tp, it.pp)).collect()
        };
        own.model == group.model && engines(&own) == engines(group)
    }

    /// A group of `replicas` of these, each planned to take `rate` requests per second.
    pub fn group(&self, replicas: u32, rate: f64) -> ReplicaGroup {
        let ReplicaConfig { model, gpu, tp, pp, engine, .. } = &self.config;
        let own = engine_id(&self.config);
        let id = self.prefill.as_ref().map_or(own.clone(), |prefill| {
            let Prefill { instances, decode_instances, config, .. } = prefill;
            format!("{instances}x-{}-to-{decode_instances}x-{own}", engine_id(config))
        });
        ReplicaGroup {
            id: format!("{}-{id}", model.id),
            model: model.id.clone(),
            gpu: gpu.name.clone(),
            tp: *tp,
            pp: *pp,
            replicas,
            usd_per_hour: UsdPerHour::new(self.usd_per_hour * f64::from(replicas)).unwrap_or_default(),
            planned_rate_per_replica: RequestsPerSecond::new(rate).unwrap_or_default(),
            kv_cache_tokens: self.kv_cache_tokens,
            engine: engine.clone(),
            disaggregated: self.prefill.as_ref().map(|prefill| Disaggregated {
                decode_instances: prefill.decode_instances,
                prefill: PrefillInstances {
                    instances: prefill.instances,
                    gpu: prefill.config.gpu.name.clone(),
                    tp: prefill.config.tp,
                    pp: prefill.config.pp,
                    kv_cache_tokens: prefill.kv_cache_tokens,
                    engine: prefill.config.engine.clone(),
                },
            }),
        }
    }
}

fn engine_id(config: &ReplicaConfig) -> String {
    let ReplicaConfig { gpu, tp, pp, .. } = config;
    let stages = if *pp > 1 { format!("-pp{pp}") } else { String::new() };
    format!("{}-tp{tp}{stages}", gpu.name.to_lowercase())
}

/// All configurations that fit, in a fixed order, and why others do not.
pub fn candidates(problem: &Problem) -> (Vec<Candidate>, Vec<FitError>) {
    let longest = longest_sequences(problem);
    let (mut fitting, mut misfits) = (Vec::new(), Vec::new());
    for (model, longest) in problem.models.iter().enumerate().map(|(at, _)| at).zip(longest) {
        for (offer, on_offer) in problem.offers.iter().enumerate() {
            for (tp, pp) in parallelisms() {
                let engine = default_engine(&on_offer.gpu, &problem.models[model].shape, longest);
                let config =
                    ReplicaConfig::new(problem.models[model].clone(), on_offer.gpu.clone(), tp, pp, engine);
                match ReplicaModel::new(&config, Calibration::builtin()) {
                    Ok(replica) => fitting.push(Candidate {
                        model,
                        offer,
                        kv_cache_tokens: replica.memory().kv_cache_tokens,
                        usd_per_hour: on_offer.usd_per_gpu_hour * f64::from(tp * pp),
                        available: on_offer.available,
                        config,
                        prefill: None,
                    }),
                    Err(misfit) => misfits.push(misfit),
                }
            }
        }
    }
    (fitting, misfits)
}

fn parallelisms() -> impl Iterator<Item = (u32, u32)> {
    let powers = || [1, 2, 4, 8].into_iter();
    powers().flat_map(move |tp| powers().map(move |pp| (tp, pp))).filter(|(tp, pp)| tp * pp <= MOST_GPUS)
}

/// Prompt plus answer of the longest request per model, over all traffic the plan will see.
fn longest_sequences(problem: &Problem) -> Vec<u32> {
    let scales = problem.output_scales();
    let traces = [&problem.planning_trace, &problem.verification_trace];
    (0..problem.models.len())
        .map(|model| {
            let of_trace = traces.iter().flat_map(|trace| trace.requests()).map(|request| {
                let (prompt, answer) = problem.tokens(request, None, model, scales[model]);
                prompt.saturating_add(answer)
            });
            let of_queries =
                problem.quality.iter().flat_map(|quality| [&quality.planning, &quality.held_out]).flat_map(
                    |queries| {
                        (0..queries.len()).map(|query| {
                            queries.prompt_tokens[query].saturating_add(queries.output_tokens(query, model))
                        })
                    },
                );
            match problem.lengths {
                boute_spec::file::Lengths::Trace => of_trace.max(),
                boute_spec::file::Lengths::Quality => of_queries.max(),
            }
            .unwrap_or(1)
        })
        .collect()
}

/// A share that only says what the balancer must know.
pub(crate) fn share_for(model: String, mean_prompt_tokens: f64, mean_answer_tokens: f64) -> ModelShare {
    ModelShare {
        model,
        load_fraction: boute_spec::units::Fraction::default(),
        quality: boute_spec::units::Fraction::default(),
        output_length_scale: 1.0,
        mean_prompt_tokens,
        mean_answer_tokens,
    }
}
