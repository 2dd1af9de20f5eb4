"""Derives from FOLDER/heterogeneous.json a plan of one GPU and one whose large model spans two nodes of eight GPUs."""

import copy
import json
import pathlib
import sys

folder = pathlib.Path(sys.argv[1])
plan = json.loads((folder / "heterogeneous.json").read_text())


def write(name: str, plan: dict) -> None:
    (folder / f"{name}.json").write_text(json.dumps(plan, indent=1))


one = copy.deepcopy(plan)
group = one["deployment"]["groups"][0]
group.update(usd_per_hour=group["usd_per_hour"] / group["replicas"], replicas=1, tp=1, pp=1)
one["deployment"]["groups"] = [group]
one["predicted"]["cost_usd_per_hour"] = group["usd_per_hour"]
share = next(share for share in one["routing"]["models"] if share["model"] == group["model"])
share["load_fraction"] = 1.0
one["routing"].update(
    policy="constant", parameters={"model": group["model"]}, router="", router_digest="", models=[share]
)
for key in ("fallback", "certificate"):
    one["routing"].pop(key, None)
write("one-gpu", one)

two = copy.deepcopy(plan)
nodes = {gpu["name"]: gpu["gpus_per_node"] for gpu in two["gpus"]}
group = two["deployment"]["groups"][-1]
group.update(tp=nodes[group["gpu"]], pp=2, id="over-two-nodes")
write("two-nodes", two)
