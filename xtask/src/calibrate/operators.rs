//! Kernels: a few constants per GPU type and precision, fitted to measured operator tables.

use boute_perf::calibration::{Attention, ByPrecision, Fitted, Sends, System};
use boute_perf::fit::{Residual, Search, least_squares};
use boute_perf::kernels::{
    Collective, DecodeAttention, ExpertGemm, ExpertShape, Gemm, Hardware, Overlap, PrefillAttention, Send,
};
use boute_spec::catalog::{Catalog, Gpu};
use rayon::prelude::*;
use serde::Deserialize;

use super::Tables;

/// Points that a fit uses, at most: every n-th is taken.
const MOST_POINTS: usize = 6000;
/// Errors beyond this pull with constant force only.
const LOSS_SCALE: f64 = 0.2;
/// Matrices of language models are at least this wide on both sides.
const LEAST_WIDTH: f64 = 512.0;

/// The measured systems: name, GPU type of the catalogue, streaming multiprocessors.
const SYSTEMS: [(&str, &str, u32); 6] = [
    ("a100_sxm", "A100-80GB", 108),
    ("l40s", "L40S", 142),
    ("h100_sxm", "H100-SXM", 132),
    ("h200_sxm", "H200-SXM", 132),
    ("b200_sxm", "B200-SXM", 148),
    ("rtx_pro_6000_server", "RTX-PRO-6000", 188),
];

#[derive(Deserialize)]
struct GemmRow {
    system: String,
    gemm_dtype: String,
    m: f64,
    n: f64,
    k: f64,
    latency_ms: f64,
}

#[derive(Deserialize)]
struct ExpertRow {
    system: String,
    moe_dtype: String,
    num_tokens: f64,
    hidden_size: f64,
    inter_size: f64,
    topk: f64,
    num_experts: f64,
    moe_tp_size: f64,
    moe_ep_size: f64,
    latency_ms: f64,
}

#[derive(Deserialize)]
struct PrefillRow {
    system: String,
    batch_size: f64,
    input_len: f64,
    num_heads: f64,
    num_key_value_heads: f64,
    head_dim: u32,
    kv_cache_dtype: String,
    latency_ms: f64,
}

#[derive(Deserialize)]
struct DecodeRow {
    system: String,
    batch_size: f64,
    num_heads: f64,
    num_key_value_heads: f64,
    head_dim: u32,
    kv_cache_dtype: String,
    context_len: f64,
    latency_ms: f64,
}

#[derive(Deserialize)]
struct ReduceRow {
    system: String,
    num_gpus: u32,
    message_size: f64,
    latency_ms: f64,
    /// Of the engine's own kernel: launched from a CUDA graph, or eagerly.
    #[serde(default)]
    backend: String,
    /// Of NCCL.
    #[serde(default)]
    op_name: String,
    #[serde(default)]
    nccl_dtype: String,
}

#[derive(Deserialize)]
struct SendRow {
    system: String,
    devices_per_node: u32,
    size_bytes: f64,
    median_ms: f64,
}

/// What is fitted to operator tables.
pub(crate) struct Kernels {
    pub(crate) systems: Vec<System>,
    pub(crate) send: Sends,
}

impl Kernels {
    /// Fits all.
    pub(crate) fn fit(tables: &Tables) -> Result<Self, String> {
        Ok(Self { systems: systems(tables)?, send: sends(tables)? })
    }
}

fn systems(tables: &Tables) -> Result<Vec<System>, String> {
    let by_system = OperatorTables::read(tables)?;
    SYSTEMS
        .par_iter()
        .map(|(name, gpu, sms)| {
            let gpu = Catalog::builtin().gpu(gpu).map_err(|error| error.to_string())?;
            by_system.system(name, gpu, *sms)
        })
        .collect()
}

struct OperatorTables {
    gemm: Vec<GemmRow>,
    experts: Vec<ExpertRow>,
    prefill: Vec<PrefillRow>,
    decode: Vec<DecodeRow>,
    all_reduce: Vec<ReduceRow>,
    nccl: Vec<ReduceRow>,
}

impl OperatorTables {
    fn read(tables: &Tables) -> Result<Self, String> {
        Ok(Self {
            gemm: tables.rows("aic_gemm.csv.gz")?,
            experts: tables.rows("aic_moe.csv.gz")?,
            prefill: tables.rows("aic_attention_context.csv.gz")?,
            decode: tables.rows("aic_attention_generation.csv.gz")?,
            all_reduce: tables.rows("aic_allreduce_vllm.csv.gz")?,
            nccl: tables.rows("aic_nccl.csv.gz")?,
        })
    }

    fn system(&self, name: &str, gpu: &Gpu, sms: u32) -> Result<System, String> {
        let on = |peak_flops: Option<f64>| {
            peak_flops.map(|peak_flops| Hardware {
                peak_flops,
                bandwidth_bytes_per_s: gpu.bandwidth_bytes_per_s,
                sms: f64::from(sms),
            })
        };
        let wide = on(Some(gpu.bf16_flops));
        let required = |what: &str| format!("`{name}` has no measurements of {what}");
        let gemm = |dtype, hardware: Option<Hardware>, bytes| self.gemm(name, dtype, hardware?, bytes);
        let experts = |dtype, hardware: Option<Hardware>, bytes| self.experts(name, dtype, hardware?, bytes);
        let decode =
            |head_dim, dtype, bytes| self.decode(name, head_dim, dtype, bytes, gpu.bandwidth_bytes_per_s);
        let nccl = |operation: &str, seconds| {
            collectives(&self.nccl, seconds, |row| {
                row.system == name && row.op_name == operation && row.nccl_dtype == "half"
            })
        };
        Ok(System {
            name: name.into(),
            gpu: gpu.name.clone(),
            sms,
            gemm: ByPrecision {
                bf16: gemm("bfloat16", wide, 2.0).ok_or_else(|| required("bf16 products"))?,
                fp8: gemm("fp8", on(gpu.fp8_flops), 1.0),
                fp4: gemm("nvfp4", on(gpu.fp4_flops), 0.5625),
                weight_only: None,
            },
            experts: ByPrecision {
                bf16: experts("bfloat16", wide, 2.0).ok_or_else(|| required("bf16 experts"))?,
                fp8: experts("fp8_block", on(gpu.fp8_flops), 1.0)
                    .or_else(|| experts("fp8", on(gpu.fp8_flops), 1.0)),
                fp4: experts("nvfp4", on(gpu.fp4_flops), 0.5625),
                weight_only: experts("w4a16_mxfp4", wide, 0.531_25),
            },
            attention: Attention {
                decode_bf16: decode(128, "bfloat16", 2.0).ok_or_else(|| required("decode attention"))?,
                decode_fp8: decode(128, "fp8", 1.0),
                decode_bf16_64: decode(64, "bfloat16", 2.0),
                decode_fp8_64: decode(64, "fp8", 1.0),
                prefill: wide
                    .and_then(|on| self.prefill(name, 128, &on))
                    .ok_or_else(|| required("prefill attention"))?,
                prefill_64: wide.and_then(|on| self.prefill(name, 64, &on)),
            },
            all_reduce: collectives(&self.all_reduce, Collective::reduce_s, |row| {
                row.system == name && row.backend == "vllm_graph"
            })
            .ok_or_else(|| required("all-reduce"))?,
            nccl: nccl("all_reduce", Collective::reduce_s).ok_or_else(|| required("NCCL's all-reduce"))?,
            exchange: nccl("alltoall", Collective::exchange_s)
                .ok_or_else(|| required("NCCL's all-to-all"))?,
        })
    }

    fn gemm(&self, system: &str, dtype: &str, on: Hardware, bytes: f64) -> Option<Fitted<Gemm>> {
        let points = thinned(self.gemm.iter().filter(|row| {
            row.system == system && row.gemm_dtype == dtype && row.n >= LEAST_WIDTH && row.k >= LEAST_WIDTH
        }));
        let of = |p: &[f64]| Gemm {
            mfu: p[0],
            bandwidth: p[1],
            t0_us: p[2],
            overlap: overlap(p[3], p[4]),
            quantise: if bytes < 2.0 { p[5] } else { 0.0 },
            waste: p[6],
        };
        let search = Search::new(
            vec![0.7, 0.8, 4.0, 0.1, 0.3, 1.0, 0.5],
            vec![0.2, 0.3, 0.5, 0.0, 0.0, 0.0, 0.0],
            vec![1.0, 1.0, 20.0, 1.0, 1.0, 6.0, 1.0],
        );
        fitted(&points, &search, of, |gemm, row| gemm.matrix(&on, row.k, row.n, bytes).cost(row.m).total_s())
    }

    fn experts(&self, system: &str, dtype: &str, on: Hardware, bytes: f64) -> Option<Fitted<ExpertGemm>> {
        let points =
            thinned(self.experts.iter().filter(|row| row.system == system && row.moe_dtype == dtype));
        let of = |p: &[f64]| ExpertGemm {
            mfu: p[0],
            bandwidth: p[1],
            t0_us: p[2],
            overlap: overlap(p[3], p[4]),
            touch: p[5],
            skew: p[6],
            traffic: p[7],
        };
        let search = Search::new(
            vec![0.5, 0.7, 40.0, 0.1, 0.3, 0.7, 0.5, 2.0],
            vec![0.1, 0.2, 1.0, 0.0, 0.0, 0.1, 0.0, 0.0],
            vec![1.0, 1.0, 200.0, 1.0, 1.0, 1.0, 6.0, 20.0],
        );
        fitted(&points, &search, of, |experts, row| {
            let shape = ExpertShape {
                hidden: row.hidden_size,
                ffn: row.inter_size / row.moe_tp_size,
                experts: row.num_experts,
                used: row.topk,
                ranks: row.moe_ep_size,
            };
            experts.experts(&on, &shape, bytes).cost(row.num_tokens).total_s()
        })
    }

    fn decode(
        &self,
        system: &str,
        head_dim: u32,
        dtype: &str,
        element_bytes: f64,
        bandwidth_bytes_per_s: f64,
    ) -> Option<Fitted<DecodeAttention>> {
        let points =
            thinned(self.decode.iter().filter(|row| {
                row.system == system && row.head_dim == head_dim && row.kv_cache_dtype == dtype
            }));
        let of = |p: &[f64]| DecodeAttention { bandwidth: p[0], t0_us: p[1], head_ns: p[2] };
        let search = Search::new(vec![0.8, 10.0, 1.0], vec![0.1, 0.5, 0.0], vec![1.0, 40.0, 50.0]);
        fitted(&points, &search, of, |attention, row| {
            let per_token = 2.0 * row.num_key_value_heads * f64::from(head_dim) * element_bytes;
            let cache = row.batch_size * row.context_len * per_token;
            attention.seconds(row.batch_size, row.num_heads, cache, bandwidth_bytes_per_s)
        })
    }

    fn prefill(&self, system: &str, head_dim: u32, on: &Hardware) -> Option<Fitted<PrefillAttention>> {
        let points = thinned(self.prefill.iter().filter(|row| {
            row.system == system && row.head_dim == head_dim && row.kv_cache_dtype == "bfloat16"
        }));
        let of = |p: &[f64]| PrefillAttention { mfu: p[0], t0_us: p[1], traffic: p[2] };
        let search = Search::new(vec![0.5, 15.0, 1.0], vec![0.1, 0.5, 0.0], vec![1.0, 60.0, 20.0]);
        fitted(&points, &search, of, |attention, row| {
            let width = f64::from(head_dim);
            let flops = 2.0 * row.batch_size * row.input_len * row.input_len * row.num_heads * width;
            let moved = 4.0 * width * (row.num_heads + row.num_key_value_heads);
            attention.seconds(on, flops, moved * row.batch_size * row.input_len)
        })
    }
}

/// Whatever is not serial blends at most.
fn overlap(serial: f64, share: f64) -> Overlap {
    Overlap { serial, blend: (1.0 - serial) * share }
}

/// Collectives over 2, 4 and 8 GPUs.
fn collectives(
    rows: &[ReduceRow],
    seconds: fn(&Collective, f64, f64) -> f64,
    keep: impl Fn(&ReduceRow) -> bool,
) -> Option<[Fitted<Collective>; 3]> {
    let of = |p: &[f64]| Collective { alpha_us: p[0], bus_gb_per_s: p[1] };
    let fit = |gpus: u32| {
        let points: Vec<&ReduceRow> = rows.iter().filter(|row| row.num_gpus == gpus && keep(row)).collect();
        let search = Search::new(vec![10.0, 100.0], vec![1.0, 0.5], vec![60.0, 900.0]);
        // The tables count 16-bit elements.
        fitted(&points, &search, of, |collective, row| {
            seconds(collective, f64::from(gpus), 2.0 * row.message_size)
        })
    };
    Some([fit(2)?, fit(4)?, fit(8)?])
}

/// Sends between two GPUs of a node, and of two nodes: what A100 and H100 have in common.
fn sends(tables: &Tables) -> Result<Sends, String> {
    let rows: Vec<SendRow> = tables.rows("vidur_send_recv.csv.gz")?;
    let gpu = |row: &SendRow| {
        Catalog::builtin().gpu(if row.system.starts_with("a100") { "A100-80GB" } else { "H100-SXM" })
    };
    let of = |p: &[f64]| Send { alpha_us: p[0], link_share: p[1] };
    let fit = |devices_per_node: u32| {
        let points = thinned(rows.iter().filter(|row| row.devices_per_node == devices_per_node));
        let search = Search::new(vec![10.0, 0.6], vec![1.0, 0.05], vec![60.0, 1.0]);
        fitted(&points, &search, of, |send, row| {
            let link = gpu(row).map_or(f64::NAN, |gpu| {
                if devices_per_node > 1 { gpu.link_bytes_per_s } else { gpu.network_bytes_per_s }
            });
            send.seconds(row.size_bytes, link)
        })
        .ok_or_else(|| "no measurements of sends".to_owned())
    };
    Ok(Sends { in_node: fit(2)?, across_nodes: fit(1)? })
}

fn thinned<'a, T>(rows: impl Iterator<Item = &'a T>) -> Vec<&'a T> {
    let rows: Vec<&T> = rows.collect();
    let step = rows.len().div_ceil(MOST_POINTS).max(1);
    rows.into_iter().step_by(step).collect()
}

/// The constants with the least robust log error, and their mean relative error; `None` without points.
fn fitted<R: Measured, T: Copy>(
    points: &[&R],
    search: &Search,
    of: impl Fn(&[f64]) -> T,
    seconds: impl Fn(&T, &R) -> f64,
) -> Option<Fitted<T>> {
    if points.is_empty() {
        return None;
    }
    let found = least_squares(search, LOSS_SCALE, |p, out| {
        let constants = of(p);
        let error = |row: &R| (seconds(&constants, row) / row.seconds()).ln();
        out.extend(points.iter().map(|row| Residual { value: error(row), weight: 1.0, block: 0 }));
    });
    let constants = of(&found.iter().map(|x| rounded(*x)).collect::<Vec<_>>());
    let errors = points.iter().map(|row| (seconds(&constants, row) / row.seconds() - 1.0).abs());
    let error = rounded(errors.sum::<f64>() / points.len() as f64);
    Some(Fitted { constants, error })
}

/// To four digits: what the file says is what is used.
pub(super) fn rounded(x: f64) -> f64 {
    if x == 0.0 { 0.0 } else { format!("{x:.3e}").parse().unwrap_or(x) }
}

trait Measured {
    fn seconds(&self) -> f64;
}

macro_rules! measured {
    ($($row:ty),*) => {$(
        impl Measured for $row {
            fn seconds(&self) -> f64 {
                self.latency_ms * 1e-3
            }
        }
    )*};
}
measured!(GemmRow, ExpertRow, PrefillRow, DecodeRow, ReduceRow);

impl Measured for SendRow {
    fn seconds(&self) -> f64 {
        self.median_ms * 1e-3
    }
}
