//! Query → model: names, aliases, the plan's policy, and what a request asks for beyond it. Made anew for each plan, never
//! changed.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use boute_router::balance::Balancing;
use boute_router::decide::{Decider, UnknownModel, cheapest_reaching, dearest_if_better};
use boute_router::{Scorer, Scratch};
use boute_spec::plan::PlanDraft;
use boute_spec::policy::RoutingPolicy;
use hyper::header::{HeaderMap, HeaderName};

use crate::openai::{Endpoint, Failure};
use crate::replica::{Replica, Upstream};
use crate::traffic::ModelTraffic;

/// Model name by which the plan's policy decides.
pub const AUTO: &str = "auto";
/// `RouteLLM`'s form: the rest of the name is a threshold.
const THRESHOLD: &str = "router-boute-";
/// The score an answer must be expected to reach.
const FLOOR: HeaderName = HeaderName::from_static("x-boute-floor");
/// Most that a million tokens may cost, in USD.
const MAX_COST: HeaderName = HeaderName::from_static("x-boute-max-cost");

/// What is served, and how it is decided.
#[derive(Debug, Clone, Default)]
pub struct RoutesConfig {
    /// How `auto` is decided; `None` if only concrete models are served.
    pub policy: Option<RoutingPolicy>,
    /// Scores prompts for the policy; not needed for a constant policy.
    pub scorer: Option<Arc<Scorer>>,
    /// The engines.
    pub upstreams: Vec<Upstream>,
    /// How a replica is picked.
    pub balancing: Balancing,
    /// Other names: for a model, or for a form of `auto`.
    pub aliases: BTreeMap<String, String>,
    /// Which models may answer in a model's place, in order, while it has no healthy replica.
    pub fallback: BTreeMap<String, Vec<String>>,
    /// What a million tokens cost, by model, in USD.
    pub usd_per_million_tokens: BTreeMap<String, f64>,
    /// The plan that all of this is of, for people to look at.
    pub plan: Option<Arc<PlanDraft>>,
}

/// Why a gateway cannot serve what it is told to.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The policy names a model without scores.
    #[error(transparent)]
    Policy(#[from] UnknownModel),
    /// A replica's address is none.
    #[error("`{url}` is not an address of a replica; write it like `http://127.0.0.1:8000`")]
    Url {
        /// What was given.
        url: String,
    },
    /// A model that is named has no replica.
    #[error("{by} names `{model}`, but no replica serves it; add `--replica {model}=URL`")]
    NoReplica {
        /// Who names it.
        by: &'static str,
        /// The model.
        model: String,
    },
    /// The log cannot be written.
    #[error("the log of decisions cannot be written: {0}")]
    Log(#[from] std::io::Error),
}

impl RoutesConfig {
    /// What a plan says, on these engines.
    pub fn of_plan(plan: &PlanDraft, scorer: Option<Arc<Scorer>>, upstreams: Vec<Upstream>) -> Self {
        Self {
            policy: Some(plan.routing.policy.clone()),
            scorer,
            upstreams,
            fallback: plan.routing.fallback.clone(),
            usd_per_million_tokens: model_prices(plan),
            plan: Some(Arc::new(plan.clone())),
            ..Self::default()
        }
    }
}

/// What a million tokens of each model cost under a plan, in USD: the rent of its groups over the tokens they are planned
/// to carry.
fn model_prices(plan: &PlanDraft) -> BTreeMap<String, f64> {
    let mut prices = BTreeMap::new();
    for share in &plan.routing.models {
        let groups = || plan.deployment.groups.iter().filter(|group| group.model == share.model);
        let rent: f64 = groups().map(|group| group.usd_per_hour.get()).sum();
        let rate: f64 =
            groups().map(|group| group.planned_rate_per_replica.get() * f64::from(group.replicas)).sum();
        let tokens_per_hour = rate * 3600.0 * (share.mean_prompt_tokens + share.mean_answer_tokens);
        if tokens_per_hour > 0.0 {
            prices.insert(share.model.clone(), rent / tokens_per_hour * 1e6);
        }
    }
    prices
}

/// A model and who serves it.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) name: Arc<str>,
    pub(crate) replicas: Vec<Arc<Replica>>,
    /// Models that may answer in its place, in order.
    pub(crate) fallback: Vec<usize>,
    usd_per_million_tokens: Option<f64>,
    pub(crate) traffic: Arc<ModelTraffic>,
}

/// The table of routes.
#[derive(Debug)]
pub(crate) struct Routes {
    pub(crate) models: Vec<Model>,
    pub(crate) balancing: Balancing,
    aliases: BTreeMap<String, String>,
    decider: Option<Decider>,
    scorer: Option<Arc<Scorer>>,
    /// Of each score, in the scorer's order: the model it is of, if that is served.
    scored: Vec<Option<usize>>,
    /// Scores of models that are served, by their price or, where that is not known, in their order.
    cheapest_first: Vec<usize>,
}

/// Who answers a request, and why.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) model: usize,
    /// The score that is expected of it.
    pub(crate) score: Option<f32>,
    /// The floor or threshold that was asked for.
    pub(crate) threshold: Option<f32>,
    pub(crate) reason: Cow<'static, str>,
}

impl Routes {
    /// Checks a configuration. `replica` makes a replica, or finds it among those that are there already.
    pub(crate) fn new(
        config: RoutesConfig,
        mut replica: impl FnMut(&Upstream) -> Option<Arc<Replica>>,
        mut traffic: impl FnMut(&str) -> Arc<ModelTraffic>,
    ) -> Result<Self, GatewayError> {
        let mut replicas: BTreeMap<String, Vec<Arc<Replica>>> = BTreeMap::new();
        for upstream in &config.upstreams {
            let made = replica(upstream).ok_or_else(|| GatewayError::Url { url: upstream.url.clone() })?;
            replicas.entry(upstream.model.clone()).or_default().push(made);
        }
        let names: Vec<String> = replicas.keys().cloned().collect();
        let index = |by: &'static str, model: &str| {
            names
                .iter()
                .position(|name| name == model)
                .ok_or_else(|| GatewayError::NoReplica { by, model: model.to_owned() })
        };
        let scores = config.scorer.as_ref().map_or_else(|| names.clone(), |scorer| scorer.models().to_vec());
        let decider = config.policy.as_ref().map(|policy| Decider::new(policy, &scores)).transpose()?;
        for model in config.policy.iter().flat_map(RoutingPolicy::models) {
            index("the policy", model)?;
        }
        let price = |model: &str| config.usd_per_million_tokens.get(model).copied();
        let mut models = Vec::new();
        for (name, replicas) in replicas {
            let allowed = config.fallback.get(&name).map(Vec::as_slice).unwrap_or_default();
            let fallback =
                allowed.iter().map(|model| index("the fallback", model)).collect::<Result<_, _>>()?;
            models.push(Model {
                name: name.as_str().into(),
                replicas,
                fallback,
                usd_per_million_tokens: price(&name),
                traffic: traffic(&name),
            });
        }
        for model in config.fallback.keys() {
            index("the fallback", model)?;
        }
        let scored: Vec<_> = scores.iter().map(|score| names.iter().position(|name| name == score)).collect();
        let mut cheapest_first: Vec<usize> =
            (0..scores.len()).filter(|score| scored[*score].is_some()).collect();
        cheapest_first.sort_by(|a, b| {
            let price = |score: usize| price(&scores[score]).unwrap_or(f64::INFINITY);
            price(*a).total_cmp(&price(*b))
        });
        let routes = Self {
            models,
            balancing: config.balancing,
            aliases: config.aliases,
            decider,
            scorer: config.scorer,
            scored,
            cheapest_first,
        };
        for target in routes.aliases.values() {
            if !is_auto(target) {
                index("an alias", target)?;
            }
        }
        Ok(routes)
    }

    /// All replicas.
    pub(crate) fn replicas(&self) -> impl Iterator<Item = &Arc<Replica>> {
        self.models.iter().flat_map(|model| &model.replicas)
    }

    /// `auto`, if there is a policy, the aliases and the concrete models.
    pub(crate) fn names(&self) -> Vec<&str> {
        let auto = self.decider.iter().map(|_| AUTO);
        let aliases = self.aliases.keys().map(String::as_str);
        auto.chain(aliases).chain(self.models.iter().map(|model| &*model.name)).collect()
    }

    /// The model that answers.
    pub(crate) fn choose(
        &self,
        asked: &str,
        endpoint: Endpoint,
        text: &str,
        headers: &HeaderMap,
    ) -> Result<Choice, Failure> {
        let target = self.aliases.get(asked).map(String::as_str);
        let name = target.unwrap_or(asked);
        if let Some(model) = self.models.iter().position(|model| &*model.name == name) {
            let reason = if target.is_some() { "alias" } else { "asked" };
            return Ok(Choice { model, score: None, threshold: None, reason: reason.into() });
        }
        match &self.decider {
            Some(decider) if is_auto(name) => self.decide(decider, name, endpoint, text, headers),
            _ => Err(Failure::unknown_model(asked, &self.names().join(", "))),
        }
    }

    fn decide(
        &self,
        decider: &Decider,
        name: &str,
        endpoint: Endpoint,
        text: &str,
        headers: &HeaderMap,
    ) -> Result<Choice, Failure> {
        if endpoint == Endpoint::Embeddings {
            let message = "`auto` answers texts; name the model that embeds".into();
            return Err(Failure::bad_request(message, Some("model")));
        }
        let number = |text: &str, lowest: f32, what: &str| match text.parse::<f32>() {
            Ok(number) if (lowest..=1.0).contains(&number) => Ok(number),
            _ => Err(Failure::bad_request(format!("{what} is a number from {lowest} to 1"), Some("model"))),
        };
        let floor = match (name.strip_prefix("auto:"), header_text(headers, &FLOOR)) {
            (Some(floor), _) => Some(number(floor, 0.0, "QUALITY in `auto:QUALITY`")?),
            (None, Some(floor)) => Some(number(floor, 0.0, "`x-boute-floor`")?),
            (None, None) => None,
        };
        let threshold = name.strip_prefix(THRESHOLD);
        let threshold = threshold.map(|it| number(it, -1.0, "the threshold in the name")).transpose()?;
        let affordable = self.affordable(headers)?;
        let cheapest_first = || self.cheapest_first.iter().copied().filter(|score| affordable(*score));
        SCORES.with_borrow_mut(|(scratch, scores)| {
            scores.clear();
            scores.resize(self.scored.len(), 0.0);
            if let Some(scorer) = &self.scorer {
                scorer.score(text, scratch, scores);
            }
            let decided = if self.scorer.is_none() && (floor.is_some() || threshold.is_some()) {
                return Err(Failure::bad_request(
                    "the plan has one model and no scores: there is no quality to choose".into(),
                    Some("model"),
                ));
            } else if let Some(threshold) = threshold {
                let rest: Vec<usize> = cheapest_first().collect();
                dearest_if_better(scores, &rest, threshold).map(|score| (score, "threshold"))
            } else if let Some(floor) = floor {
                let rest: Vec<usize> = cheapest_first().collect();
                cheapest_reaching(scores, &rest, floor).map(|score| (score, "floor"))
            } else {
                decider.decide_among(scores, affordable).map(|decision| {
                    (decision.model, if self.scorer.is_some() { "policy" } else { "constant" })
                })
            };
            let chosen = decided.and_then(|(score, reason)| Some((score, self.scored[score]?, reason)));
            let Some((score, model, reason)) = chosen else { return Err(self.too_dear()) };
            let threshold = threshold.or(floor);
            let score = self.scorer.is_some().then(|| scores[score]);
            Ok(Choice { model, score, threshold, reason: reason.into() })
        })
    }

    /// Which scores' models keep to the request's maximal cost.
    fn affordable(&self, headers: &HeaderMap) -> Result<impl Fn(usize) -> bool + Copy + '_, Failure> {
        let limit = header_text(headers, &MAX_COST).map(str::parse::<f64>).transpose().map_err(|_| {
            Failure::bad_request("`x-boute-max-cost` is USD per million tokens, such as 0.5".into(), None)
        })?;
        let price = |score: usize| self.models[self.scored[score]?].usd_per_million_tokens;
        Ok(move |score: usize| limit.is_none_or(|limit| price(score).is_some_and(|price| price <= limit)))
    }

    fn too_dear(&self) -> Failure {
        let prices = self.models.iter().map(|model| match model.usd_per_million_tokens {
            Some(price) => format!("{}: ${price:.2}", model.name),
            None => format!("{}: not known", model.name),
        });
        let prices = prices.collect::<Vec<_>>().join(", ");
        let message =
            format!("no model costs as little per million tokens as `x-boute-max-cost` says ({prices})");
        Failure::bad_request(message, None)
    }
}

thread_local! {
    static SCORES: RefCell<(Scratch, Vec<f32>)> = RefCell::default();
}

fn is_auto(name: &str) -> bool {
    name == AUTO || name.starts_with("auto:") || name.starts_with(THRESHOLD)
}

/// A header's value, if it is text.
pub(crate) fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
