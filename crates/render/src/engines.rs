//! The engines of a replica in words: one, or those that prefill and then those that decode.

use boute_spec::plan::{Instances, ReplicaGroup, Role};

/// What `of` says of each kind of engine in a replica.
pub(crate) fn of_engines(group: &ReplicaGroup, of: impl Fn(&Instances<'_>) -> String) -> String {
    group.instances().iter().map(of).collect::<Vec<_>>().join(" → ")
}

/// `2× ` for engines of which a replica may have several.
pub(crate) fn counted(instances: &Instances<'_>) -> String {
    if instances.role == Role::Both { String::new() } else { format!("{}× ", instances.count) }
}

/// `TP4`, `TP4 × PP2`.
pub(crate) fn parallelism(instances: &Instances<'_>) -> String {
    let stages = if instances.pp > 1 { format!(" × PP{}", instances.pp) } else { String::new() };
    format!("TP{}{stages}", instances.tp)
}
