#!/usr/bin/env python3
"""Runs ablation.py with the real program on a tiny data set.

Usage: ablation_test.py TIM4REC
"""
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import unittest

ABLATION = pathlib.Path(__file__).with_name("ablation.py")
SMALL = "--hidden-size 16 --head-dim 8 --d-state 8 --batch-size 128 --epochs 2 --min-count 0"
TIM4REC = sys.argv.pop()


class Ablation(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.out = pathlib.Path(folder.name) / "sweep"
        self.data = pathlib.Path(folder.name) / "tiny.inter"
        draw = random.Random(5)
        rows = [f"u{user}\ti{(user + 3 * event + draw.randrange(2)) % 25}\t{1600000000 + 90000 * event + user}"
                for user in range(30) for event in range(9)]
        self.data.write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(rows) + "\n")

    def sweep(self, *more, seeds=("1", "2")):
        done = subprocess.run([sys.executable, ABLATION, "--tim4rec", TIM4REC, "--out", self.out, "--jobs", "2",
                               "--data", self.data, "--seeds", *seeds, *more],
                              capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    def test_runs_resumes_and_compares(self):
        plain, aged = f"--set=plain={SMALL}", f"--set=age={SMALL} --query-features gap,age"
        code, table, said = self.sweep(plain, seeds=("1",))
        self.assertEqual(code, 0, said)
        code, table, said = self.sweep(plain, aged)
        self.assertEqual(code, 0, said)
        self.assertIn("4 runs, 1 of them finished before", said)
        rows = json.loads((self.out / "results.json").read_text())
        self.assertEqual([(row["set"], row["seed"]) for row in rows],
                         [("plain", 1), ("age", 1), ("plain", 2), ("age", 2)])
        for row in rows:
            run = self.out / "tiny" / row["set"] / f"s{row['seed']}"
            metrics = json.loads((run / "metrics.json").read_text())
            self.assertEqual(row["test_NDCG@10"], metrics["test"]["NDCG@10"])
            self.assertEqual(row["seed"], metrics["training"]["seed"])
            self.assertEqual((run / "config.json").exists(), row["set"] == "plain")
            self.assertFalse(run.with_name(run.name + ".checkpoint").exists())
        test = [row["test_NDCG@10"] for row in rows]
        lines = table.splitlines()
        self.assertEqual(len(lines), 4)
        self.assertIn(f"{(test[0] + test[2]) / 2:.4f} ± {abs(test[0] - test[2]) / 2 ** 0.5:.4f}", lines[2])
        self.assertIn(f"{100 * ((test[1] + test[3]) / (test[0] + test[2]) - 1):+.1f} %", lines[3])
        self.assertEqual(len((self.out / "results.tsv").read_text().splitlines()), 5)

        # Without its figures, a run goes on from its checkpoint, here up to the same end.
        code, again, said = self.sweep(plain, aged)
        self.assertEqual((code, again), (0, table), said)
        code, _, said = self.sweep(f"--set=plain={SMALL} --dropout 0.1", aged)
        self.assertEqual(code, 2)
        self.assertIn("was run with other flags before", said)

    def test_a_failed_run_is_told_and_the_others_go_on(self):
        code, table, said = self.sweep(f"--set=wrong={SMALL} --d-conv 1", f"--set=right={SMALL}", seeds=("1",))
        self.assertEqual(code, 1)
        self.assertIn("tiny wrong seed 1: failed, see", said)
        self.assertIn("d_conv is 1", (self.out / "tiny" / "wrong" / "s1.log").read_text())
        self.assertIn("| wrong | – | – (0 of 1 seeds) |", table)
        self.assertEqual([row["set"] for row in json.loads((self.out / "results.json").read_text())], ["right"])

    def test_goes_on_from_a_checkpoint(self):
        code, _, said = self.sweep(f"--set=a={SMALL}", seeds=("1",))
        self.assertEqual(code, 0, said)
        run = self.out / "tiny" / "a" / "s1"
        figures = json.loads((run / "metrics.json").read_text())
        # As a kill after the first epoch leaves it.
        (run / "metrics.json").unlink()
        trained = subprocess.run([TIM4REC, "train", self.data, *SMALL.replace("--epochs 2", "--epochs 1").split(),
                                  "--seed", "1", "--threads", "1", "--out", run],
                                 capture_output=True, text=True, check=False)
        self.assertEqual(trained.returncode, 0, trained.stderr)
        (run / "metrics.json").unlink()
        code, _, said = self.sweep(f"--set=a={SMALL}", seeds=("1",))
        self.assertEqual(code, 0, said)
        self.assertNotIn("epoch  1/2", (self.out / "tiny" / "a" / "s1.log").read_text().split("epoch  2/2", 1)[1])

        self.assertEqual(json.loads((run / "metrics.json").read_text())["training"]["epochs_run"],
                         figures["training"]["epochs_run"])

    def test_refuses_sets_it_cannot_run(self):
        for wrong, why in (("--set=a=--seed 3", "--seed is not for a set to give"), ("--set=a", "expected NAME"),
                           ("--set=a/b=", "expected NAME")):
            code, _, said = self.sweep(wrong)
            self.assertEqual(code, 2)
            self.assertIn(why, said)


if __name__ == "__main__":
    unittest.main()
