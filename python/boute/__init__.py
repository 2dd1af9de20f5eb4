"""The `boute` program from Python: every function runs the binary that this package brings and returns what it prints.

    plan = boute.plan("boute.yaml")
    boute.simulate(plan, "trace.csv")["p95_e2el_ms"]
    boute.groups(plan)                # a pandas DataFrame if pandas is installed, else a list of dicts
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from typing import Any

__all__ = ["BouteError", "Infeasible", "InputError", "binary", "front", "groups", "plan", "run", "simulate"]


class BouteError(Exception):
    """The program failed; the message is its own."""


class Infeasible(BouteError):
    """The answer is no: nothing meets the targets. The message says what would help."""


class InputError(BouteError):
    """The input cannot be used."""


def binary() -> str:
    """The program: `$BOUTE`, that of this installation, or the first on the path."""
    if named := os.environ.get("BOUTE"):
        return named
    name = "boute.exe" if sys.platform == "win32" else "boute"
    schemes = ["", "posix_user" if os.name == "posix" else "nt_user"]
    for scheme in schemes:
        scripts = sysconfig.get_path("scripts", scheme) if scheme else sysconfig.get_path("scripts")
        if scripts and (path := pathlib.Path(scripts) / name).is_file():
            return str(path)
    if found := shutil.which("boute"):
        return found
    raise FileNotFoundError("there is no `boute`: install the wheel again, or set BOUTE to the program")


def run(*arguments: str | os.PathLike[str]) -> Any:
    """Runs `boute ARGUMENTS --json` and returns what it prints, parsed. Progress goes to stderr if that is a terminal."""
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    command = [binary(), *map(os.fspath, arguments), "--json", *quiet]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=None if sys.stderr.isatty() else subprocess.PIPE, text=True)
    printed = json.loads(done.stdout) if done.stdout.strip() else None
    if done.returncode == 0 or (done.returncode == 1 and printed is not None and "infeasible" not in printed):
        return printed
    said = (done.stderr or "").strip()
    if done.returncode == 1:
        raise Infeasible((printed or {}).get("infeasible") or said)
    raise (InputError if done.returncode == 2 else BouteError)(said or f"exit status {done.returncode}")


def plan(spec: str | os.PathLike[str], output: str | os.PathLike[str] | None = None, **options: Any) -> dict[str, Any]:
    """Plans a spec: the plan as a dict, also written to `output` if given. `options` are the command's: `seed=1`, `cloud="aws"`.

    `plan["verification"]["passed"]` says whether every promise held when the whole fleet was simulated."""
    with _folder_for(output) as path:
        planned = run("plan", spec, "--output", path, *_flags(options))
        planned["_router"] = _read(pathlib.Path(path).with_suffix(".router.json"))
    return planned


def simulate(plan: dict[str, Any] | str | os.PathLike[str], trace: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Simulates a plan (a dict of `plan`, or a file) on a trace: the outcome as a dict. `options`: `rate="20 req/s"`, `quality=…`."""
    if not isinstance(plan, dict):
        return run("simulate", plan, "--trace", trace, *_flags(options))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "plan.json")
        path.write_text(json.dumps({key: value for key, value in plan.items() if key != "_router"}))
        if plan.get("_router"):
            path.with_name(plan["routing"]["router"]).write_text(plan["_router"])
        return run("simulate", path, "--trace", trace, *_flags(options))


def groups(plan: dict[str, Any]) -> Any:
    """The replica groups of a plan, a row each."""
    return _table([{key: value for key, value in group.items() if key != "engine"} for group in plan["deployment"]["groups"]])


def front(plan: dict[str, Any]) -> Any:
    """The plans that nothing beats in cost and quality, a row each."""
    return _table(plan["front"])


def _flags(options: dict[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        flags += [] if value is False or value is None else [flag] if value is True else [flag, os.fspath(value) if isinstance(value, os.PathLike) else str(value)]
    return flags


class _folder_for:
    """The given path, or one in a folder that goes away."""

    def __init__(self, output: str | os.PathLike[str] | None) -> None:
        self.output, self.folder = output, None if output else tempfile.TemporaryDirectory()

    def __enter__(self) -> str:
        return os.fspath(self.output) if self.output else os.path.join(self.folder.name, "plan.json")

    def __exit__(self, *_: object) -> None:
        if self.folder:
            self.folder.cleanup()


def _read(path: pathlib.Path) -> str | None:
    return path.read_text() if path.exists() else None


def _table(rows: list[dict[str, Any]]) -> Any:
    try:
        import pandas
    except ImportError:
        return rows
    return pandas.DataFrame(rows)
