//! What the market and the machines are like now, where the spec does not say it: prices from a file, GPUs that are lost.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::str::FromStr;

use boute_planner::Problem;
use boute_planner::moving::Terms;
use boute_spec::catalog::Catalog;
use boute_spec::digest::sha256_hex;
use boute_spec::units::{BytesPerSecond, Seconds, UsdPerHour};

use crate::failure::Failure;
use crate::files::Input;

/// A number of GPUs: `H100-SXM:2`.
#[derive(Debug, Clone)]
pub(crate) struct Gpus {
    gpu: String,
    count: u32,
}

impl FromStr for Gpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a number of GPUs: write it as `H100-SXM:2`");
        let (name, count) = text.trim().split_once(':').ok_or_else(wrong)?;
        let gpu = Catalog::builtin().gpu(name).map_err(|error| error.to_string())?.name.clone();
        Ok(Self { gpu, count: count.parse().map_err(|_| wrong())? })
    }
}

impl Gpus {
    /// All together, by type.
    pub(crate) fn by_type(all: &[Self]) -> BTreeMap<String, u32> {
        let mut sum = BTreeMap::new();
        for Self { gpu, count } in all {
            *sum.entry(gpu.clone()).or_default() += count;
        }
        sum
    }
}

/// What moving takes, and when it is worth it.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Moving to another fleet")]
pub(crate) struct MovingArgs {
    /// A move that saves must have paid for itself within this time.
    #[arg(long, value_name = "TIME", default_value = "4h")]
    horizon: Seconds,
    /// A move that saves must be better by this many per cent.
    #[arg(long, value_name = "PERCENT", default_value = "5", value_parser = per_cent)]
    least_gain: f64,
    /// How fast a node reads the weights of a replica (assumed).
    #[arg(long, value_name = "RATE", default_value = "2GB/s")]
    load: BytesPerSecond,
    /// Until a rented machine answers (assumed).
    #[arg(long, value_name = "TIME", default_value = "2min")]
    machine: Seconds,
    /// From loaded weights to the first answer (assumed).
    #[arg(long, value_name = "TIME", default_value = "1min")]
    warm_up: Seconds,
}

fn per_cent(text: &str) -> Result<f64, String> {
    let percent = text.parse().ok().filter(|percent: &f64| percent.is_finite() && *percent >= 0.0);
    percent.ok_or_else(|| "give per cent as a number from 0 on, such as `5`".into())
}

impl MovingArgs {
    pub(crate) fn terms(&self) -> Terms {
        Terms {
            machine_s: self.machine.get(),
            load_bytes_per_s: self.load.get().max(1.0),
            warm_up_s: self.warm_up.get(),
            horizon_h: self.horizon.get() / 3600.0,
            least_gain: self.least_gain / 100.0,
        }
    }
}

/// Takes over the prices in a file: lines `TYPE PRICE`, such as `H100-SXM $2.40/h`; `#` begins a comment.
pub(crate) fn apply_prices(problem: &mut Problem, path: &Path) -> Result<(), Failure> {
    let input = Input::read(path)?;
    problem.inputs.push(input.digest("prices file"));
    for (number, line) in (1..).zip(input.text.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let wrong = |what: &dyn std::fmt::Display| {
            let hint = "each line is a GPU type of the spec and its price: `H100-SXM $2.40/h`";
            Failure::input(format_args!("{}:{number}: {what}", input.name), hint)
        };
        let (name, price) = line.split_once(char::is_whitespace).ok_or_else(|| wrong(&"no price"))?;
        let price: UsdPerHour = price.trim().parse().map_err(|error| wrong(&error))?;
        let gpu = Catalog::builtin().gpu(name).map_err(|error| wrong(&error))?;
        let mut offers = problem.offers.iter_mut();
        let offer = offers.find(|offer| offer.gpu.name == gpu.name);
        offer.ok_or_else(|| wrong(&format_args!("`{name}` is not in the spec")))?.usd_per_gpu_hour =
            price.get();
    }
    Ok(())
}

/// By which prices and stock are known.
pub(crate) fn offers_digest(problem: &Problem) -> String {
    let mut text = String::new();
    for offer in &problem.offers {
        let _ = writeln!(text, "{} {} {:?}", offer.gpu.name, offer.usd_per_gpu_hour, offer.stock);
    }
    sha256_hex(text.as_bytes())
}
