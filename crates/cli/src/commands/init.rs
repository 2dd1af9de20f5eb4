//! `boute init`.

use std::fs;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use boute_spec::parse::parse_spec;

use crate::bundled;
use crate::commands::schema;
use crate::failure::{Ending, Failure};
use crate::files::write_whole;
use crate::printer::Printer;

const TEMPLATE: &str = include_str!("init/boute.yaml");
const README: &str = include_str!("init/README.md");

/// Starts a spec: `boute.yaml` with a comment at every key, a JSON schema for editors, and real traffic and quality data to
/// try it with at once. On a terminal it asks what is not given.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder to write to; made if it is not there.
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// What the fleet will do; asked for on a terminal.
    #[arg(long, value_enum)]
    preset: Option<Preset>,
    /// Requests per second it should carry, such as "20 req/s".
    #[arg(long)]
    rate: Option<String>,
    /// Most rent, such as '$80/h'.
    #[arg(long)]
    budget: Option<String>,
    /// Write over files that are there.
    #[arg(long)]
    force: bool,
}

/// What a fleet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Preset {
    /// Conversations: middling prompts and answers, the first token counts.
    Chat,
    /// Answers from documents: prompts of many thousand tokens.
    Rag,
    /// Code completion: long prompts, short answers, quickly.
    Code,
    /// Agents: bursts of calls that wait for each other.
    Agents,
}

/// What is bundled for a preset.
struct Kit {
    about: &'static str,
    trace: Bundled,
    quality: Bundled,
    rate: &'static str,
    slo: &'static str,
}

/// A data file that is compiled in.
#[derive(Clone, Copy)]
struct Bundled {
    name: &'static str,
    about: &'static str,
    bytes: &'static [u8],
}

const CONVERSATION: Bundled = Bundled {
    name: "azure2023_conv.csv.gz",
    about: "an hour of an Azure chat service",
    bytes: bundled::CONVERSATION,
};
const CODE: Bundled = Bundled {
    name: "azure2023_code.csv.gz",
    about: "an hour of an Azure code service",
    bytes: include_bytes!("../../../../examples/data/azure2023_code.csv.gz"),
};
const LONG_PROMPTS: Bundled = Bundled {
    name: "mooncake_conversation.csv.gz",
    about: "an hour of Kimi, whose users bring documents",
    bytes: include_bytes!("../../../../grids/data/mooncake_conversation.csv.gz"),
};
const BURSTS: Bundled = Bundled {
    name: "bursts.csv.gz",
    about: "lengths of an Azure chat service, arrivals in bursts",
    bytes: include_bytes!("../../../../grids/data/bursts.csv.gz"),
};
const KNOWLEDGE: Bundled = Bundled {
    name: "mmlu_pro_llama.jsonl.gz",
    about: "MMLU-Pro, exam questions of many fields",
    bytes: bundled::KNOWLEDGE,
};
const REASONING: Bundled = Bundled {
    name: "zeroeval.jsonl.gz",
    about: "GSM8K, MATH and what programs print (CRUXEval)",
    bytes: include_bytes!("../../../../grids/data/zeroeval.jsonl.gz"),
};

impl Preset {
    const ALL: [Self; 4] = [Self::Chat, Self::Rag, Self::Code, Self::Agents];

    const fn kit(self) -> Kit {
        match self {
            Self::Chat => Kit {
                about: "chat: conversations; the first token counts",
                trace: CONVERSATION,
                quality: KNOWLEDGE,
                rate: "10 req/s",
                slo: "{ttft_p95: 2s, e2e_p95: 30s}",
            },
            Self::Rag => Kit {
                about: "rag: answers from documents; prompts of many thousand tokens",
                trace: LONG_PROMPTS,
                quality: KNOWLEDGE,
                rate: "2 req/s",
                slo: "{ttft_p95: 8s, e2e_p95: 60s}",
            },
            Self::Code => Kit {
                about: "code: completion; long prompts, short answers, quickly",
                trace: CODE,
                quality: REASONING,
                rate: "4 req/s",
                slo: "{ttft_p95: 2s, e2e_p95: 10s}",
            },
            Self::Agents => Kit {
                about: "agents: calls in bursts; whole answers count",
                trace: BURSTS,
                quality: REASONING,
                rate: "10 req/s",
                slo: "{tpot_p95: 100ms, e2e_p95: 30s}",
            },
        }
    }
}

pub(crate) fn run(args: &Args, printer: Printer) -> Result<Ending, Failure> {
    let asks = std::io::stdin().is_terminal() && std::io::stderr().is_terminal() && !printer.quiet;
    let preset = match args.preset {
        Some(preset) => preset,
        None if asks => ask_preset(printer)?,
        None => {
            return Err(Failure::input("no preset was chosen", "give one: `--preset chat|rag|code|agents`"));
        }
    };
    let kit = preset.kit();
    // Whoever gave a preset on the command line has said enough.
    let asks = asks && args.preset.is_none();
    let choose = |given: &Option<String>, question: &str, usual: &str| match given {
        Some(given) => Ok(given.clone()),
        None if asks => ask(printer, question, usual),
        None => Ok(usual.to_owned()),
    };
    let rate = choose(&args.rate, "Requests per second it should carry", kit.rate)?;
    let budget = choose(&args.budget, "Most rent", "$100/h")?;
    // No rent begins like this, but what a shell leaves of one does.
    if let Some(budget) = args.budget.as_ref().filter(|budget| budget.starts_with(['0', '/'])) {
        return Err(Failure::input(
            format_args!("`--budget {budget}` is no rent"),
            "in double quotes a shell takes `$8` for a name of its own: write `--budget '$80/h'`",
        ));
    }
    let spec = fill(&kit, &rate, &budget);
    // What was typed is judged where it will stand.
    parse_spec("boute.yaml", &spec).map_err(Failure::told)?;
    let schema = schema::text()?;
    let files: [(&str, &[u8]); 5] = [
        ("boute.yaml", spec.as_bytes()),
        ("boute.schema.json", schema.as_bytes()),
        (&format!("data/{}", kit.trace.name), kit.trace.bytes),
        (&format!("data/{}", kit.quality.name), kit.quality.bytes),
        ("data/README.md", README.as_bytes()),
    ];
    let paths: Vec<PathBuf> = files.iter().map(|(name, _)| args.folder.join(name)).collect();
    if !args.force
        && let Some(there) = paths.iter().find(|path| path.exists())
    {
        return Err(Failure::input(
            format_args!("`{}` is there already", there.display()),
            "give another folder, or `--force` to write over it",
        ));
    }
    let data = args.folder.join("data");
    fs::create_dir_all(&data).map_err(|error| Failure::unwritable(&data, &error))?;
    for (path, (_, contents)) in paths.iter().zip(files) {
        write_whole(path, contents)?;
        printer.say(format_args!("wrote {}", path.display()));
    }
    printer.data(&serde_json::json!({ "files": paths }))?;
    printer.say(next(&paths[0]));
    Ok(Ending::Done)
}

fn fill(kit: &Kit, rate: &str, budget: &str) -> String {
    TEMPLATE
        .replace("{about}", kit.about)
        .replace("{trace}", kit.trace.name)
        .replace("{trace about}", kit.trace.about)
        .replace("{quality}", kit.quality.name)
        .replace("{quality about}", kit.quality.about)
        .replace("{rate}", rate)
        .replace("{slo}", kit.slo)
        .replace("{budget}", budget)
}

fn next(spec: &Path) -> String {
    let (spec, plan) = (spec.display(), spec.with_file_name("plan.json").display().to_string());
    format!(
        "\nNext: boute plan {spec} -o {plan}\n\
         It plans as it stands. Then put in your own models, GPUs with prices and stock, trace and quality data."
    )
}

fn ask_preset(printer: Printer) -> Result<Preset, Failure> {
    printer.say("What will the fleet do?");
    for (index, preset) in Preset::ALL.iter().enumerate() {
        printer.say(format_args!("  {}  {}", index + 1, preset.kit().about));
    }
    loop {
        let answer = ask(printer, "Number", "1")?;
        let chosen = answer.parse::<usize>().ok().and_then(|number| Preset::ALL.get(number.wrapping_sub(1)));
        if let Some(preset) = chosen {
            return Ok(*preset);
        }
        printer.say("there are 1 to 4");
    }
}

/// One line from the terminal; `usual` if it is empty.
fn ask(printer: Printer, question: &str, usual: &str) -> Result<String, Failure> {
    printer.ask(format_args!("{question} [{usual}]: "));
    let _ = std::io::stderr().flush();
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(Failure::unexpected)?;
    if line.is_empty() {
        return Err(Failure::input("the questions were not answered", "give `--preset` to be asked nothing"));
    }
    let answer = line.trim();
    Ok(if answer.is_empty() { usual.to_owned() } else { answer.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_a_spec_with_nothing_left_to_fill_in() {
        for preset in Preset::ALL {
            let kit = preset.kit();
            let text = fill(&kit, kit.rate, "$100/h");
            assert!(
                !text.contains("{trace") && !text.contains("{quality") && !text.contains("about}"),
                "{text}"
            );
            let spec = parse_spec("boute.yaml", &text).unwrap();
            assert_eq!(spec.traffic.trace, format!("data/{}", kit.trace.name));
            assert!(README.contains(kit.trace.name) && README.contains(kit.quality.name), "licences");
        }
    }
}
