#!/bin/sh
# Installs a wheel into a clean environment and uses it as a newcomer would: the command, the module, what both say to mistakes.
# Everything is in a folder that goes afterwards; nothing is fetched.
# usage: packaging/try-wheel.sh WHEEL [PYTHON]
set -eu
wheel="$(cd "$(dirname "$1")" && pwd)/$(basename "$1")"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${2:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check --no-index "$wheel"
PATH="$folder/venv/bin:$PATH"
BOUTE_CACHE="$folder/cache"
export PATH BOUTE_CACHE

boute --version
[ "$(python -m boute --version)" = "$(boute --version)" ]
[ "$(command -v boute)" = "$folder/venv/bin/boute" ]
boute --quiet init my-fleet --preset chat
boute check my-fleet/boute.yaml
python - << 'PYTHON'
import importlib.metadata
import boute

assert boute.binary().endswith("venv/bin/boute"), boute.binary()
licences = [str(path) for path in importlib.metadata.files("boute") if "LICENSE" in str(path)]
assert len(licences) == 2, licences
plan = boute.plan("my-fleet/boute.yaml", seed=1)
assert plan["verification"]["passed"] and plan["seed"] == 1
outcome = boute.simulate(plan, "my-fleet/data/azure2023_conv.csv.gz", requests=500)
assert outcome["completed"] == 500 and outcome["p95_e2el_ms"] > 0, outcome
assert sum(group["replicas"] for group in boute.groups(plan)) > 0
assert any(point["chosen"] for point in boute.front(plan))
assert boute.run("catalog", "gpus", "h100")[0]["gpu"].startswith("H100")
for wrong, error, says in [
    (lambda: boute.plan("missing.yaml"), boute.InputError, "cannot read `missing.yaml`"),
    (lambda: boute.plan("my-fleet/boute.yaml", strategy="magic"), boute.InputError, "magic"),
    (lambda: boute.simulate(plan, "missing.csv"), boute.InputError, "cannot read `missing.csv`"),
]:
    try:
        wrong()
    except error as said:
        assert says in str(said), said
    else:
        raise AssertionError(f"nothing was said of {says}")
print(f"a plan of {plan['predicted']['cost_usd_per_hour']:.2f} USD/h from Python")
PYTHON
venv/bin/pip uninstall --quiet --yes boute
[ ! -e venv/bin/boute ]
echo "the wheel works"
