//! Runs the commands of README and `docs/` as a reader would: page by page, line by line, each with what those before it left.
//!
//! A page starts in a copy of the folder that the README's commands leave. Files and engines of the reader's own are stood in for
//! ([`FILES`], [`ENGINES`]); what cannot be run is in [`LEFT_OUT`] with the reason, and still parsed by a test in `crates/cli/src/docs.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::tidy::read;
use crate::unpacked;

/// Commands that begin with or hold this are not run.
const LEFT_OUT: [(&str, &str); 7] = [
    ("cargo ", "builds this repository, as the rest of CI does"),
    ("pip ", "packaging/try-wheel.sh does it"),
    ("docker ", "needs a Docker daemon"),
    ("kubectl ", "needs a cluster"),
    ("examples/autopilot-k8s.sh ", "needs a cluster"),
    ("PLAN=", "needs engines on all hosts; a test of `boute` starts them"),
    ("--grid ", "takes many minutes"),
];

/// Commands that would take minutes or never end, and the option that shortens them.
const SHORTENED: [(&str, &str); 2] =
    [("boute profile ", " --seconds 6"), ("boute autopilot plan.json --decisions ", " --once")];

/// Where a stand-in for a file of the reader's own is from.
enum Stands {
    Text(&'static str),
    /// A file of this repository, unpacked.
    File(&'static str),
    Made(fn() -> String),
}

/// Files that a reader brings, where no command before has made them.
const FILES: [(&str, Stands); 12] = [
    ("trace.csv", Stands::Made(trace)),
    ("recent.csv", Stands::Made(trace)),
    ("quality.jsonl", Stands::File("examples/data/mmlu_pro_llama.jsonl.gz")),
    ("prompts.jsonl", Stands::Made(prompts)),
    ("models/small/config.json", Stands::File("catalog/models/llama-3.1-8b.json")),
    ("rows.csv", Stands::Text(ROWS)),
    ("step.json", Stands::Text(r#"{"basis": ["1", "T", "D>0"], "seconds": [0.01, 0.00001, 0.001]}"#)),
    ("requests.csv", Stands::Text("arrival_s,prefill_tokens,decode_tokens\n0,1000,3\n0.005,10,2\n")),
    ("replicas.txt", Stands::Text("llama-3.1-8b=http://10.0.0.5:8001\nllama-3.1-70b=http://10.0.0.6:8001\n")),
    ("prices.txt", Stands::Text("H100-SXM $2.40/h\n")),
    ("start.sh", Stands::Text("true\n")),
    (
        "space.json",
        Stands::Text(
            r#"{"space": [{"name": "x", "type": "real", "low": 0, "high": 1}], "objectives": ["f"]}"#,
        ),
    ),
];
const ROWS: &str = "id,model_path,system,backend,precision,isl,osl,concurrency,tp_size
a,meta-llama/Llama-3.1-8B,h100_sxm,vllm,fp8,1024,256,16,1
";

/// What stands at the addresses of the pages: an engine as fast as it would be, to be profiled, two that are faster, to be asked
/// much, and one with a model of the reader's own.
const ENGINES: [(&str, &[&str]); 4] = [
    ("mock --model llama-3.1-8b --gpu L40S", &["127.0.0.1:8000"]),
    ("mock --model llama-3.1-8b --gpu L40S --time-scale 1000", &["10.0.0.5:8001", "small.llm:8000"]),
    (
        "mock --model llama-3.1-70b --gpu H200-SXM --tp 4 --time-scale 1000",
        &["10.0.0.6:8000", "10.0.0.6:8001", "10.0.0.7:8000", "large.llm:8000"],
    ),
    (
        "serve --replica llama-3.1-8b=http://10.0.0.5:8001 --alias small=llama-3.1-8b",
        &["10.0.0.5:8000", "127.0.0.1:8001"],
    ),
];

/// What a page's Python may call.
const PYTHON: &str = "def measure(x):
    return 0.1 + 1 / x['max_num_seqs'], 100 * x['max_num_seqs'] ** 0.5, 10 - 10 * x['gpu_memory_utilization']
";

/// Longest that a command may take.
const PATIENCE: Duration = Duration::from_mins(10);
/// Fewer commands than this cannot be all of the documentation.
const LEAST: usize = 60;

/// Runs every page with the binary `boute`; `demo` is a folder that `boute demo` has made, so that it is not run again.
pub(crate) fn run(root: &Path, boute: &Path, demo: Option<&Path>) -> Result<(), String> {
    let started = Instant::now();
    let folder = std::env::temp_dir().join(format!("boute-docs-{}", std::process::id()));
    let mut reader = Reader::new(root, boute, demo, folder.clone())?;
    let mut pages = vec![root.join("README.md"), root.join("docs/tour.md")];
    pages.extend(markdown(&root.join("docs/howto")));
    pages.extend(markdown(&root.join("docs")).into_iter().filter(|page| !page.ends_with("tour.md")));
    for page in &pages {
        println!("\n{}", page.strip_prefix(root).unwrap_or(page).display());
        reader.page(page)?;
    }
    drop(reader.background);
    let _ = fs::remove_dir_all(folder);
    println!(
        "\n{} commands run, {} failed, {:.0} s; left out:",
        reader.run,
        reader.failed.len(),
        started.elapsed().as_secs_f64()
    );
    for (reason, count) in &reader.left_out {
        println!("  {count:3}  {reason}");
    }
    match reader.failed.as_slice() {
        [] if reader.run < LEAST => Err(format!("only {} commands were found", reader.run)),
        [] => Ok(()),
        failed => Err(failed.join("\n")),
    }
}

/// The pages in a folder, by name.
fn markdown(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let pages: BTreeSet<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect();
    pages.into_iter().collect()
}

/// A child that is ended with its owner.
struct Background(Child);

impl Background {
    /// Waits until it listens; no longer than it lives.
    fn listens(&mut self, address: &str) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE && matches!(self.0.try_wait(), Ok(None)) {
            if TcpStream::connect(address).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Reader<'a> {
    root: &'a Path,
    demo: Option<&'a Path>,
    /// All files of this run.
    folder: PathBuf,
    /// Where the reader is.
    at: PathBuf,
    /// Address in a page → address here.
    addresses: BTreeMap<&'static str, String>,
    path: String,
    background: Vec<Background>,
    /// What the page has running.
    serving: Option<Background>,
    seen: BTreeSet<String>,
    run: usize,
    failed: Vec<String>,
    left_out: BTreeMap<&'static str, usize>,
}

impl<'a> Reader<'a> {
    fn new(root: &'a Path, boute: &Path, demo: Option<&'a Path>, folder: PathBuf) -> Result<Self, String> {
        let boute = boute.canonicalize().map_err(|error| format!("{}: {error}", boute.display()))?;
        let bin = folder.join("bin");
        fs::create_dir_all(&bin).and_then(|()| fs::copy(&boute, bin.join("boute"))).map_err(text)?;
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        let mut reader = Self {
            root,
            demo,
            at: folder.join("first"),
            folder,
            addresses: BTreeMap::new(),
            path,
            background: Vec::new(),
            serving: None,
            seen: BTreeSet::new(),
            run: 0,
            failed: Vec::new(),
            left_out: BTreeMap::new(),
        };
        fs::create_dir_all(&reader.at).map_err(text)?;
        for (engine, addresses) in ENGINES {
            let here = free_address()?;
            let mut server = reader.spawn(&format!("exec boute -q {engine} --listen {here}"))?;
            if !server.listens(&here) {
                return Err(format!("`boute {engine}` did not start"));
            }
            reader.background.push(server);
            reader.addresses.extend(addresses.iter().map(|there| (*there, here.clone())));
        }
        for there in ["127.0.0.1:8080", "127.0.0.1:8081"] {
            reader.addresses.insert(there, free_address()?);
        }
        Ok(reader)
    }

    fn page(&mut self, page: &Path) -> Result<(), String> {
        let first = page.ends_with("README.md") && page.parent() == Some(self.root);
        if !first {
            let here = self.folder.join(page.file_stem().unwrap_or_default());
            copy(&self.folder.join("left"), &here).map_err(text)?;
            self.at = here;
        }
        for (language, block) in blocks(&read(page)) {
            match language.as_str() {
                "sh" => self.lines(&block)?,
                "python" => self.python(&block)?,
                "yaml" => self.yaml(&block)?,
                "json" => self.json(&block)?,
                _ => {}
            }
        }
        self.serving = None;
        if first {
            copy(&self.at, &self.folder.join("left")).map_err(text)?;
        }
        Ok(())
    }

    fn lines(&mut self, block: &str) -> Result<(), String> {
        for line in block.replace("\\\n", " ").lines().map(str::trim).filter(|line| !line.is_empty()) {
            let bare = line.split("  #").next().unwrap_or(line).trim();
            if let Some(folder) = bare.strip_prefix("cd ") {
                self.at.push(folder);
            } else if let Some((_, reason)) = LEFT_OUT.iter().find(|(part, _)| left_out(bare, part)) {
                *self.left_out.entry(reason).or_default() += 1;
            } else if let (Some(demo), "boute demo") = (self.demo, bare) {
                copy(demo, &self.at.join("boute-demo")).map_err(text)?;
                *self.left_out.entry("was run before this").or_default() += 1;
            } else if bare.starts_with("boute serve ") || bare.starts_with("boute mock ") {
                self.serve(bare)?;
            } else if self.seen.insert(bare.to_owned()) {
                let longer = SHORTENED.iter().find(|(start, _)| bare.starts_with(start));
                let command = format!("{bare}{}", longer.map_or("", |(_, option)| option));
                self.command(&command, &command)?;
            } else {
                *self.left_out.entry("was run on an earlier page").or_default() += 1;
            }
        }
        Ok(())
    }

    /// Runs a command to its end; `shown` names it.
    fn command(&mut self, shown: &str, command: &str) -> Result<(), String> {
        self.bring_files(command)?;
        let begun = Instant::now();
        let mut child = self.spawn(command)?;
        let status = loop {
            match child.0.try_wait().map_err(text)? {
                Some(status) => break status.code().map_or("a signal".to_owned(), |code| code.to_string()),
                None if begun.elapsed() > PATIENCE => break format!("more than {PATIENCE:?}"),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        self.tell(shown, begun, status == "0", &status);
        Ok(())
    }

    /// Has a server running from here to the next one, or to the end of the page.
    fn serve(&mut self, line: &str) -> Result<(), String> {
        self.bring_files(line)?;
        self.serving = None;
        let begun = Instant::now();
        let (here, admin) = (self.addresses["127.0.0.1:8080"].clone(), &self.addresses["127.0.0.1:8081"]);
        let listen = if line.contains("--listen") { String::new() } else { format!(" --listen {here}") };
        let admin = if line.starts_with("boute serve") { format!(" --admin {admin}") } else { String::new() };
        let command = line.replace("0.0.0.0:", "127.0.0.1:");
        let mut server = self.spawn(&format!("exec {command}{listen}{admin}"))?;
        let listens = server.listens(&here);
        self.serving = Some(server);
        self.tell(line, begun, listens, "it does not listen");
        Ok(())
    }

    fn python(&mut self, block: &str) -> Result<(), String> {
        if Command::new("python3").arg("--version").output().is_err() {
            *self.left_out.entry("python3 is not here").or_default() += 1;
            return Ok(());
        }
        fs::write(self.at.join("block.py"), format!("{PYTHON}{block}")).map_err(text)?;
        self.command(&format!("python3: {}", block.lines().next().unwrap_or_default()), "python3 block.py")
    }

    /// A whole spec is checked; of a part, each key takes the place of the one in the spec at hand.
    fn yaml(&mut self, block: &str) -> Result<(), String> {
        self.bring_files(block)?;
        let spec = if block.starts_with("apiVersion") {
            block.to_owned()
        } else {
            let ours = sections(block);
            let keys: BTreeSet<&str> = ours.iter().map(|section| key(section)).collect();
            let theirs = read(&self.at.join("boute.yaml"));
            let kept = sections(&theirs).into_iter().filter(|section| !keys.contains(key(section)));
            kept.chain(ours.iter().copied()).collect()
        };
        fs::write(self.at.join("block.yaml"), spec).map_err(text)?;
        let first = block.lines().next().unwrap_or_default();
        self.command(&format!("yaml: {first}"), "boute check block.yaml")
    }

    /// A search space is what the page's commands call `space.json`.
    fn json(&mut self, block: &str) -> Result<(), String> {
        let space: Value = serde_json::from_str(block).unwrap_or_default();
        if space["space"].is_array() {
            fs::write(self.at.join("space.json"), block).map_err(text)?;
        }
        Ok(())
    }

    fn tell(&mut self, shown: &str, begun: Instant, right: bool, status: &str) {
        self.run += 1;
        let mark = if right { "ok   " } else { "WRONG" };
        println!("{mark} {:5.1} s  {shown}", begun.elapsed().as_secs_f64());
        if !right {
            let said = fs::read_to_string(self.folder.join("said")).unwrap_or_default();
            self.failed.push(format!("{shown}: exit status {status}\n{said}"));
        }
    }

    /// A child in the reader's shell, folder and environment; what it says is in `said`.
    fn spawn(&self, command: &str) -> Result<Background, String> {
        let said = fs::File::create(self.folder.join("said")).map_err(text)?;
        let mut shell = Command::new("sh");
        shell.args(["-euc", &self.here(command)]).current_dir(&self.at);
        shell.env("PATH", &self.path).env("BOUTE_CACHE", self.folder.join("cache"));
        shell.env("PYTHONPATH", self.root.join("python")).env("NO_COLOR", "1");
        shell.stdin(Stdio::null()).stdout(said.try_clone().map_err(text)?).stderr(said);
        shell.spawn().map(Background).map_err(text)
    }

    /// Addresses of the pages replaced by those here.
    fn here(&self, text: &str) -> String {
        self.addresses.iter().fold(text.to_owned(), |text, (there, here)| text.replace(there, here))
    }

    /// Puts the reader's own files that `command` names where it looks for them.
    fn bring_files(&self, command: &str) -> Result<(), String> {
        for (name, contents) in FILES {
            let path = self.at.join(name);
            // What is collected is not there yet.
            if command.contains(name)
                && !path.exists()
                && !command.contains(&format!("collect prompts.jsonl -o {name}"))
            {
                let contents = match contents {
                    Stands::Text(text) => self.here(text),
                    Stands::File(file) => unpacked(&self.root.join(file))?,
                    Stands::Made(make) => make(),
                };
                fs::create_dir_all(path.parent().unwrap_or(&path)).map_err(text)?;
                fs::write(path, contents).map_err(text)?;
            }
        }
        if command.contains("mmlu_*.csv") {
            let table = mmlu(&unpacked(&self.root.join("benchmarks/data/routellm.jsonl.gz"))?);
            fs::write(self.at.join("mmlu_all.csv"), table).map_err(text)?;
        }
        Ok(())
    }
}

/// Sixty short requests in three seconds.
fn trace() -> String {
    let rows = (0..60).map(|n| format!("{:.2},{},20\n", f64::from(n) / 20.0, 200 + 10 * n));
    "arrival_time_s,input_tokens,output_tokens\n".to_owned() + &rows.collect::<String>()
}

/// Prompts, every third with the answer that emulated engines give.
fn prompts() -> String {
    let answer = |n: u32| if n.is_multiple_of(3) { " word".repeat(1024) } else { n.to_string() };
    let row = |n| serde_json::json!({"prompt": format!("What is {n} + {}?", n / 2), "answer": answer(n)});
    (0..600).map(|n| row(n).to_string() + "\n").collect()
}

/// RouteLLM's table, of our copy of its data.
fn mmlu(rows: &str) -> String {
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).ok()?;
        let prompt = row["prompt"].as_str()?.replace('"', "\"\"");
        let right = |model: &str| if row["scores"][model] == 1 { "True" } else { "False" };
        Some(format!(
            "\"{prompt}\",{},{}\n",
            right("mixtral-8x7b-instruct-v0.1"),
            right("gpt-4-1106-preview")
        ))
    };
    let rows: String =
        rows.lines().filter(|line| line.contains("\"task\":\"mmlu/")).filter_map(row).collect();
    format!("prompt,mistralai/Mixtral-8x7B-Instruct-v0.1,gpt-4-1106-preview\n{rows}")
}

/// Whether a command is among those that begin with or, for options, hold `part`.
fn left_out(command: &str, part: &str) -> bool {
    if part.starts_with("--") { command.contains(part) } else { command.starts_with(part) }
}

/// Fenced blocks of a page: language and text.
fn blocks(page: &str) -> Vec<(String, String)> {
    let (mut blocks, mut open) = (Vec::new(), None::<(String, String)>);
    for line in page.lines() {
        match (line.trim_start().strip_prefix("```"), open.take()) {
            (Some(_), Some(block)) => blocks.push(block),
            (Some(language), None) => open = Some((language.to_owned(), String::new())),
            (None, Some((language, text))) => open = Some((language, text + line + "\n")),
            (None, None) => {}
        }
    }
    blocks
}

/// A YAML text cut before each key at its margin.
fn sections(yaml: &str) -> Vec<&str> {
    let starts: Vec<usize> = yaml
        .split_inclusive('\n')
        .scan(0, |end, line| {
            let start = *end;
            *end += line.len();
            Some((start, line))
        })
        .filter(|(_, line)| line.starts_with(|c: char| c.is_ascii_alphabetic()))
        .map(|(start, _)| start)
        .collect();
    let ends = starts.iter().skip(1).copied().chain([yaml.len()]);
    starts.iter().zip(ends).map(|(start, end)| &yaml[*start..end]).collect()
}

fn key(section: &str) -> &str {
    section.split(':').next().unwrap_or_default()
}

fn free_address() -> Result<String, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(text)?;
    listener.local_addr().map(|address| address.to_string()).map_err(text)
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to)?;
        } else {
            fs::copy(from, to)?;
        }
    }
    Ok(())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
