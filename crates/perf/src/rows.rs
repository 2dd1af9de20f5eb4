//! Serving measurements as rows of a table, with the columns of aiconfigurator's silicon sample.
//!
//! Labels there differ between the tools that wrote them; [`Row`] is what they mean:
//! * `concurrency` is for the whole deployment; where it is empty, `batch_size` per group of attention data parallelism.
//! * `tp_size` = `moe_tp_size` × `moe_ep_size` with both equal and above 1 counts the GPUs twice (TP 8 with EP 8 is 8 GPUs);
//!   so does `tp_size` = `attention_dp_size` with `moe_ep_size` their product; and `attention_dp_size` = `moe_tp_size` ×
//!   `moe_ep_size`, both equal.
//! * A `tp_size` beyond 8 on a rack-scale system means that experts span the GPUs and every GPU attends for itself.
//! * An fp8 or fp4 checkpoint keeps an fp8 cache, unless only its experts are quantised.

use boute_spec::catalog::{Catalog, Gpu, Model, Precision, Source};
use boute_spec::plan::EngineFlags;
use serde::Serialize;

use crate::interval::Spread;
use crate::memory::memory_fit;
use crate::{Calibration, ClosedLoop, Engine, ReplicaConfig, ReplicaModel, ServingEstimate};

/// No prompt or answer is longer.
const MOST_TOKENS: u32 = 10_000_000;

/// No replica is divided more often in any direction.
const MOST_PARALLEL: f64 = 1024.0;

/// Memory that serving benchmarks give the engine.
const GPU_MEMORY_UTILIZATION: f64 = 0.92;

/// Columns of the answer.
const PREDICTED: &str =
    "id,pred_ttft_ms,pred_tpot_ms,source,ttft_low_ms,ttft_high_ms,tpot_low_ms,tpot_high_ms";

/// One setting, and what was measured there.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Name of the row.
    pub id: String,
    /// Model, GPU, engine and precision: what is held out together.
    pub series: String,
    /// The whole setting: what is measured twice if it occurs twice.
    pub setting: String,
    /// The replica.
    pub config: ReplicaConfig,
    /// Its clients.
    pub load: ClosedLoop,
    /// TTFT and TPOT in seconds.
    pub measured: Option<(f64, f64)>,
}

impl Row {
    /// What our model says, in milliseconds to four places, with intervals.
    pub fn predict(&self, calibration: &Calibration) -> Predicted<'_> {
        let estimate = self.estimate(calibration);
        let kernels = calibration.source(&self.config.gpu);
        let Spread { ttft, tpot } = calibration.spread(self.config.kind(kernels));
        let ms = |seconds: f64| (seconds * 1e7).round() / 1e4;
        Predicted {
            id: &self.id,
            pred_ttft_ms: ms(estimate.ttft_s),
            pred_tpot_ms: ms(estimate.tpot_s),
            source: if memory_fit(&self.config).is_ok() { kernels } else { Source::Assumed },
            ttft_low_ms: ms(estimate.ttft_s * ttft[0]),
            ttft_high_ms: ms(estimate.ttft_s * ttft[1]),
            tpot_low_ms: ms(estimate.tpot_s * tpot[0]),
            tpot_high_ms: ms(estimate.tpot_s * tpot[1]),
        }
    }

    /// What our model says. A measured replica is known to run, so memory does not refuse it.
    pub fn estimate(&self, calibration: &Calibration) -> ServingEstimate {
        ReplicaModel::whether_or_not_it_fits(&self.config, calibration).closed_loop(&self.load)
    }
}

/// What our model says of a row; the names are the columns.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Predicted<'a> {
    /// Name of the row.
    pub id: &'a str,
    /// Mean time to first token.
    pub pred_ttft_ms: f64,
    /// Mean time per output token after the first.
    pub pred_tpot_ms: f64,
    /// Fitted if the kernels were measured on this GPU type; assumed if not, or if by our estimate the replica does not fit.
    pub source: Source,
    /// Interval of the TTFT at [`crate::interval::CONFIDENCE`].
    pub ttft_low_ms: f64,
    /// Its other end.
    pub ttft_high_ms: f64,
    /// Interval of the TPOT.
    pub tpot_low_ms: f64,
    /// Its other end.
    pub tpot_high_ms: f64,
}

/// Predictions as CSV with a header.
///
/// # Panics
/// If numbers and words do not fit into CSV, which they do.
pub fn predictions_csv(predictions: &[Predicted<'_>]) -> String {
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    for row in predictions {
        writer.serialize(row).expect("numbers and words fit into CSV");
    }
    let body = writer.into_inner().expect("memory takes all that is written");
    format!("{PREDICTED}\n{}", String::from_utf8_lossy(&body))
}

/// A row that says nothing we can compute, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Name of the row.
    pub id: String,
    /// Why.
    pub why: String,
}

/// A table that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowsError {
    /// A column is not there.
    #[error("no column `{column}`")]
    NoColumn {
        /// Its name.
        column: &'static str,
    },
    /// A cell is not what its column holds.
    #[error("line {line}: `{column}` is `{value}`, not {what}")]
    Cell {
        /// From 1, the header counted.
        line: u64,
        /// Its column.
        column: &'static str,
        /// What is there.
        value: String,
        /// What should be.
        what: &'static str,
    },
    /// Not CSV.
    #[error("{message}")]
    Csv {
        /// What is wrong.
        message: String,
    },
}

/// Reads a table: the rows, and those that cannot be computed (unknown model or GPU, prefill and decode apart).
///
/// # Errors
/// If it is not CSV, lacks a column, or a number is not one.
pub fn parse_rows(text: &str) -> Result<(Vec<Row>, Vec<Skipped>), RowsError> {
    let csv_error = |error: csv::Error| RowsError::Csv { message: error.to_string() };
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().map_err(csv_error)?.clone();
    for column in ["id", "model_path", "system", "backend", "isl", "osl", "tp_size"] {
        if !header.iter().any(|name| name == column) {
            return Err(RowsError::NoColumn { column });
        }
    }
    let (mut rows, mut skipped) = (Vec::new(), Vec::new());
    for record in reader.records() {
        let record = record.map_err(csv_error)?;
        let cells = Cells { header: &header, record: &record };
        match row(&cells)? {
            Ok(row) => rows.push(row),
            Err(why) => skipped.push(Skipped { id: cells.text("id").into(), why }),
        }
    }
    Ok((rows, skipped))
}

struct Cells<'a> {
    header: &'a csv::StringRecord,
    record: &'a csv::StringRecord,
}

impl Cells<'_> {
    /// Empty if the column is not there.
    fn text(&self, column: &str) -> &str {
        let index = self.header.iter().position(|name| name == column);
        index.and_then(|index| self.record.get(index)).unwrap_or_default().trim()
    }

    fn number(&self, column: &'static str, what: &'static str) -> Result<Option<f64>, RowsError> {
        let text = self.text(column);
        if text.is_empty() {
            return Ok(None);
        }
        let number =
            text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0 && *number < 1e9);
        number.map(Some).ok_or_else(|| self.wrong(column, what))
    }

    fn count(&self, column: &'static str) -> Result<Option<u32>, RowsError> {
        Ok(self.number(column, "a count")?.map(|number| number as u32))
    }

    /// A degree of parallelism: 1 where it is empty or 0.
    fn degree(&self, column: &'static str) -> Result<u32, RowsError> {
        let what = "a degree of parallelism, at most 1,024";
        match self.number(column, what)? {
            Some(degree) if degree > MOST_PARALLEL => Err(self.wrong(column, what)),
            degree => Ok(degree.map_or(1, |degree| (degree as u32).max(1))),
        }
    }

    fn wrong(&self, column: &'static str, what: &'static str) -> RowsError {
        RowsError::Cell {
            line: self.record.position().map_or(0, csv::Position::line),
            column,
            value: self.text(column).into(),
            what,
        }
    }
}

fn row(cells: &Cells<'_>) -> Result<Result<Row, String>, RowsError> {
    let layout = Layout::read(cells)?;
    let positive = |column, number: Option<u32>| {
        number
            .filter(|number| (1..=MOST_TOKENS).contains(number))
            .ok_or_else(|| cells.wrong(column, "a count from 1 to 10,000,000"))
    };
    let prompt_tokens = positive("isl", cells.count("isl")?)?;
    let answer_tokens = positive("osl", cells.count("osl")?)?;
    let clients = match cells.number("concurrency", "a count")? {
        Some(clients) => Some(clients),
        None => cells.number("batch_size", "a count")?.map(|batch| batch * f64::from(layout.dp)),
    };
    let milliseconds = |column| cells.number(column, "milliseconds");
    let measured = match (milliseconds("ttft_ms")?, milliseconds("tpot_ms")?) {
        (Some(ttft), Some(tpot)) if ttft > 0.0 && tpot > 0.0 => Some((ttft * 1e-3, tpot * 1e-3)),
        _ => None,
    };
    if cells.text("mode") == "disagg" {
        return Ok(Err("prefill and decode on different GPUs are not modelled".into()));
    }
    let Some(clients) = clients.filter(|clients| *clients > 0.0) else {
        return Ok(Err("neither `concurrency` nor `batch_size` says how many clients there are".into()));
    };
    let catalog = Catalog::builtin();
    let (path, system) = (cells.text("model_path"), cells.text("system"));
    let Some(model) = catalog.model_of_path(path) else { return Ok(Err(format!("unknown model `{path}`"))) };
    let Ok(gpu) = catalog.gpu(&system.replace('_', "-")) else {
        return Ok(Err(format!("unknown system `{system}`")));
    };
    let Some(model) = at_precision(model, cells) else {
        return Ok(Err(format!("unknown precision `{}`", cells.text("precision"))));
    };
    let (backend, version) = (cells.text("backend"), cells.text("backend_version"));
    let Some(backend) = engine(backend, version) else {
        return Ok(Err(format!("unknown engine `{backend}`")));
    };
    let series = [cells.text("family"), path].into_iter().find(|name| !name.is_empty()).unwrap_or_default();
    let series = format!("{series} {system} {} {}", cells.text("backend"), cells.text("precision"));
    let setting = format!("{series} {version} {layout:?} {prompt_tokens} {answer_tokens} {clients}");
    Ok(Ok(Row {
        id: cells.text("id").into(),
        series,
        setting,
        config: layout.config(model, gpu, backend, prompt_tokens.saturating_add(answer_tokens)),
        load: ClosedLoop { prompt_tokens, answer_tokens, clients },
        measured,
    }))
}

fn engine(backend: &str, version: &str) -> Option<Engine> {
    match backend {
        "vllm" => Some(Engine::Vllm),
        "sglang" => Some(Engine::Sglang),
        "trtllm" if version.starts_with("1.0") || version.starts_with("0.") => Some(Engine::TrtLlm10),
        "trtllm" => Some(Engine::TrtLlm),
        _ => None,
    }
}

/// The model with the row's precision, and the cache that goes with it.
fn at_precision(model: &Model, cells: &Cells<'_>) -> Option<Model> {
    let name = [cells.text("precision"), cells.text("gemm_quant_mode")];
    let name = name.into_iter().find(|name| !name.is_empty()).unwrap_or("bf16");
    let precision = match name {
        "bf16" | "fp16" | "bfloat16" | "float16" => Precision::Bf16,
        name if name.starts_with("fp8") || name.starts_with("int8") || name.starts_with("w8a8") => {
            Precision::Fp8
        }
        name if name.starts_with("fp4") || name.starts_with("nvfp4") || name.starts_with("mxfp4") => {
            Precision::Nvfp4
        }
        name if name.starts_with("int4") || name.starts_with("w4a16") => Precision::Int4,
        _ => return None,
    };
    let mut model = model.clone();
    let only_experts =
        model.expert_precision.is_some() || (precision == Precision::Int4 && model.shape.moe.is_some());
    (model.precision, model.expert_precision) =
        if only_experts { (Precision::Bf16, Some(precision)) } else { (precision, None) };
    let narrow_cache = !only_experts && matches!(precision, Precision::Fp8 | Precision::Nvfp4);
    model.kv_bytes_per_element = if narrow_cache { 1 } else { 2 };
    Some(model)
}

/// How a deployment is divided over GPUs.
#[derive(Debug, Clone, Copy)]
struct Layout {
    tp: u32,
    pp: u32,
    dp: u32,
    ep: u32,
}

impl Layout {
    fn read(cells: &Cells<'_>) -> Result<Self, RowsError> {
        let (tp, pp) = (cells.degree("tp_size")?, cells.degree("pp_size")?);
        let stated_dp = match cells.text("attention_dp_size") {
            "" => None,
            _ => Some(cells.degree("attention_dp_size")?),
        };
        let (dp, moe_tp, ep) =
            (stated_dp.unwrap_or(1), cells.degree("moe_tp_size")?, cells.degree("moe_ep_size")?);
        let twice = moe_tp == ep && ep > 1;
        let experts = moe_tp.saturating_mul(ep);
        let (tp, dp, ep) = if twice && dp == 1 && tp == experts {
            (ep, 1, ep)
        } else if twice && dp == experts {
            (tp, ep, ep)
        } else if tp > 1 && tp == dp && ep == tp.saturating_mul(dp) {
            (tp, 1, tp)
        } else if tp > 8 {
            (1, tp, tp)
        } else if stated_dp.is_none() && experts > tp && experts <= 8 && experts.is_multiple_of(tp) {
            (tp, experts / tp, ep)
        } else {
            (tp, dp, ep)
        };
        Ok(Self { tp, pp, dp, ep })
    }

    fn config(self, model: Model, gpu: &Gpu, backend: Engine, longest: u32) -> ReplicaConfig {
        let engine = EngineFlags {
            gpu_memory_utilization: GPU_MEMORY_UTILIZATION,
            ..crate::default_engine(gpu, &model.shape, longest)
        };
        let Self { tp, pp, dp, ep } = self;
        ReplicaConfig {
            model,
            gpu: gpu.clone(),
            tp,
            pp,
            dp,
            ep: ep.min(tp * dp),
            backend,
            engine,
            speed: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(columns: &str) -> (u32, u32, u32, u32) {
        let text = format!(
            "id,model_path,system,backend,isl,osl,concurrency,tp_size,attention_dp_size,moe_tp_size,moe_ep_size\n\
             x,deepseek-ai/DeepSeek-R1,h200_sxm,trtllm,1024,1024,64,{columns}\n"
        );
        let (rows, skipped) = parse_rows(&text).unwrap();
        assert!(skipped.is_empty(), "{skipped:?}");
        let ReplicaConfig { tp, pp, dp, ep, .. } = rows[0].config;
        (tp, pp, dp, ep)
    }

    #[test]
    fn labels_that_count_gpus_twice_are_understood() {
        assert_eq!(layout("8,1,8,1"), (8, 1, 1, 1), "experts divided like all else");
        assert_eq!(layout("8,1,1,8"), (8, 1, 1, 8), "whole experts on ranks");
        assert_eq!(layout("1,8,1,8"), (1, 1, 8, 8), "every GPU attends for itself");
        assert_eq!(layout("64,1,8,8"), (8, 1, 1, 8), "TP × EP counted together");
        assert_eq!(layout("1,64,8,8"), (1, 1, 8, 8), "DP × EP counted together");
        assert_eq!(layout("8,8,1,64"), (8, 1, 1, 8), "TP and DP name the same GPUs");
    }

    #[test]
    fn what_cannot_be_computed_is_told() {
        let of = |values: &str| {
            let text = format!("id,model_path,system,backend,isl,osl,concurrency,tp_size,mode\nx,{values}\n");
            parse_rows(&text).map(|(_, skipped)| skipped.first().map(|it| it.why.clone()).unwrap_or_default())
        };
        assert_eq!(of("who/knows,h100_sxm,vllm,1,1,1,1,agg").unwrap(), "unknown model `who/knows`");
        assert_eq!(of("Qwen/Qwen3-32B,h99,vllm,1,1,1,1,agg").unwrap(), "unknown system `h99`");
        assert_eq!(of("Qwen/Qwen3-32B,h100_sxm,mlc,1,1,1,1,agg").unwrap(), "unknown engine `mlc`");
        assert!(of("Qwen/Qwen3-32B,h100_sxm,vllm,1,1,1,1,disagg").unwrap().contains("different GPUs"));
        assert!(of("Qwen/Qwen3-32B,h100_sxm,vllm,1,1,,1,agg").unwrap().contains("clients"));
        assert_eq!(of("Qwen/Qwen3-32B,h100_sxm,vllm,1,1,1,1,agg").unwrap(), "");
        for bad in ["0,1,1,1", "1,0,1,1", "x,1,1,1", "1,1,-1,1", "1,1,1,1e99"] {
            of(&format!("Qwen/Qwen3-32B,h100_sxm,vllm,{bad},agg")).unwrap_err();
        }
    }
}
