//! `boute.yaml`, parsed and checked. Paths in it are relative to the file; nothing is opened here.

use crate::catalog::Precision;
use crate::plan::Objective;
use crate::slo::SloTarget;
use crate::units::{BytesPerSecond, Fraction, RequestsPerSecond, UsdPerHour};

/// What a user wants, as written in `boute.yaml`.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Models that may answer, at least one.
    pub models: Vec<ModelEntry>,
    /// GPU types that may be rented, at least one.
    pub gpus: Vec<GpuEntry>,
    /// What comes in.
    pub traffic: Traffic,
    /// Latency promises, at least one.
    pub slo: Vec<SloTarget>,
    /// Quality data and floor; without it there is one model and no routing.
    pub quality: Option<QualityEntry>,
    /// What to optimise.
    pub objective: Objective,
    /// Most money to spend; `None` for no limit.
    pub budget: Option<UsdPerHour>,
    /// What the plan must stand.
    pub robust: Robust,
    /// Whether prompts may be computed by other engines than answers, on other GPU types too.
    pub disaggregate: bool,
}

/// What a plan must stand besides the traffic it is made for; each on its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Robust {
    /// This many times the rate.
    pub rate: f64,
    /// Prompts and answers this many times as long.
    pub lengths: f64,
    /// The loss of this many replicas of any model (N + k).
    pub lost_replicas: u32,
    /// Replicas of every model that answers, at least.
    pub min_replicas: u32,
}

impl Robust {
    /// Nothing beyond the traffic as it is.
    pub const NOTHING: Self = Self { rate: 1.0, lengths: 1.0, lost_replicas: 0, min_replicas: 1 };
    /// What a plan stands unless told otherwise: a little more traffic, since the next hour is not the last.
    pub const USUAL: Self = Self { rate: 1.05, ..Self::NOTHING };
}

/// A model that may answer.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelEntry {
    /// Its name in plans and quality data: a catalogue name if `config` is `None`.
    pub id: String,
    /// A Hugging Face `config.json`.
    pub config: Option<String>,
    /// Precision of the weights; the catalogue's or the config's own if `None`.
    pub dtype: Option<Precision>,
    /// Where the engine finds the weights; the catalogue's or the id if `None`.
    pub weights: Option<String>,
}

/// How many GPUs of a type can be had. Unknown is not zero: it puts no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stock {
    /// This many.
    Known(u32),
    /// No one said.
    Unknown,
}

/// A GPU type that may be rented.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuEntry {
    /// Catalogue name or alias.
    pub gpu: String,
    /// How many there are.
    pub stock: Stock,
    /// Price of one GPU; the catalogue's default if `None`.
    pub price: Option<UsdPerHour>,
    /// Bandwidth between two GPUs of a node, one direction, as this host has it; the catalogue's if `None`.
    pub link: Option<BytesPerSecond>,
    /// Bandwidth of one GPU to other nodes, one direction; the catalogue's if `None`.
    pub network: Option<BytesPerSecond>,
    /// Spot capacity: the chance that a replica on it is taken away within an hour; never if `None`.
    pub interruptions: Option<Fraction>,
}

/// Where token counts come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lengths {
    /// The trace's, the output scaled by the model's mean length relative to the largest model's where known.
    Trace,
    /// The query's own, for the model that answers.
    Quality,
}

/// What comes in.
#[derive(Debug, Clone, PartialEq)]
pub struct Traffic {
    /// Trace file: Mooncake JSON lines or CSV, plain or gzip.
    pub trace: String,
    /// Rescales the trace to this mean rate; its own rate if `None`.
    pub rate: Option<RequestsPerSecond>,
    /// Where token counts come from.
    pub lengths: Lengths,
}

/// A quality floor.
#[derive(Debug, Clone, PartialEq)]
pub enum Floor {
    /// Mean score at least this.
    Absolute(Fraction),
    /// Mean score at least this share of a model's own mean score.
    Relative {
        /// The share.
        share: Fraction,
        /// The model.
        model: String,
    },
}

/// Quality data and what is asked of it.
#[derive(Debug, Clone, PartialEq)]
pub struct QualityEntry {
    /// Per-query scores: JSON lines, plain or gzip.
    pub data: String,
    /// Trained router; trained on the training part of `data` if `None`.
    pub router: Option<String>,
    /// Floor on the mean score.
    pub floor: Option<Floor>,
    /// Probability with which the floor must hold on unseen queries.
    pub confidence: Fraction,
    /// Share of the queries that may be asked again from a better model, once a first answer is there; `None` for no cascade.
    pub cascade: Option<Fraction>,
}
