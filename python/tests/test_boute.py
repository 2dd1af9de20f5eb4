"""BOUTE=target/debug/boute PYTHONPATH=python python3 -m unittest discover -s python/tests"""

import os
import pathlib
import tempfile
import unittest

import boute

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
TRACE = EXAMPLES / "data/azure2023_conv.csv.gz"


class Boute(unittest.TestCase):
    def test_a_plan_is_made_and_simulated(self):
        plan = boute.plan(EXAMPLES / "llama-8b-70b.yaml", seed=1)
        self.assertTrue(plan["verification"]["passed"])
        rows = boute.groups(plan)
        self.assertEqual(len(rows), len(plan["deployment"]["groups"]))
        self.assertGreater(len(boute.front(plan)), 1)
        quality = EXAMPLES / "data/mmlu_pro_llama.jsonl.gz"
        outcome = boute.simulate(plan, TRACE, rate="20 req/s", requests=500, quality=quality)
        self.assertEqual((outcome["completed"], outcome["failed"]), (500, 0))

    def test_a_plan_is_kept(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "mine.json")
            boute.plan(EXAMPLES / "llama-8b-70b.yaml", output=path)
            self.assertTrue(path.exists() and path.with_name("mine.router.json").exists())
            self.assertEqual(boute.simulate(path, TRACE, rate="20 req/s", requests=200)["completed"], 200)

    def test_failures_are_told(self):
        with tempfile.TemporaryDirectory() as folder:
            spec = (EXAMPLES / "llama-8b-70b.yaml").read_text().replace("data/", f"{EXAMPLES}/data/")
            path = pathlib.Path(folder, "boute.yaml")
            path.write_text(spec.replace("$80/h", "$5/h"))
            with self.assertRaisesRegex(boute.Infeasible, "raise the budget"):
                boute.plan(path)
            path.write_text(spec.replace("budget", "budge"))
            with self.assertRaisesRegex(boute.InputError, "did you mean `budget`"):
                boute.plan(path)
        with self.assertRaises(FileNotFoundError):
            os.environ["BOUTE"], kept = "/nowhere/boute", os.environ.get("BOUTE")
            try:
                boute.run("schema")
            finally:
                os.environ.pop("BOUTE") if kept is None else os.environ.__setitem__("BOUTE", kept)


if __name__ == "__main__":
    unittest.main()
