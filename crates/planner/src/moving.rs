//! From one fleet to another: the steps in order, how long they take and what they cost.
//!
//! What is new is started before anything old is stopped, as far as the stock allows; where it does not, as few old
//! replicas as make room for the next new one are drained and stopped first.
//! ```text
//! time until a replica is ready = machine + weights of the replica / load + warm-up
//! cost of a move                = ∫ (rent while moving − rent before) dt
//! time to pay back              = duration + cost / saving per hour
//! ```

use std::collections::BTreeMap;

use boute_spec::catalog::Model;
use boute_spec::plan::{Deployment, ReplicaGroup};
use serde::{Deserialize, Serialize};

/// What moving is assumed to take, and when it is worth it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// Seconds until a rented machine answers.
    pub machine_s: f64,
    /// Bytes per second at which a node reads the weights of one replica.
    pub load_bytes_per_s: f64,
    /// Seconds from loaded weights to the first answer: graphs are captured, health is checked.
    pub warm_up_s: f64,
    /// Hours within which a move must have paid for itself.
    pub horizon_h: f64,
    /// A move must better the plan by this part of it.
    pub least_gain: f64,
}

impl Default for Terms {
    /// All assumed: two minutes for a machine, 2 GB/s (a local disk, or 16 Gbit/s from a store), a minute of warm-up; four hours
    /// and five per cent.
    fn default() -> Self {
        Self { machine_s: 120.0, load_bytes_per_s: 2e9, warm_up_s: 60.0, horizon_h: 4.0, least_gain: 0.05 }
    }
}

/// One step of a move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Start replicas.
    Start {
        /// Id of their group.
        group: String,
        /// How many.
        replicas: u32,
    },
    /// Wait until all that were started are ready.
    Wait {
        /// How long that is expected to take.
        seconds: f64,
    },
    /// Route by the new plan from here on.
    SwapRoutes,
    /// Send nothing to these, and let them finish what they answer.
    Drain {
        /// Id of their group.
        group: String,
        /// How many.
        replicas: u32,
        /// How long that is expected to take.
        seconds: f64,
    },
    /// Stop replicas.
    Stop {
        /// Id of their group.
        group: String,
        /// How many.
        replicas: u32,
    },
}

/// What a whole move does, one stage after the other: the autopilot carries it out in this form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub enum Stage {
    /// Have this fleet running.
    Fleet {
        /// The groups.
        deployment: Deployment,
    },
    /// Wait.
    Wait {
        /// Seconds.
        seconds: f64,
    },
    /// Route by the new plan.
    Routes,
}

/// A move.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Moving {
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// From the first step to the last.
    pub seconds: f64,
    /// Rent paid above that of the fleet before, or below it if negative.
    pub usd: f64,
    /// The smallest part of a model's planned capacity that is there at any time of the move.
    pub least_capacity: f64,
    /// The same as fleets to have one after the other.
    #[serde(skip)]
    pub stages: Vec<Stage>,
}

/// A fleet under way from one deployment to another.
struct Journey<'a> {
    models: &'a [Model],
    stock: &'a BTreeMap<String, Option<u32>>,
    terms: &'a Terms,
    drain_s: f64,
    running: BTreeMap<String, ReplicaGroup>,
    before: BTreeMap<String, f64>,
    rent_before: f64,
    moving: Moving,
}

impl Moving {
    /// The move between two deployments within `stock` per GPU type (`None`: no limit); what is drained takes `drain_s`. Groups of
    /// both with one id are the same.
    pub(crate) fn between(
        from: &Deployment,
        to: &Deployment,
        models: &[Model],
        stock: &BTreeMap<String, Option<u32>>,
        drain_s: f64,
        terms: &Terms,
    ) -> Self {
        let running: BTreeMap<String, ReplicaGroup> =
            from.groups.iter().map(|group| (group.id.clone(), group.clone())).collect();
        let mut journey = Journey {
            models,
            stock,
            terms,
            drain_s,
            before: capacities(running.values()),
            rent_before: from.usd_per_hour(),
            running,
            moving: Self {
                steps: Vec::new(),
                seconds: 0.0,
                usd: 0.0,
                least_capacity: 1.0,
                stages: Vec::new(),
            },
        };
        while journey.start_what_fits(to) {
            if !journey.make_room(to) {
                break;
            }
        }
        journey.moving.steps.push(Step::SwapRoutes);
        journey.moving.stages.push(Stage::Routes);
        let surplus = journey.surplus(to);
        journey.stop(&surplus);
        journey.moving
    }
}

impl Journey<'_> {
    /// Starts as much of what is missing as there are GPUs for, and waits for it; whether something is missing still.
    fn start_what_fits(&mut self, to: &Deployment) -> bool {
        let (mut ready_s, mut missing) = (0.0_f64, false);
        for group in &to.groups {
            let there = self.running.get(&group.id).map_or(0, |group| group.replicas);
            let wanted = group.replicas.saturating_sub(there);
            let started = wanted.min(room_for(group, &self.running, self.stock));
            missing |= started < wanted;
            if started > 0 {
                self.moving.steps.push(Step::Start { group: group.id.clone(), replicas: started });
                set(&mut self.running, group, there + started);
                ready_s = ready_s.max(self.ready_s(group));
            }
        }
        if ready_s > 0.0 {
            self.moving.steps.push(Step::Wait { seconds: ready_s });
            self.stay(ready_s);
        }
        missing
    }

    /// Stops what makes room for one more of the replicas that are missing; whether anything could be stopped.
    fn make_room(&mut self, to: &Deployment) -> bool {
        let there = |id: &str| self.running.get(id).map_or(0, |group| group.replicas);
        let Some(missing) = to.groups.iter().find(|group| there(&group.id) < group.replicas) else {
            return false;
        };
        let needed = gpus_of(missing);
        let (mut left, mut stopped) = (self.running.clone(), Vec::new());
        for (id, surplus) in self.surplus(to) {
            let group = &self.running[&id];
            if !gpus_of(group).keys().any(|gpu| needed.contains_key(gpu)) {
                continue;
            }
            let mut gone = 0;
            while gone < surplus && room_for(missing, &left, self.stock) == 0 {
                gone += 1;
                set(&mut left, group, group.replicas - gone);
            }
            if gone > 0 {
                stopped.push((id, gone));
            }
        }
        self.stop(&stopped);
        !stopped.is_empty()
    }

    /// Replicas that the new fleet does without.
    fn surplus(&self, to: &Deployment) -> Vec<(String, u32)> {
        let wanted = |id: &str| to.groups.iter().find(|group| group.id == id).map_or(0, |it| it.replicas);
        let surplus = self
            .running
            .values()
            .map(|group| (group.id.clone(), group.replicas.saturating_sub(wanted(&group.id))));
        surplus.filter(|(_, count)| *count > 0).collect()
    }

    /// Drains and stops replicas.
    fn stop(&mut self, what: &[(String, u32)]) {
        if what.is_empty() {
            return;
        }
        for (group, replicas) in what {
            let (group, replicas, seconds) = (group.clone(), *replicas, self.drain_s);
            self.moving.steps.push(Step::Drain { group, replicas, seconds });
        }
        self.moving.stages.push(Stage::Wait { seconds: self.drain_s });
        self.pass(self.drain_s);
        for (id, replicas) in what {
            self.moving.steps.push(Step::Stop { group: id.clone(), replicas: *replicas });
            let group = self.running[id].clone();
            set(&mut self.running, &group, group.replicas - replicas);
        }
        self.moving.stages.push(Stage::Fleet { deployment: self.deployment() });
        let swapped = self.moving.steps.contains(&Step::SwapRoutes);
        if !swapped {
            let now = capacities(self.running.values());
            let left = self.before.iter().filter(|(_, before)| **before > 0.0);
            let part = left.map(|(model, before)| now.get(model).unwrap_or(&0.0) / before);
            self.moving.least_capacity = part.fold(self.moving.least_capacity, f64::min);
        }
    }

    /// Has the fleet as it is now for a while.
    fn stay(&mut self, seconds: f64) {
        self.moving.stages.push(Stage::Fleet { deployment: self.deployment() });
        self.moving.stages.push(Stage::Wait { seconds });
        self.pass(seconds);
    }

    fn pass(&mut self, seconds: f64) {
        self.moving.seconds += seconds;
        self.moving.usd += (self.deployment().usd_per_hour() - self.rent_before) * seconds / 3600.0;
    }

    fn deployment(&self) -> Deployment {
        Deployment { groups: self.running.values().cloned().collect() }
    }

    fn ready_s(&self, group: &ReplicaGroup) -> f64 {
        let model = self.models.iter().find(|model| model.id == group.model);
        let bytes = model.map_or(0.0, weights_bytes);
        self.terms.machine_s + bytes / self.terms.load_bytes_per_s + self.terms.warm_up_s
    }
}

fn weights_bytes(model: &Model) -> f64 {
    let experts = model.shape.expert_parameters();
    (model.shape.parameters() - experts) * model.precision.bytes_per_weight()
        + experts * model.experts().bytes_per_weight()
}

/// Has `replicas` of a group running, at that group's price of one.
fn set(running: &mut BTreeMap<String, ReplicaGroup>, group: &ReplicaGroup, replicas: u32) {
    if replicas == 0 {
        running.remove(&group.id);
    } else {
        running.insert(group.id.clone(), group.with_replicas(replicas));
    }
}

/// How many more replicas of a group there are GPUs for.
fn room_for(
    group: &ReplicaGroup,
    running: &BTreeMap<String, ReplicaGroup>,
    stock: &BTreeMap<String, Option<u32>>,
) -> u32 {
    let needs = gpus_of(&ReplicaGroup { replicas: 1, ..group.clone() });
    let room = needs.iter().filter_map(|(gpu, needed)| {
        let stock = stock.get(gpu).copied().flatten()?;
        let used: u32 = running.values().filter_map(|it| gpus_of(it).get(gpu).copied()).sum();
        Some(stock.saturating_sub(used) / needed)
    });
    room.min().unwrap_or(u32::MAX)
}

/// GPUs per type of a group.
pub(crate) fn gpus_of(group: &ReplicaGroup) -> BTreeMap<String, u32> {
    let mut gpus = BTreeMap::new();
    for it in group.instances() {
        *gpus.entry(it.gpu.to_owned()).or_default() += it.gpus() * group.replicas;
    }
    gpus
}

/// Planned requests per second per model.
fn capacities<'a>(groups: impl Iterator<Item = &'a ReplicaGroup>) -> BTreeMap<String, f64> {
    let mut capacities = BTreeMap::new();
    for group in groups {
        let rate = group.planned_rate_per_replica.get() * f64::from(group.replicas);
        *capacities.entry(group.model.clone()).or_default() += rate;
    }
    capacities
}

#[cfg(test)]
mod tests {
    use boute_spec::catalog::Catalog;
    use boute_spec::plan::EngineFlags;
    use boute_spec::units::{RequestsPerSecond, UsdPerHour};

    use super::*;

    /// Replicas of the small model with tensor parallelism `tp` on one type of GPU, each good for a request per second and GPU.
    fn group(tp: u32, replicas: u32) -> ReplicaGroup {
        let gpus = f64::from(tp * replicas);
        ReplicaGroup {
            id: format!("tp{tp}"),
            model: "llama-3.1-8b".into(),
            gpu: "L40S".into(),
            tp,
            pp: 1,
            replicas,
            usd_per_hour: UsdPerHour::new(gpus).unwrap(),
            planned_rate_per_replica: RequestsPerSecond::new(f64::from(tp)).unwrap(),
            kv_cache_tokens: 100_000,
            engine: EngineFlags {
                max_num_seqs: 64,
                max_num_batched_tokens: 2048,
                gpu_memory_utilization: 0.9,
                max_model_len: 8192,
                enable_prefix_caching: true,
            },
            disaggregated: None,
        }
    }

    /// Four replicas of one GPU give way to two of two GPUs, on this many GPUs.
    fn moved(stock: u32) -> Moving {
        let [from, to] = [group(1, 4), group(2, 2)].map(|group| Deployment { groups: vec![group] });
        let models = [Catalog::builtin().model("llama-3.1-8b").unwrap().clone()];
        let stock = BTreeMap::from([("L40S".to_owned(), Some(stock))]);
        Moving::between(&from, &to, &models, &stock, 30.0, &Terms::default())
    }

    /// A sign for each step, in order.
    fn order(moving: &Moving) -> String {
        let sign = |step: &Step| match step {
            Step::Start { .. } => '+',
            Step::Wait { .. } => 'w',
            Step::SwapRoutes => 'r',
            Step::Drain { .. } => 'd',
            Step::Stop { .. } => '-',
        };
        moving.steps.iter().map(sign).collect()
    }

    #[test]
    fn where_the_stock_is_short_old_replicas_stop_before_new_ones_start() {
        let roomy = moved(8);
        assert_eq!((&*order(&roomy), roomy.least_capacity), ("+wrd-", 1.0));
        // Room for one new replica beside the old ones, and none: as few stop as make room for one, each time.
        let short = moved(6);
        assert_eq!((&*order(&short), short.least_capacity), ("+wd-+wrd-", 1.0));
        let none = moved(4);
        assert_eq!((&*order(&none), none.least_capacity), ("d-+wd-+wr", 0.5));
        // No fleet on the way has more GPUs than there are.
        for (moving, stock) in [(roomy, 8), (short, 6), (none, 4)] {
            let fleets = moving.stages.iter().filter_map(|stage| match stage {
                Stage::Fleet { deployment } => Some(deployment),
                _ => None,
            });
            let gpus: Vec<u32> =
                fleets.map(|fleet| fleet.groups.iter().map(ReplicaGroup::gpus).sum()).collect();
            assert!(gpus.iter().all(|used| *used <= stock), "{gpus:?} of {stock}");
            assert_eq!(gpus.last(), Some(&4));
        }
    }
}
