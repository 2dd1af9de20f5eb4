//! `boute catalog`.

use boute_spec::catalog::Catalog;
use comfy_table::{Table, presets};

use crate::failure::{Ending, Failure};
use crate::printer::Printer;

/// Lists what is built in, with sources.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which list.
    #[arg(value_enum)]
    list: List,
    /// Only rows in which some cell contains this text.
    filter: Option<String>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum List {
    /// GPU types with memory, bandwidth, compute and links.
    Gpus,
    /// Model shapes.
    Models,
    /// The default price of each GPU type and how it comes about.
    Prices,
}

pub(crate) fn run(args: &Args, printer: Printer) -> Result<Ending, Failure> {
    let (header, rows) = match args.list {
        List::Gpus => gpus(),
        List::Models => models(),
        List::Prices => prices(),
    };
    let wanted = args.filter.as_deref().unwrap_or_default().to_lowercase();
    let kept: Vec<_> =
        rows.into_iter().filter(|row| row.iter().any(|cell| cell.to_lowercase().contains(&wanted))).collect();
    let found = !kept.is_empty();
    if printer.json {
        let objects: Vec<serde_json::Map<_, _>> = kept
            .iter()
            .map(|row| {
                header.iter().map(|key| (*key).to_owned()).zip(row.iter().map(|cell| as_json(cell))).collect()
            })
            .collect();
        printer.data(&objects)?;
    } else if !found {
        printer.say(format_args!("nothing in this list holds `{wanted}`; without it, all of it is shown"));
    } else {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(header).add_rows(kept);
        printer.text(format_args!("{table}\n"));
    }
    Ok(if found { Ending::Done } else { Ending::Unmet })
}

/// Numbers as numbers, the rest as text.
fn as_json(cell: &str) -> serde_json::Value {
    match cell.parse::<f64>() {
        Ok(number) => serde_json::json!(number),
        Err(_) if cell.is_empty() => serde_json::Value::Null,
        Err(_) => serde_json::json!(cell),
    }
}

type Listing = (Vec<&'static str>, Vec<Vec<String>>);

fn gpus() -> Listing {
    let header = vec![
        "gpu",
        "memory_gib",
        "bandwidth_gb_per_s",
        "bf16_tflops",
        "fp8_tflops",
        "link_gb_per_s",
        "link",
        "gpus_per_node",
        "power_w",
        "source",
    ];
    let rows = Catalog::builtin().gpus().iter().map(|gpu| {
        vec![
            gpu.name.clone(),
            format!("{:.0}", gpu.memory_bytes.gib()),
            format!("{:.0}", gpu.bandwidth_bytes_per_s / 1e9),
            format!("{:.0}", gpu.bf16_flops / 1e12),
            gpu.fp8_flops.map(|flops| format!("{:.0}", flops / 1e12)).unwrap_or_default(),
            format!("{:.0}", gpu.link_bytes_per_s / 1e9),
            if gpu.nvlink { "NVLink" } else { "PCIe" }.into(),
            gpu.gpus_per_node.to_string(),
            format!("{:.0}", gpu.power_w),
            gpu.source.clone(),
        ]
    });
    (header, rows.collect())
}

fn models() -> Listing {
    let header =
        vec!["model", "dtype", "layers", "hidden", "heads", "kv_heads", "experts", "max_context", "weights"];
    let rows = Catalog::builtin().models().iter().map(|model| {
        let shape = &model.shape;
        vec![
            model.id.clone(),
            format!("{:?}", model.precision).to_lowercase(),
            shape.layers.to_string(),
            shape.hidden.to_string(),
            shape.heads.to_string(),
            shape.kv_heads.to_string(),
            shape.moe.as_ref().map(|moe| moe.experts.to_string()).unwrap_or_default(),
            shape.max_context.to_string(),
            model.weights.clone(),
        ]
    });
    (header, rows.collect())
}

fn prices() -> Listing {
    let catalog = Catalog::builtin();
    let rows = catalog.gpus().iter().filter_map(|gpu| {
        let price = catalog.default_price(&gpu.name, None)?;
        Some(vec![gpu.name.clone(), format!("{:.4}", price.usd_per_hour.get()), price.explanation])
    });
    (vec!["gpu", "usd_per_gpu_hour", "how"], rows.collect())
}
