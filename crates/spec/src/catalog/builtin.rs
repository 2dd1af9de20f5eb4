//! The catalogue compiled into the binary: `catalog/` in the repository.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

use super::{Gpu, InstancePrice, Model};
use crate::digest::sha256_hex;
use crate::units::UsdPerHour;

const GPUS: &str = include_str!("../../../../catalog/gpus.toml");
const MODELS: &str = include_str!("../../../../catalog/models.toml");
const PRICES: &str = include_str!("../../../../catalog/prices.csv");

/// Model id → its `config.json`.
const CONFIGS: &[(&str, &str)] = &[
    ("llama-3.1-8b", include_str!("../../../../catalog/models/llama-3.1-8b.json")),
    ("llama-3.1-70b", include_str!("../../../../catalog/models/llama-3.1-70b.json")),
    ("llama-3.1-405b", include_str!("../../../../catalog/models/llama-3.1-405b.json")),
    ("llama-3.3-70b", include_str!("../../../../catalog/models/llama-3.3-70b.json")),
    ("llama-3.2-1b", include_str!("../../../../catalog/models/llama-3.2-1b.json")),
    ("llama-3.2-3b", include_str!("../../../../catalog/models/llama-3.2-3b.json")),
    ("llama-2-7b", include_str!("../../../../catalog/models/llama-2-7b.json")),
    ("llama-2-70b", include_str!("../../../../catalog/models/llama-2-70b.json")),
    ("qwen2.5-3b", include_str!("../../../../catalog/models/qwen2.5-3b.json")),
    ("qwen2.5-7b", include_str!("../../../../catalog/models/qwen2.5-7b.json")),
    ("qwen2.5-14b", include_str!("../../../../catalog/models/qwen2.5-14b.json")),
    ("qwen2.5-32b", include_str!("../../../../catalog/models/qwen2.5-32b.json")),
    ("qwen2.5-72b", include_str!("../../../../catalog/models/qwen2.5-72b.json")),
    ("qwen3-0.6b", include_str!("../../../../catalog/models/qwen3-0.6b.json")),
    ("qwen3-8b", include_str!("../../../../catalog/models/qwen3-8b.json")),
    ("qwen3-14b", include_str!("../../../../catalog/models/qwen3-14b.json")),
    ("qwen3-32b", include_str!("../../../../catalog/models/qwen3-32b.json")),
    ("qwen3-30b-a3b", include_str!("../../../../catalog/models/qwen3-30b-a3b.json")),
    ("qwen3-235b-a22b", include_str!("../../../../catalog/models/qwen3-235b-a22b.json")),
    ("mistral-7b-v0.3", include_str!("../../../../catalog/models/mistral-7b-v0.3.json")),
    ("mistral-nemo", include_str!("../../../../catalog/models/mistral-nemo.json")),
    ("mixtral-8x7b", include_str!("../../../../catalog/models/mixtral-8x7b.json")),
    ("mixtral-8x22b", include_str!("../../../../catalog/models/mixtral-8x22b.json")),
    ("gemma-2-2b", include_str!("../../../../catalog/models/gemma-2-2b.json")),
    ("gemma-2-9b", include_str!("../../../../catalog/models/gemma-2-9b.json")),
    ("gemma-2-27b", include_str!("../../../../catalog/models/gemma-2-27b.json")),
    ("phi-3.5-mini", include_str!("../../../../catalog/models/phi-3.5-mini.json")),
    ("phi-4-mini", include_str!("../../../../catalog/models/phi-4-mini.json")),
    ("yi-34b", include_str!("../../../../catalog/models/yi-34b.json")),
    ("codellama-34b", include_str!("../../../../catalog/models/codellama-34b.json")),
    ("gpt-oss-20b", include_str!("../../../../catalog/models/gpt-oss-20b.json")),
    ("gpt-oss-120b", include_str!("../../../../catalog/models/gpt-oss-120b.json")),
    ("deepseek-v3", include_str!("../../../../catalog/models/deepseek-v3.json")),
    ("glm-5", include_str!("../../../../catalog/models/glm-5.json")),
    ("kimi-k2", include_str!("../../../../catalog/models/kimi-k2.json")),
    ("minimax-m2.5", include_str!("../../../../catalog/models/minimax-m2.5.json")),
    ("qwen3.5-27b", include_str!("../../../../catalog/models/qwen3.5-27b.json")),
    ("qwen3.5-397b-a17b", include_str!("../../../../catalog/models/qwen3.5-397b-a17b.json")),
    ("llama-4-scout", include_str!("../../../../catalog/models/llama-4-scout.json")),
];

/// A name that the catalogue does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {kind} `{name}`{}\n  help: `boute catalog {kind}s` lists all", did_you_mean(.near.as_deref()))]
pub struct UnknownName {
    /// `gpu` or `model`.
    pub kind: &'static str,
    /// What was asked for.
    pub name: String,
    /// The nearest known name, if one is near.
    pub near: Option<String>,
}

fn did_you_mean(near: Option<&str>) -> String {
    near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
}

/// The nearest of `known` to `name`, if near enough to be meant.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let lower = name.to_lowercase();
    known
        .map(|known| (strsim::damerau_levenshtein(&lower, &known.to_lowercase()), known))
        .min()
        .filter(|(distance, known)| *distance <= 1 + known.len() / 4)
        .map(|(_, known)| known.to_owned())
}

/// The default price of one GPU of a type, and how it comes about.
#[derive(Debug, Clone, PartialEq)]
pub struct DefaultPrice {
    /// Per GPU.
    pub usd_per_hour: UsdPerHour,
    /// Cloud → its list price per GPU (median over its instances and regions) and the latest date of these.
    pub clouds: BTreeMap<String, (UsdPerHour, String)>,
    /// In words.
    pub explanation: String,
}

/// GPUs, models and prices.
#[derive(Debug)]
pub struct Catalog {
    gpus: Vec<Gpu>,
    models: Vec<Model>,
    aliases: BTreeMap<String, usize>,
    prices: Vec<InstancePrice>,
    digest: String,
}

static BUILTIN: LazyLock<Catalog> = LazyLock::new(Catalog::read);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GpuFile {
    gpu: Vec<Gpu>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelFile {
    model: Vec<ModelRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelRow {
    id: String,
    #[serde(default)]
    aliases: Vec<String>,
    weights: String,
}

impl Catalog {
    /// The catalogue compiled in.
    pub fn builtin() -> &'static Self {
        &BUILTIN
    }

    /// # Panics
    /// If the files in `catalog/` are broken, which a test rules out.
    fn read() -> Self {
        let gpus: GpuFile = toml::from_str(GPUS).unwrap_or_else(|error| panic!("gpus.toml: {error}"));
        let rows: ModelFile = toml::from_str(MODELS).unwrap_or_else(|error| panic!("models.toml: {error}"));
        let mut aliases = BTreeMap::new();
        let mut models = Vec::new();
        for row in rows.model {
            let config = CONFIGS.iter().find(|(id, _)| *id == row.id).map_or("", |(_, config)| config);
            let model = Model::from_hf(&row.id, &row.weights, &row.id, config, None);
            aliases.extend(row.aliases.into_iter().map(|alias| (alias, models.len())));
            models.push(model.unwrap_or_else(|error| panic!("{error}")));
        }
        let digest = sha256_hex([GPUS, MODELS, PRICES].concat().as_bytes());
        Self { gpus: gpus.gpu, models, aliases, prices: price_rows(PRICES), digest }
    }

    /// All GPU types.
    pub fn gpus(&self) -> &[Gpu] {
        &self.gpus
    }

    /// All models.
    pub fn models(&self) -> &[Model] {
        &self.models
    }

    /// All price rows.
    pub fn prices(&self) -> &[InstancePrice] {
        &self.prices
    }

    /// SHA-256 of the GPU, model and price tables.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The GPU type called `name`, by its name or an alias, in any case.
    ///
    /// # Errors
    /// If there is none; with the nearest name.
    pub fn gpu(&self, name: &str) -> Result<&Gpu, UnknownName> {
        let is = |known: &str| known.eq_ignore_ascii_case(name);
        let known = || self.gpus.iter().flat_map(|gpu| std::iter::once(&gpu.name).chain(&gpu.aliases));
        self.gpus.iter().find(|gpu| is(&gpu.name) || gpu.aliases.iter().any(|alias| is(alias))).ok_or_else(
            || UnknownName {
                kind: "gpu",
                name: name.into(),
                near: nearest(name, known().map(String::as_str)),
            },
        )
    }

    /// The model that a path or Hugging Face id such as `nvidia/Llama-3.1-8B-Instruct-FP8` names: the longest id or alias
    /// with which its last part begins, whoever quantised or tuned it.
    pub fn model_of_path(&self, path: &str) -> Option<&Model> {
        let name = path.trim_end_matches('/').rsplit('/').next()?.to_lowercase();
        let name = name.trim_start_matches("meta-");
        let ids = self.models.iter().enumerate().map(|(index, model)| (model.id.as_str(), index));
        ids.chain(self.aliases.iter().map(|(alias, index)| (alias.as_str(), *index)))
            .filter(|(id, _)| {
                name.strip_prefix(id)
                    .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_alphanumeric()))
            })
            .max_by_key(|(id, _)| id.len())
            .map(|(_, index)| &self.models[index])
    }

    /// The model called `id`, by its id or an alias, in any case.
    ///
    /// # Errors
    /// If there is none; with the nearest id.
    pub fn model(&self, id: &str) -> Result<&Model, UnknownName> {
        let lower = id.to_lowercase();
        let alias = self.aliases.get(&lower).map(|index| &self.models[*index]);
        self.models.iter().find(|model| model.id == lower).or(alias).ok_or_else(|| {
            let known = self
                .models
                .iter()
                .map(|model| model.id.as_str())
                .chain(self.aliases.keys().map(String::as_str));
            UnknownName { kind: "model", name: id.into(), near: nearest(id, known) }
        })
    }

    /// The price of one GPU of type `gpu`: per cloud the median over its instances and regions of the on-demand list
    /// price per GPU, then the median over clouds. With `cloud`, that cloud alone. `None` if no price is known.
    pub fn default_price(&self, gpu: &str, cloud: Option<&str>) -> Option<DefaultPrice> {
        let gpu = &self.gpu(gpu).ok()?.name;
        let mut per_gpu: BTreeMap<&str, (Vec<f64>, &str)> = BTreeMap::new();
        let rows =
            self.prices.iter().filter(|row| row.gpu == *gpu && cloud.is_none_or(|cloud| cloud == row.cloud));
        for row in rows {
            let (prices, date) = per_gpu.entry(&row.cloud).or_default();
            prices.push(row.usd_per_hour.get() / f64::from(row.gpus));
            *date = (*date).max(row.date.as_str());
        }
        let clouds: BTreeMap<String, (UsdPerHour, String)> = per_gpu
            .into_iter()
            .filter_map(|(cloud, (prices, date))| {
                Some((cloud.to_owned(), (UsdPerHour::new(median(prices)?)?, date.to_owned())))
            })
            .collect();
        let usd_per_hour = UsdPerHour::new(median(clouds.values().map(|(price, _)| price.get()).collect())?)?;
        let list: Vec<_> = clouds
            .iter()
            .map(|(cloud, (price, date))| {
                let date = if date.is_empty() { String::new() } else { format!(" ({date})") };
                format!("{cloud} ${:.2}{date}", price.get())
            })
            .collect();
        let explanation = format!("{gpu}: {usd_per_hour} per GPU, median of {}", list.join(", "));
        Some(DefaultPrice { usd_per_hour, clouds, explanation })
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    (!values.is_empty()).then(|| crate::outcome::quantile(&values, 0.5))
}

/// # Panics
/// If a row of the compiled-in table is broken, which a test rules out.
fn price_rows(text: &str) -> Vec<InstancePrice> {
    text.lines()
        .skip(1)
        .map(|line| {
            let cells: Vec<&str> = line.split(',').collect();
            let [cloud, instance_type, gpu, gpus, price, spot, region, source, date] = cells[..] else {
                panic!("prices.csv: `{line}`")
            };
            let money = |text: &str| text.parse().ok().and_then(UsdPerHour::new);
            InstancePrice {
                cloud: cloud.into(),
                instance_type: instance_type.into(),
                gpu: gpu.into(),
                gpus: gpus.parse().unwrap_or_else(|error| panic!("prices.csv: `{line}`: {error}")),
                usd_per_hour: money(price).unwrap_or_else(|| panic!("prices.csv: `{line}`")),
                spot_usd_per_hour: money(spot),
                region: region.into(),
                source: source.into(),
                date: date.into(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_is_whole() {
        let catalog = Catalog::builtin();
        assert!(catalog.models().len() >= 30);
        for gpu in catalog.gpus() {
            assert!(gpu.memory_bytes.gib() >= 15.0 && gpu.bandwidth_bytes_per_s > 1e11, "{}", gpu.name);
            assert!(gpu.gpus_per_node >= 1 && gpu.bf16_flops > 1e13, "{}", gpu.name);
        }
        for row in catalog.prices() {
            catalog.gpu(&row.gpu).unwrap();
            assert!(row.gpus >= 1 && row.usd_per_hour.get() > 0.0, "{row:?}");
        }
        assert_eq!(catalog.gpu("h100").unwrap().name, "H100-SXM");
        assert_eq!(catalog.model("Llama-3.1-8B-Instruct").unwrap().id, "llama-3.1-8b");
    }

    #[test]
    fn parameters_are_those_of_the_name() {
        for (id, billions) in [
            ("llama-3.1-8b", 8.0),
            ("llama-3.1-70b", 70.6),
            ("deepseek-v3", 671.0),
            ("mixtral-8x7b", 46.7),
            ("qwen3-30b-a3b", 30.5),
            ("gemma-2-9b", 9.24),
            ("gpt-oss-120b", 116.8),
        ] {
            let parameters = Catalog::builtin().model(id).unwrap().shape.parameters();
            assert!((parameters / 1e9 / billions - 1.0).abs() < 0.02, "{id}: {parameters:.3e}");
        }
    }

    #[test]
    fn a_wrong_name_gets_the_nearest() {
        insta::assert_snapshot!(Catalog::builtin().gpu("H100-SMX").unwrap_err(), @r"
        unknown gpu `H100-SMX`; did you mean `H100-SXM`?
          help: `boute catalog gpus` lists all
        ");
        assert_eq!(Catalog::builtin().model("gpt-9").unwrap_err().near, None);
    }

    #[test]
    fn the_default_price_is_explained() {
        let price = Catalog::builtin().default_price("H100-SXM", None).unwrap();
        insta::assert_snapshot!(price.explanation, @"H100-SXM: $4.04/h per GPU, median of aws $6.88 (2026-07-20), azure $15.98 (2026-06-18), gcp $12.79 (2026-08-06), hyperstack $2.40, lambda $4.04, nebius $2.95, verda $2.29");
        assert_eq!(Catalog::builtin().default_price("h100", None), Some(price));
        assert!(Catalog::builtin().default_price("H100-SXM", Some("moon")).is_none());
    }
}
