//! Query → model: names, aliases, the plan's policy, and what a request asks for beyond it. Made anew for each plan, never
//! changed.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use boute_router::balance::Balancing;
use boute_router::cascade::{Answer, Cascade};
use boute_router::decide::{
    Decider, UnknownModel, cheapest_reaching, dearest_if_better, explore, in_session,
};
use boute_router::encoder::Encode;
use boute_router::{Scorer, Scratch};
use boute_spec::certificate::Certificate;
use boute_spec::plan::PlanDraft;
use boute_spec::policy::{CascadePolicy, RoutingPolicy};
use hyper::header::{HeaderMap, HeaderName};

use crate::cascade::Doubt;
use crate::certificate::{Watched, WhenVoid};
use crate::credentials::UpstreamKeys;
use crate::discovery;
use crate::openai::{Endpoint, Failure};
use crate::recent::hash;
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
    /// Names behind which there is a replica at each of their addresses, which come and go.
    pub discover: Vec<Upstream>,
    /// Which API key goes to which engine.
    pub upstream_keys: UpstreamKeys,
    /// How a replica is picked.
    pub balancing: Balancing,
    /// Other names: for a model, or for a form of `auto`.
    pub aliases: BTreeMap<String, String>,
    /// Which models may answer in a model's place, in order, while it has no healthy replica.
    pub fallback: BTreeMap<String, Vec<String>>,
    /// What a million tokens cost, by model, in USD.
    pub usd_per_million_tokens: BTreeMap<String, f64>,
    /// The plan that is served, for who wants to see it.
    pub plan: Option<Arc<PlanDraft>>,
    /// What the policy's promise of quality rests on, if it makes one.
    pub certificate: Option<Certificate>,
    /// Which answers are asked for again, if any.
    pub cascade: Option<CascadePolicy>,
    /// What becomes of `auto` when the certificate is void.
    pub when_void: WhenVoid,
    /// Share of the queries for which the policy's models are drawn by lot.
    pub explore: f64,
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
    /// A collector's address is none.
    #[error("`{url}` is not an address of a collector of traces; write it like `http://127.0.0.1:4318`")]
    Collector {
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
            certificate: plan.routing.certificate.clone(),
            cascade: plan.routing.cascade.clone(),
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

impl Model {
    /// Whether a replica may be asked.
    pub(crate) fn may_be_asked(&self, now_ms: u64) -> bool {
        self.replicas.iter().any(|replica| replica.may_be_asked(now_ms))
    }
}

/// The table of routes.
#[derive(Debug)]
pub(crate) struct Routes {
    pub(crate) models: Vec<Model>,
    pub(crate) balancing: Balancing,
    pub(crate) plan: Option<Arc<PlanDraft>>,
    aliases: BTreeMap<String, String>,
    decider: Option<Decider>,
    scorer: Option<Arc<Scorer>>,
    /// Of each score, in the scorer's order: the model it is of, if that is served.
    scored: Vec<Option<usize>>,
    /// Scores of models that are served, by their price or, where that is not known, in their order.
    cheapest_first: Vec<usize>,
    /// Of each score: how many models are worse by their mean score.
    rank: Vec<usize>,
    pub(crate) watch: Option<Watch>,
    pub(crate) cascade: Option<Cascade>,
    when_void: WhenVoid,
    explore: f64,
}

/// The certificate that is watched, and where its models' scores are.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) watched: Arc<Watched>,
    /// In the certificate's order; `None` where nothing is scored.
    order: Option<Vec<usize>>,
    /// Of the safe model.
    safe: usize,
}

/// What a decision is made from.
pub(crate) struct Query<'a> {
    /// The model that the request names.
    pub(crate) asked: &'a str,
    pub(crate) endpoint: Endpoint,
    pub(crate) text: &'a str,
    /// Of the text, if the scorer reads it and it was made in time.
    pub(crate) embedding: Option<&'a [f32]>,
    pub(crate) headers: &'a HeaderMap,
    /// The session it belongs to, if any.
    pub(crate) turn: Option<&'a Turn>,
    /// Uniform in [0, 1).
    pub(crate) draw: f64,
}

/// A turn of a session.
#[derive(Debug)]
pub(crate) struct Turn {
    /// The session's.
    pub(crate) key: u64,
    /// The model of the turn before.
    pub(crate) previous: Option<Arc<str>>,
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
    /// The chance that this model was taken, where others are explored.
    pub(crate) propensity: Option<f64>,
    /// Whose promise the answer is part of: the policy alone decided.
    pub(crate) certificate: Option<Weak<Watched>>,
    /// Of an answer that may be asked for again.
    pub(crate) doubt: Option<Doubt>,
    /// Whether the next turn of the session is to know of it.
    pub(crate) sticks: bool,
}

impl Choice {
    /// For no other reason.
    pub(crate) fn of(model: usize, reason: &'static str) -> Self {
        Self {
            model,
            score: None,
            threshold: None,
            reason: reason.into(),
            propensity: None,
            certificate: None,
            doubt: None,
            sticks: false,
        }
    }
}

impl Routes {
    /// Checks a configuration. `replica` makes a replica, or finds it among those that are there already; `watched` is the
    /// certificate so far.
    pub(crate) fn new(
        config: RoutesConfig,
        mut replica: impl FnMut(&Upstream) -> Option<Arc<Replica>>,
        mut traffic: impl FnMut(&str) -> Arc<ModelTraffic>,
        watched: Option<&Arc<Watched>>,
    ) -> Result<Self, GatewayError> {
        let mut replicas: BTreeMap<String, Vec<Arc<Replica>>> = BTreeMap::new();
        for upstream in &config.upstreams {
            let made = replica(upstream).ok_or_else(|| GatewayError::Url { url: upstream.url.clone() })?;
            replicas.entry(upstream.model.clone()).or_default().push(made);
        }
        for service in &config.discover {
            discovery::check(&service.url)?;
            // Served even while nobody is there.
            replicas.entry(service.model.clone()).or_default();
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
        let watch =
            config.certificate.as_ref().zip(config.policy.as_ref()).and_then(|(certificate, policy)| {
                let at = |model: &String| scores.iter().position(|score| score == model);
                let safe = at(&certificate.safe_model)?;
                let order = || certificate.reference.models.iter().map(at).collect();
                let order = config.scorer.as_ref().and_then(|_| order());
                let known = watched.filter(|watched| watched.is_of(certificate, policy)).cloned();
                let anew = || Arc::new(Watched::new(certificate.clone(), policy.clone()));
                Some(Watch { watched: known.unwrap_or_else(anew), order, safe })
            });
        let rank = config.scorer.as_ref().map_or_else(
            || vec![0; scores.len()],
            |scorer| (0..scores.len()).map(|score| scorer.rank(score)).collect(),
        );
        let routes = Self {
            models,
            balancing: config.balancing,
            plan: config.plan,
            aliases: config.aliases,
            decider,
            scorer: config.scorer,
            scored,
            cheapest_first,
            rank,
            watch,
            cascade: config.cascade.and_then(|cascade| Cascade::new(&cascade, &scores)),
            when_void: config.when_void,
            explore: config.explore,
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

    /// What makes the embedding that is needed to choose who answers a request for `asked`, if one is.
    pub(crate) fn encoder(&self, asked: &str) -> Option<&Arc<dyn Encode>> {
        let name = self.aliases.get(asked).map_or(asked, String::as_str);
        let needed = is_auto(name) && !self.models.iter().any(|model| &*model.name == name);
        self.scorer.as_ref().filter(|_| needed)?.encoder()
    }

    /// The model that answers.
    pub(crate) fn choose(&self, query: &Query<'_>) -> Result<Choice, Failure> {
        let target = self.aliases.get(query.asked).map(String::as_str);
        let name = target.unwrap_or(query.asked);
        if let Some(model) = self.models.iter().position(|model| &*model.name == name) {
            return Ok(Choice::of(model, if target.is_some() { "alias" } else { "asked" }));
        }
        match &self.decider {
            Some(decider) if is_auto(name) => self.decide(decider, name, query),
            _ => Err(Failure::unknown_model(query.asked, &self.names().join(", "))),
        }
    }

    fn decide(&self, decider: &Decider, name: &str, query: &Query<'_>) -> Result<Choice, Failure> {
        if query.endpoint == Endpoint::Embeddings {
            let message = "`auto` answers texts; name the model that embeds".into();
            return Err(Failure::bad_request(message, Some("model")));
        }
        let number = |text: &str, lowest: f32, what: &str| match text.parse::<f32>() {
            Ok(number) if (lowest..=1.0).contains(&number) => Ok(number),
            _ => Err(Failure::bad_request(format!("{what} is a number from {lowest} to 1"), Some("model"))),
        };
        let floor = match (name.strip_prefix("auto:"), header_text(query.headers, &FLOOR)) {
            (Some(floor), _) => Some(number(floor, 0.0, "QUALITY in `auto:QUALITY`")?),
            (None, Some(floor)) => Some(number(floor, 0.0, "`x-boute-floor`")?),
            (None, None) => None,
        };
        let threshold = name.strip_prefix(THRESHOLD);
        let threshold = threshold.map(|it| number(it, -1.0, "the threshold in the name")).transpose()?;
        if self.scorer.is_none() && (floor.is_some() || threshold.is_some()) {
            let message = "the plan has one model and no scores: there is no quality to choose".into();
            return Err(Failure::bad_request(message, Some("model")));
        }
        let affordable = self.affordable(query.headers)?;
        let rest =
            || self.cheapest_first.iter().copied().filter(|score| affordable(*score)).collect::<Vec<_>>();
        SCORES.with_borrow_mut(|(scratch, scores)| {
            scores.clear();
            scores.resize(self.scored.len(), 0.0);
            let mut late = false;
            if let Some(scorer) = &self.scorer {
                scorer.score_embedded(&[query.text], query.embedding, scratch, scores);
                late = scorer.encoder().is_some() && query.embedding.is_none();
            }
            let chosen = if let Some(threshold) = threshold {
                dearest_if_better(scores, &rest(), threshold)
                    .and_then(|score| self.chosen(score, "threshold"))
            } else if let Some(floor) = floor {
                cheapest_reaching(scores, &rest(), floor).and_then(|score| self.chosen(score, "floor"))
            } else if late {
                self.without_embedding(decider, scores, affordable)
            } else {
                self.watch(query, scores, scratch.novelty());
                self.by_policy(decider, query, scores, affordable)
            };
            let Some((score, choice)) = chosen else { return Err(self.too_dear()) };
            let doubt = self.doubt(score, &choice, scores, scratch);
            let score = (self.scorer.is_some() && !late).then(|| scores[score]);
            Ok(Choice { score, threshold: threshold.or(floor), doubt, ..choice })
        })
    }

    /// The model of a score, if it is served, as a choice.
    fn chosen(&self, score: usize, reason: &'static str) -> Option<(usize, Choice)> {
        Some((score, Choice::of(self.scored[score]?, reason)))
    }

    /// What the cascade needs to know of an answer of `score`'s model, if it looks at such.
    fn doubt(&self, score: usize, choice: &Choice, scores: &[f32], scratch: &Scratch) -> Option<Doubt> {
        let (cascade, scorer) = (self.cascade.as_ref()?, self.scorer.as_ref()?);
        let [first, second] = cascade.models;
        let answer = Answer {
            first: scores[first],
            second: scores[second],
            tokens: 0,
            expected_tokens: scorer.expected_tokens(scratch, first),
        };
        let looked_at = score == first && choice.reason == "policy";
        Some(Doubt { answer, second: self.scored[second]? }).filter(|_| looked_at)
    }

    /// The certificate's monitor sees what the policy is asked.
    fn watch(&self, query: &Query<'_>, scores: &[f32], novelty: f32) {
        let Some(watch) = &self.watch else { return };
        if let Some(order) = &watch.order {
            let key = query.turn.map_or_else(|| key_of(query.text), |turn| turn.key);
            watch.watched.observe(key, order.iter().map(|at| scores[*at]), novelty);
        }
    }

    /// The safe model where half of an ensemble is all there is: neither was that certified nor is it watched. Later turns of
    /// a session do not keep to it.
    fn without_embedding(
        &self,
        decider: &Decider,
        scores: &[f32],
        affordable: impl Fn(usize) -> bool + Copy,
    ) -> Option<(usize, Choice)> {
        let safe = self.watch.as_ref().map(|watch| watch.safe).filter(|safe| affordable(*safe));
        let best = || decider.decide_among(scores, affordable).map(|decision| decision.model);
        self.chosen(safe.or_else(best)?, "late embedding")
    }

    /// The score and the model that the policy decides on, unless its certificate is void, the session had a better model, or
    /// another is to be explored. `None` if no model is affordable.
    fn by_policy(
        &self,
        decider: &Decider,
        query: &Query<'_>,
        scores: &[f32],
        affordable: impl Fn(usize) -> bool + Copy,
    ) -> Option<(usize, Choice)> {
        // What a price limit has a part in is neither what was certified nor what later turns are to keep to.
        let unlimited = header_text(query.headers, &MAX_COST).is_none();
        let sticking = |(score, choice)| (score, Choice { sticks: unlimited, ..choice });
        if let Some(watch) = self.watch.as_ref().filter(|watch| watch.watched.is_void())
            && self.when_void == WhenVoid::SafeModel
            && affordable(watch.safe)
        {
            return self.chosen(watch.safe, "certificate void").map(sticking);
        }
        let decision = decider.decide_among(scores, affordable)?;
        let previous = query.turn.and_then(|turn| turn.previous.as_deref());
        let previous = previous.and_then(|name| self.score_of(name)).filter(|score| affordable(*score));
        let kept = in_session(decision, previous, |score| self.rank[score]);
        if kept != decision.model {
            return self.chosen(kept, "session").map(sticking);
        }
        let mut model = decision.model;
        let mut propensity = None;
        if self.explore > 0.0 && query.turn.is_none() {
            let mut models = decider.models();
            models.retain(|score| affordable(*score));
            let explored = explore(decision, &models, self.explore, query.draw);
            (model, propensity) = (explored.model, Some(explored.propensity));
        }
        if model != decision.model {
            let (score, choice) = self.chosen(model, "exploration")?;
            return Some((score, Choice { propensity, ..choice }));
        }
        let reason = if self.scorer.is_some() { "policy" } else { "constant" };
        let (score, choice) = self.chosen(model, reason)?;
        let certified = self.watch.as_ref().filter(|_| unlimited && previous.is_none());
        let certificate = certified.map(|watch| Arc::downgrade(&watch.watched));
        Some(sticking((score, Choice { propensity, certificate, ..choice })))
    }

    /// Whose score has this name, among those that are served.
    fn score_of(&self, model: &str) -> Option<usize> {
        let is_it = |served: &Option<usize>| served.is_some_and(|at| &*self.models[at].name == model);
        self.scored.iter().position(is_it)
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

/// What of a text tells it from others: what the scorer reads of it, and its length.
fn key_of(text: &str) -> u64 {
    let bytes = text.as_bytes();
    let (head, tail) = (&bytes[..bytes.len().min(4 << 10)], &bytes[bytes.len().saturating_sub(1 << 10)..]);
    hash((bytes.len(), head, tail))
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
