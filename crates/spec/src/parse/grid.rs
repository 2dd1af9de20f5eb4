//! `grid.yaml` → [`Grid`], as strictly as a spec.

use std::str::FromStr;

use serde_saphyr::Spanned;

use super::{LENGTHS, Map, SpecErrors, Tree, Walk, gpus, models, place_of, read};
use crate::grid::{Goal, GpuSet, Grid, ModelSet, Multiple, TraceLevel};
use crate::units::Fraction;

const KEYS: [&str; 10] =
    ["apiVersion", "traces", "models", "gpus", "goals", "floors", "slo", "confidence", "seeds", "cells"];

/// Reads `grid.yaml`.
///
/// # Errors
/// With every problem found: syntax, unknown keys and names, missing units, contradictions.
pub fn parse_grid(file: &str, text: &str) -> Result<Grid, SpecErrors> {
    read(file, text, "see grids/ci.yaml for the form", grid)
}

fn grid(walk: &mut Walk, tree: &Spanned<Tree>) -> Option<Grid> {
    let map = walk.map(tree, "the grid", &KEYS);
    walk.version(&map);
    let traces = named(walk, &map, "traces", "{id: chat, trace: trace.csv}", &["trace", "lengths"], trace);
    let sets = "{id: two, models: [{id: llama-3.1-8b}, {id: llama-3.1-70b}], quality: quality.jsonl}";
    let models = named(walk, &map, "models", sets, &["models", "quality"], model_set);
    let gpus = named(walk, &map, "gpus", "{id: all, gpus: [{type: L40S}]}", &["gpus"], gpu_set);
    let goals = levels(walk, &map, "goals", "{max_rate: $30/h}", goal);
    let floors = levels(walk, &map, "floors", "0.7", |walk, tree| {
        walk.parsed::<Fraction>(tree, "floors", "0.7", true)
    });
    let slo = levels(walk, &map, "slo", "4", |walk, tree| {
        number(walk, tree, "slo", "4", "a multiple above zero").and_then(Multiple::new)
    });
    let confidence = walk.confidence(&map);
    let seeds = match map.get("seeds") {
        None => vec![0],
        Some(_) => {
            levels(walk, &map, "seeds", "0", |walk, tree| whole(walk, tree, "seeds", "a whole number"))
        }
    };
    let cells = map.get("cells").and_then(|tree| {
        let count: usize = whole(walk, tree, "cells", "a whole number")?;
        if count == 0 {
            walk.problem(place_of(tree), "`cells` is zero", "leave it out for the whole product");
        }
        Some(count)
    });
    Some(Grid { traces, models, gpus, goals, floors, slo, confidence: confidence?, seeds, cells })
}

/// The entries of a list of maps, each with an `id` of its own.
fn named<T>(
    walk: &mut Walk,
    map: &Map<'_>,
    key: &str,
    example: &str,
    keys: &[&'static str],
    read: impl Fn(&mut Walk, &Map<'_>, String) -> Option<T>,
) -> Vec<T> {
    let known: Vec<&'static str> = ["id"].into_iter().chain(keys.iter().copied()).collect();
    let mut ids: Vec<String> = Vec::new();
    levels(walk, map, key, example, |walk, tree| {
        let map = walk.map(tree, &format!("an entry of `{key}`"), &known);
        let id = walk.required(&map, "id", "a-name")?;
        if ids.contains(&id) {
            walk.problem(
                place_of(tree),
                format!("the id `{id}` is used twice"),
                "ids name levels in results",
            );
        }
        ids.push(id.clone());
        read(walk, &map, id)
    })
}

/// The entries of a list that must be there.
fn levels<T>(
    walk: &mut Walk,
    map: &Map<'_>,
    key: &str,
    example: &str,
    mut read: impl FnMut(&mut Walk, &Spanned<Tree>) -> Option<T>,
) -> Vec<T> {
    let Some(tree) = map.get(key) else {
        walk.missing(map, key, &format!("[{example}]"));
        return Vec::new();
    };
    let items = walk.items(tree, key, example);
    items.iter().filter_map(|item| read(walk, item)).collect()
}

fn trace(walk: &mut Walk, map: &Map<'_>, id: String) -> Option<TraceLevel> {
    let trace = walk.required(map, "trace", "trace.csv");
    let lengths = walk.required_word(map, "lengths", &LENGTHS);
    Some(TraceLevel { id, trace: trace?, lengths: lengths? })
}

fn model_set(walk: &mut Walk, map: &Map<'_>, id: String) -> Option<ModelSet> {
    let models = models(walk, map);
    if models.len() == 1 {
        let hint = "list at least two: with one model there is nothing to route";
        walk.problem(map.place, format!("`{id}` has one model"), hint);
    }
    let quality = walk.required(map, "quality", "quality.jsonl");
    Some(ModelSet { id, models, quality: quality? })
}

#[expect(clippy::unnecessary_wraps, reason = "one of the readers of `named`")]
fn gpu_set(walk: &mut Walk, map: &Map<'_>, id: String) -> Option<GpuSet> {
    Some(GpuSet { id, gpus: gpus(walk, map) })
}

fn goal(walk: &mut Walk, tree: &Spanned<Tree>) -> Option<Goal> {
    let map = walk.map(tree, "a goal", &["max_rate", "min_cost"]);
    let hint = "give a limit above zero";
    match (map.get("max_rate"), map.get("min_cost")) {
        (Some(tree), None) => {
            walk.positive(tree, ("max_rate", "$30/h"), "the budget", hint).map(Goal::MaxRate)
        }
        (None, Some(tree)) => {
            walk.positive(tree, ("min_cost", "8 req/s"), "the rate", hint).map(Goal::MinCost)
        }
        _ => {
            if map.readable {
                let hint = "write `{max_rate: $30/h}` or `{min_cost: 8 req/s}`";
                walk.problem(map.place, "a goal is one objective with its limit", hint);
            }
            None
        }
    }
}

/// A number above zero.
fn number(walk: &mut Walk, tree: &Spanned<Tree>, key: &str, example: &str, what: &str) -> Option<f64> {
    let text = walk.scalar(tree, key, example, true)?;
    let value = text.parse().ok().filter(|value: &f64| value.is_finite() && *value > 0.0);
    if value.is_none() {
        let hint = format!("write it like `{key}: {example}`");
        walk.problem(place_of(tree), format!("`{text}` is not {what}"), hint);
    }
    value
}

fn whole<T: FromStr>(walk: &mut Walk, tree: &Spanned<Tree>, key: &str, what: &str) -> Option<T> {
    let text = walk.scalar(tree, key, "24", true)?;
    let value = text.parse().ok();
    if value.is_none() {
        walk.problem(place_of(tree), format!("`{text}` is not {what}"), format!("write it like `{key}: 24`"));
    }
    value
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::grid::Cell;

    const GOOD: &str = "apiVersion: boute/v1
traces:
  - {id: conv, trace: conv.csv.gz, lengths: trace}
  - {id: exam, trace: conv.csv.gz, lengths: quality}
models:
  - {id: two, models: [{id: llama-3.1-8b}, {id: llama-3.1-70b, dtype: fp8}], quality: q.jsonl}
gpus:
  - {id: unlimited, gpus: [{type: L40S}, {type: H100-SXM}]}
  - {id: few, gpus: [{type: L40S, stock: 8}]}
goals: [{max_rate: $15/h}, {min_cost: 4 req/s}, {min_cost: 8 req/s}]
floors: [0.4, 70%]
slo: [2, 4.5]
seeds: [0, 1]
cells: 12
";

    fn errors(text: &str) -> String {
        parse_grid("grid.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn a_good_grid_is_read() {
        let grid = parse_grid("grid.yaml", GOOD).unwrap();
        assert_eq!(
            grid.goals.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["max_rate $15.00/h", "min_cost 4.00 req/s", "min_cost 8.00 req/s"]
        );
        assert_eq!((grid.floors[1].get(), grid.slo[1].get(), grid.confidence.get()), (0.7, 4.5, 0.95));
        assert_eq!(grid.cells().len(), 24);
    }

    #[test]
    fn every_problem_is_reported_at_its_place() {
        let text = GOOD
            .replace("lengths: quality", "lenghts: quality")
            .replace("{id: llama-3.1-8b}, ", "")
            .replace("id: few", "id: unlimited")
            .replace("{max_rate: $15/h}", "{max_rate: 15}")
            .replace("{min_cost: 8 req/s}", "{min_cost: 8 req/s, max_rate: $1/h}")
            .replace("70%", "1.2")
            .replace("[2, 4.5]", "[0]")
            .replace("cells: 12", "cells: 0");
        insta::assert_snapshot!(errors(&text), @r"
        grid.yaml:4:5: `lengths` is missing
          |
        4 |   - {id: exam, trace: conv.csv.gz, lenghts: quality}
          |     ^
          = help: add `lengths: trace`

        grid.yaml:4:36: unknown key `lenghts` in an entry of `traces`
          |
        4 |   - {id: exam, trace: conv.csv.gz, lenghts: quality}
          |                                    ^^^^^^^
          = help: did you mean `lengths`?

        grid.yaml:6:5: `two` has one model
          |
        6 |   - {id: two, models: [{id: llama-3.1-70b, dtype: fp8}], quality: q.jsonl}
          |     ^
          = help: list at least two: with one model there is nothing to route

        grid.yaml:9:5: the id `unlimited` is used twice
          |
        9 |   - {id: unlimited, gpus: [{type: L40S, stock: 8}]}
          |     ^
          = help: ids name levels in results

        grid.yaml:10:20: `max_rate: 15` has no unit
           |
        10 | goals: [{max_rate: 15}, {min_cost: 4 req/s}, {min_cost: 8 req/s, max_rate: $1/h}]
           |                    ^^
           = help: write it like `max_rate: $30/h`

        grid.yaml:10:46: a goal is one objective with its limit
           |
        10 | goals: [{max_rate: 15}, {min_cost: 4 req/s}, {min_cost: 8 req/s, max_rate: $1/h}]
           |                                              ^
           = help: write `{max_rate: $30/h}` or `{min_cost: 8 req/s}`

        grid.yaml:11:15: `1.2` is not a fraction between 0 and 1
           |
        11 | floors: [0.4, 1.2]
           |               ^^^
           = help: write it like `floors: 0.7`

        grid.yaml:12:7: `0` is not a multiple above zero
           |
        12 | slo: [0]
           |       ^
           = help: write it like `slo: 4`

        grid.yaml:14:8: `cells` is zero
           |
        14 | cells: 0
           |        ^
           = help: leave it out for the whole product
        ");
        insta::assert_snapshot!(errors("apiVersion: boute/v1\n"), @r"
        grid.yaml:1:1: `traces` is missing
          |
        1 | apiVersion: boute/v1
          | ^
          = help: add `traces: [{id: chat, trace: trace.csv}]`

        grid.yaml:1:1: `models` is missing
          |
        1 | apiVersion: boute/v1
          | ^
          = help: add `models: [{id: two, models: [{id: llama-3.1-8b}, {id: llama-3.1-70b}], quality: quality.jsonl}]`

        grid.yaml:1:1: `gpus` is missing
          |
        1 | apiVersion: boute/v1
          | ^
          = help: add `gpus: [{id: all, gpus: [{type: L40S}]}]`

        grid.yaml:1:1: `goals` is missing
          |
        1 | apiVersion: boute/v1
          | ^
          = help: add `goals: [{max_rate: $30/h}]`

        grid.yaml:1:1: `floors` is missing
          |
        1 | apiVersion: boute/v1
          | ^
          = help: add `floors: [0.7]`

        grid.yaml:1:1: `slo` is missing
          |
        1 | apiVersion: boute/v1
          | ^
          = help: add `slo: [4]`
        ");
    }

    #[test]
    fn bad_values_say_what_to_write() {
        for (from, to) in [
            ("seeds: [0, 1]", "seeds: [-1]"),
            ("seeds: [0, 1]", "seeds: []"),
            ("cells: 12", "cells: many"),
            ("[2, 4.5]", "[.nan]"),
            ("[2, 4.5]", "4"),
            ("boute/v1", "boute/v2"),
            ("conv.csv.gz, lengths: trace", "''"),
            ("{type: L40S, stock: 8}", "{type: L40X}"),
            ("models: [{id", "models: [{di"),
            (", quality: q.jsonl", ""),
            ("goals: [", "goals: [3, "),
        ] {
            assert_ne!(GOOD.replace(from, to), GOOD, "{from}");
            let text = errors(&GOOD.replace(from, to));
            assert!(text.starts_with("grid.yaml:") && text.contains("= help: "), "{text}");
        }
    }

    /// How often each level of one dimension occurs.
    fn counts(cells: &[Cell], levels: usize, of: impl Fn(&Cell) -> usize) -> Vec<usize> {
        (0..levels).map(|level| cells.iter().filter(|cell| of(cell) == level).count()).collect()
    }

    fn times<T: Clone>(levels: &[T], count: usize) -> Vec<T> {
        levels.iter().cloned().cycle().take(count).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn cells_are_spread_evenly(
            sizes in prop::array::uniform6(1_usize..4),
            share in 0.0_f64..0.3,
            seed in 0_u64..9,
        ) {
            let good = parse_grid("grid.yaml", GOOD).unwrap();
            let product: usize = sizes.iter().product();
            let cells = 1 + (share * product as f64) as usize;
            let grid = Grid {
                traces: times(&good.traces, sizes[0]),
                models: times(&good.models, sizes[1]),
                gpus: times(&good.gpus, sizes[2]),
                goals: times(&good.goals, sizes[3]),
                floors: times(&good.floors, sizes[4]),
                slo: times(&good.slo, sizes[5]),
                seeds: vec![seed],
                cells: Some(cells),
                ..good
            };
            let drawn = grid.cells();
            prop_assert_eq!(drawn.len(), cells.min(product));
            prop_assert_eq!(drawn.iter().collect::<BTreeSet<_>>().len(), drawn.len());
            prop_assert_eq!(&drawn, &grid.cells());
            for counts in [
                counts(&drawn, sizes[0], |cell| cell.trace),
                counts(&drawn, sizes[1], |cell| cell.models),
                counts(&drawn, sizes[2], |cell| cell.gpus),
                counts(&drawn, sizes[3], |cell| cell.goal),
                counts(&drawn, sizes[4], |cell| cell.floor),
                counts(&drawn, sizes[5], |cell| cell.slo),
            ] {
                let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
                // Give or take one, and one more where no cell is left whose levels are all behind.
                prop_assert!(most - least <= 2, "{:?}", counts);
            }
        }
    }
}
