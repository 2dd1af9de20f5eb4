//! A request on its way to a replica: read far enough to know its model and text, decided on, and sent to replicas until one
//! answers, within the budget. Until the first byte of an answer is there, another may be tried.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use boute_router::balance::{Balancing, Candidate, RequestSize, pick};
use bytes::Bytes;
use hyper::Uri;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use crate::admission::Permit;
use crate::affinity::Blocks;
use crate::attempt::{Answer, Attempt, Verdict, verdict};
use crate::cascade::Replaced;
use crate::headers::forwarded_headers;
use crate::hedge::Sent;
use crate::http::{Request, Response, read_body};
use crate::keys::Key;
use crate::openai::{Endpoint, Failure, Peek};
use crate::recent::hash;
use crate::replica::{Fault, Place, Replica};
use crate::routes::{Choice, Model, Query, Routes, Turn, header_text};
use crate::serve::Inner;
use crate::trace::Span;

/// Replicas that one request is sent to, at most.
const MOST_ATTEMPTS: usize = 3;
const SESSION: HeaderName = HeaderName::from_static("x-boute-session");

/// One request, before it is read.
pub(crate) struct Asked<'a> {
    pub(crate) endpoint: Endpoint,
    pub(crate) id: &'a HeaderValue,
    pub(crate) arrived: Instant,
    pub(crate) key: Option<Arc<Key>>,
    pub(crate) peer: IpAddr,
}

/// One request, read and decided on: what each attempt needs.
pub(crate) struct Ready<'a> {
    pub(crate) asked: Asked<'a>,
    pub(crate) peek: Peek<'a>,
    /// As it came.
    pub(crate) body: &'a Bytes,
    pub(crate) name: String,
    pub(crate) choice: Choice,
    pub(crate) replaced: Option<Replaced>,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) prompt_tokens: u32,
    pub(crate) text: String,
    pub(crate) session: Option<String>,
    pub(crate) streams: bool,
    pub(crate) needs_usage: bool,
    pub(crate) span: Option<Span>,
    pub(crate) permit: Permit,
}

/// A replica's answer to a request.
pub(crate) struct Found<'m, 'a> {
    pub(crate) model: &'m Model,
    pub(crate) replica: &'m Arc<Replica>,
    pub(crate) ready: Ready<'a>,
    pub(crate) answer: Box<Answer>,
    pub(crate) place: Place,
    /// Replicas that were sent the request.
    pub(crate) attempts: u32,
}

impl Inner {
    /// Answers a request by a replica.
    pub(crate) async fn forward(
        self: &Arc<Self>,
        request: Request,
        asked: Asked<'_>,
    ) -> Result<Response, Failure> {
        if let Some(key) = &asked.key {
            key.admit()?;
        }
        let (parts, body) = request.into_parts();
        let body = read_body(body, self.limits.client.body).await?;
        let mut peek = Peek::read(&body)?;
        let name = peek.model()?.into_owned();
        let text = peek.text(asked.endpoint)?;
        let routes = self.routes();
        let turn = header_text(&parts.headers, &SESSION).map(|session| self.turn_of(session, &asked));
        let embedding = match routes.encoder(&name) {
            Some(encoder) => self.embedding.of(&text.text, encoder).await,
            None => None,
        };
        let choice = routes.choose(&Query {
            asked: &name,
            endpoint: asked.endpoint,
            text: &text.text,
            embedding: embedding.as_deref(),
            headers: &parts.headers,
            turn: turn.as_ref(),
            draw: self.draw(),
        })?;
        if let Some(cascade) = routes.cascade.as_ref().filter(|_| choice.reason == "policy") {
            self.earn_second_answers(cascade.max_share);
        }
        if let Some(turn) = turn.filter(|_| choice.sticks) {
            let model = Arc::clone(&routes.models[choice.model].name);
            self.sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(turn.key, model);
        }
        let client = asked.key.as_ref().map_or_else(|| client_of(asked.peer), |key| key.number);
        let permit = self.admission.enter(client).await.ok_or_else(Failure::overloaded)?;
        self.budget.earn();
        let mut span = self.tracer.as_ref().and_then(|tracer| tracer.request(&parts.headers));
        if let Some(span) = &mut span {
            span.name(asked.endpoint.operation(), &name);
        }
        let ready = Ready {
            span,
            prompt_tokens: text.tokens(&parts.headers),
            session: header_text(&parts.headers, &SESSION).map(str::to_owned),
            text: text.text,
            headers: forwarded_headers(parts.headers, asked.id, asked.key.is_some()),
            uri: parts.uri,
            streams: peek.streams(),
            needs_usage: peek.needs_usage(asked.endpoint),
            asked,
            peek,
            body: &body,
            name,
            choice,
            replaced: None,
            permit,
        };
        self.send(&routes, ready).await
    }

    /// A further turn of a session, which is its key's own.
    fn turn_of(&self, session: &str, asked: &Asked<'_>) -> Turn {
        let key = hash((asked.key.as_ref().map(|key| key.number), session));
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        Turn { key, previous: sessions.get(key).cloned() }
    }

    /// A number in [0, 1) that no client foresees.
    fn draw(&self) -> f64 {
        let bits = self.lots.hash_one(self.drawn.fetch_add(1, Relaxed));
        (bits >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Tries the model that was chosen, then those that may answer in its place.
    async fn send(self: &Arc<Self>, routes: &Routes, mut ready: Ready<'_>) -> Result<Response, Failure> {
        let chosen = &routes.models[ready.choice.model];
        let now = self.now_ms();
        let order: Vec<&Model> = std::iter::once(chosen)
            .chain(chosen.fallback.iter().map(|model| &routes.models[*model]))
            .collect();
        let mut failure = None;
        for (place, model) in order.iter().enumerate() {
            if !model.may_be_asked(now) && order[place + 1..].iter().any(|later| later.may_be_asked(now)) {
                continue;
            }
            if place > 0 {
                ready.choice.reason = format!("fallback from {}", chosen.name).into();
                (ready.choice.score, ready.choice.propensity, ready.choice.certificate) = (None, None, None);
                ready.choice.doubt = None;
            }
            match self.try_replicas(routes, model, ready).await {
                Ok(found) => return self.answer(routes, found).await,
                Err((returned, why)) => (ready, failure) = (*returned, Some(why)),
            }
        }
        let failure = failure.unwrap_or_else(|| Failure::no_replica(&chosen.name));
        if let Some(span) = &mut ready.span {
            span.set("error.type", failure.code.unwrap_or_default());
        }
        Err(failure)
    }

    /// Tries replicas of `model` until one answers. Gives the request back if none does.
    pub(crate) async fn try_replicas<'m, 'a>(
        self: &Arc<Self>,
        routes: &Routes,
        model: &'m Model,
        ready: Ready<'a>,
    ) -> Result<Found<'m, 'a>, (Box<Ready<'a>>, Failure)> {
        let answer_tokens = model.replicas.first().map_or(1, |replica| replica.expected_output_tokens);
        let size = RequestSize { prompt_tokens: ready.prompt_tokens, answer_tokens };
        let blocks = (model.replicas.len() > 1)
            .then(|| Blocks::new(&model.name, &ready.text, ready.session.as_deref()));
        let mut tried: Vec<u64> = Vec::new();
        let mut failure = Failure::no_replica(&model.name);
        while tried.len() < MOST_ATTEMPTS {
            let Some(replica) = self.pick(routes, model, &tried, size, blocks.as_ref()) else { break };
            if let Some(blocks) = &blocks {
                self.affinity.sent(blocks, replica.id);
            }
            let place = Place::take(replica, ready.prompt_tokens);
            if tried.is_empty() {
                model.traffic.decisions.add(1);
                if ready.replaced.is_none() {
                    self.overhead.observe_time(ready.asked.arrived.elapsed());
                }
            }
            tried.push(replica.id);
            let ((replica, place), attempt) = match self.hedge.filter(|_| ready.streams) {
                None => ((replica, place), self.attempt(replica, &ready).await),
                Some(share) => {
                    let begins = &model.traffic.begins;
                    let another = || self.hedge_with(routes, model, &mut tried, size, blocks.as_ref());
                    // Boxed: whoever does not hedge has no room for two attempts.
                    let raced = Box::pin(self.hedged(share, begins, &ready, (replica, place), another)).await;
                    if let Some(blocks) = &blocks {
                        self.affinity.sent(blocks, raced.0.0.id);
                    }
                    raced
                }
            };
            let attempts = tried.len() as u32;
            let more = tried.len() < MOST_ATTEMPTS.min(model.replicas.len());
            self.book(replica, &attempt);
            let (why, refused) = match attempt {
                Attempt::Answered(answer) => match verdict(answer.head.status) {
                    Verdict::Busy if more && attempts == 1 => ("busy", false),
                    Verdict::Failed if more && self.budget.spend() => ("status", false),
                    _ => return Ok(Found { model, replica, ready, answer, place, attempts }),
                },
                Attempt::Failed { why, cause, fault } => {
                    failure = match why {
                        "slow" => Failure::too_slow(&model.name),
                        _ => Failure::unreachable(&model.name, &cause),
                    };
                    // Nothing was sent to who could not be reached: trying another costs nobody anything.
                    (why, !more || (fault != Some(Fault::Unreachable) && !self.budget.spend()))
                }
            };
            if refused {
                break;
            }
            self.retries.add(why);
        }
        Err((Box::new(ready), failure))
    }

    /// A second replica for a request that waits for its first byte, if one is well and the budget allows it.
    fn hedge_with<'m>(
        &self,
        routes: &Routes,
        model: &'m Model,
        tried: &mut Vec<u64>,
        size: RequestSize,
        blocks: Option<&Blocks>,
    ) -> Option<Sent<'m>> {
        if tried.len() >= MOST_ATTEMPTS {
            return None;
        }
        let replica = self.pick(routes, model, tried, size, blocks)?;
        (replica.is_well(self.now_ms()) && self.budget.spend()).then(|| {
            tried.push(replica.id);
            (replica, Place::take(replica, size.prompt_tokens))
        })
    }

    /// Books what an attempt says of its replica.
    pub(crate) fn book(&self, replica: &Replica, attempt: &Attempt) {
        let fault = match attempt {
            Attempt::Failed { fault, .. } => *fault,
            Attempt::Answered(answer) => match verdict(answer.head.status) {
                Verdict::Fine => None,
                Verdict::Busy => return replica.counts.backpressure.add(1),
                Verdict::Failed => Some(Fault::Failed),
            },
        };
        if let Some(fault) = fault {
            replica.failed(fault, self.now_ms());
        }
    }

    /// A replica of `model` that was not `tried`: one whose trial is due, or the best of those that are well, or else of all.
    fn pick<'m>(
        &self,
        routes: &Routes,
        model: &'m Model,
        tried: &[u64],
        size: RequestSize,
        blocks: Option<&Blocks>,
    ) -> Option<&'m Arc<Replica>> {
        let turn = self.turn.fetch_add(1, Relaxed);
        if let ([only], []) = (&*model.replicas, tried) {
            return Some(only);
        }
        let now = self.now_ms();
        let untried = || model.replicas.iter().enumerate().filter(|(_, it)| !tried.contains(&it.id));
        if let Some((_, on_trial)) = untried().find(|(_, replica)| replica.take_trial(now)) {
            return Some(on_trial);
        }
        let seen = blocks
            .filter(|_| routes.balancing == Balancing::LeastExpectedFinish)
            .and_then(|blocks| self.affinity.seen(blocks, size.prompt_tokens));
        let candidate = |(index, replica): (usize, &Arc<Replica>)| Candidate {
            index,
            load: replica.load(),
            speed: replica.speed,
            cached_tokens: seen.filter(|(id, _)| *id == replica.id).map_or(0, |(_, tokens)| tokens),
        };
        let mut candidates: Vec<Candidate> =
            untried().filter(|(_, replica)| replica.is_well(now)).map(candidate).collect();
        if candidates.is_empty() {
            candidates = untried().map(candidate).collect();
        }
        pick(routes.balancing, &candidates, size, turn).map(|index| &model.replicas[index])
    }
}

/// Whose turn it is, where clients have no keys.
fn client_of(peer: IpAddr) -> u64 {
    match peer {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        // A network's worth of addresses is one client's.
        IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
    }
}
