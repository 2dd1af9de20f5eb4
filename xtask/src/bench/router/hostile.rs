//! What a client can do to the division of the load by how it writes, and what other languages do.

use std::collections::BTreeMap;

use boute_router::eval::weakest_and_strongest;
use boute_router::monitor::Monitor;
use boute_router::{Scorer, Scratch};
use boute_spec::workload::{Query, Split};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::online::reference;
use super::{Report, Set, numbered};

/// Words added by the attacker who knows the weights.
const TRIGGERS: usize = 20;
/// Queries that the monitor sees, and how often that is tried.
const LIFE: usize = 20_000;
const LIVES: u64 = 21;

/// Everyday questions in other languages, written for this trial.
const LANGUAGES: [(&str, &str); 8] = [
    (
        "German",
        "Wie viele Tage hat der Februar in einem Schaltjahr, und warum gibt es Schaltjahre überhaupt?",
    ),
    ("French", "Expliquez pourquoi le ciel est bleu pendant la journée et rouge au coucher du soleil."),
    (
        "Spanish",
        "¿Cuál es la diferencia entre un virus y una bacteria, y por qué no sirven los antibióticos contra los virus?",
    ),
    ("Turkish", "Bir tren saatte seksen kilometre hızla üç saat giderse kaç kilometre yol alır?"),
    (
        "Russian",
        "Поезд едет три часа со скоростью восемьдесят километров в час. Сколько километров он проедет?",
    ),
    ("Arabic", "ما الفرق بين المناخ والطقس، ولماذا يتغير المناخ مع مرور الزمن؟"),
    ("Hindi", "पानी सौ डिग्री सेल्सियस पर क्यों उबलता है और पहाड़ों पर कम तापमान पर क्यों?"),
    ("Chinese", "一列火车以每小时八十公里的速度行驶三个小时,一共走了多少公里?请说明理由。"),
];

/// What an attacker does to a prompt.
type Change<'a> = &'a dyn Fn(&str) -> String;

pub(super) fn run(set: &Set, report: &mut Report) {
    let Some((weak, strong)) = weakest_and_strongest(&set.test) else { return };
    let advantage = |text: &str, scratch: &mut Scratch| {
        let mut scores = vec![0.0; set.scorer.models().len()];
        set.scorer.score(text, scratch, &mut scores);
        scores[strong] - scores[weak]
    };
    let mut scratch = Scratch::default();
    let test = set.queries(Split::Test);
    let mut sorted: Vec<f32> = test.iter().map(|query| advantage(&query.prompt, &mut scratch)).collect();
    sorted.sort_unstable_by(f32::total_cmp);
    let threshold = sorted[sorted.len() / 2];
    let mut strong_share = |change: Change<'_>| {
        let sent = |text: &str, scratch: &mut Scratch| advantage(&change(text), scratch) > threshold;
        let strong = test.iter().filter(|query| sent(&query.prompt, &mut scratch)).count();
        100.0 * strong as f64 / test.len() as f64
    };
    let triggers = triggers(&set.scorer, &set.queries(Split::Train)[..1000], weak, strong);
    report.note("hostile text, RouteLLM: share of prompts sent to the strong model, planned 50 %");
    let unknown = numbered(" zq", 300);
    let rows: [(&str, Change<'_>); 6] = [
        ("unchanged", &|text| text.to_owned()),
        ("politeness added", &|text| {
            format!("Hello! Could you please help me with this?\n{text}\nThank you very much!")
        }),
        ("padded to 3 KiB with blanks and stops", &|text| format!("{text}{}", " .".repeat(1500))),
        ("the 20 strongest words of training added once", &|text| format!("{text} {triggers}")),
        ("the same in place of the head", &|text| format!("{}{text}", format!("{triggers} ").repeat(20))),
        ("2 KiB of words nobody has written", &|text| format!("{text}{unknown}")),
    ];
    for (name, change) in rows {
        report.note(&format!("  {name:<48} {:.0} %", strong_share(change)));
    }
    noticed(set, &|text| format!("{text} {triggers}"), report);
    report.note("other languages: novelty, and who answers at that threshold");
    for (language, text) in LANGUAGES {
        let strong = advantage(text, &mut scratch) > threshold;
        let novel = scratch.novelty() >= set.scorer.novelty_limits().1;
        let who = if novel {
            "the best single model"
        } else if strong {
            "strong"
        } else {
            "weak"
        };
        report.note(&format!("  {language:<10} {:.2}  {who}", scratch.novelty()));
    }
}

/// How soon the monitor notices that a share of the prompts is changed so that they go to the strong model: the median of
/// [`LIVES`].
fn noticed(set: &Set, change: Change<'_>, report: &mut Report) {
    let reference = reference(&set.validation);
    let scored = |change: Change<'_>| -> Vec<(Vec<f32>, f32)> {
        let mut scratch = Scratch::default();
        let mut score = |query: &&Query| {
            let mut scores = vec![0.0; set.scorer.models().len()];
            set.scorer.score(&change(&query.prompt), &mut scratch, &mut scores);
            (scores, scratch.novelty())
        };
        set.queries(Split::Validation).iter().map(&mut score).collect()
    };
    let (ordinary, hostile) = (scored(&|text| text.to_owned()), scored(change));
    report.note("the monitor's alarm, if a share of the prompts has those words: median queries until it");
    for share in [1.0, 0.25, 0.1, 0.05, 0.02] {
        let until = |seed: u64| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut monitor = Monitor::new(reference.clone(), 0.05);
            (1..=LIFE).find(|_| {
                let from = if rng.random::<f64>() < share { &hostile } else { &ordinary };
                let (scores, novelty) = &from[rng.random_range(0..from.len())];
                monitor.observe(scores, *novelty).is_some()
            })
        };
        let mut found: Vec<usize> = (0..LIVES).map(|seed| until(seed).unwrap_or(usize::MAX)).collect();
        found.sort_unstable();
        let median = match found[found.len() / 2] {
            usize::MAX => format!("none in {LIFE}"),
            queries => queries.to_string(),
        };
        report.note(&format!("  {:>3.0} %  {median}", share * 100.0));
    }
}

/// Words that speak most for the strong model, joined; found as an attacker with the artefact would.
fn triggers(scorer: &Scorer, train: &[&Query], weak: usize, strong: usize) -> String {
    let mut found: BTreeMap<String, f32> = BTreeMap::new();
    for query in train {
        for (name, part) in scorer.reasons(&[&query.prompt], strong, weak) {
            if name.bytes().all(|byte| byte.is_ascii_lowercase()) && !name.is_empty() {
                let most = found.entry(name).or_default();
                *most = most.max(part);
            }
        }
    }
    let mut words: Vec<(String, f32)> = found.into_iter().collect();
    words.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    words.into_iter().take(TRIGGERS).map(|(word, _)| word).collect::<Vec<_>>().join(" ")
}
