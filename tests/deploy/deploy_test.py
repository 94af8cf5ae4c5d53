"""Tests of the scripts in deploy/: the generator, the progress bar, the quickstart.

Usage: deploy_test.py ROOT PRESET [unittest arguments]
"""
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import unittest
import urllib.request

ROOT, PRESET = pathlib.Path(sys.argv.pop(1)), sys.argv.pop(1)
DEPLOY = ROOT / "deploy"


def run(*command, **options):
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **options)


class Synthesize(unittest.TestCase):
    def make(self, folder, *flags):
        out = pathlib.Path(folder, "s.inter")
        done = run(sys.executable, DEPLOY / "synthesize.py", out, "--users", 20, *flags)
        self.assertEqual(done.returncode, 0, done.stderr)
        return out.read_bytes(), out.with_suffix(".item").read_bytes()

    def test_same_seed_same_bytes(self):
        with tempfile.TemporaryDirectory() as folder:
            first = self.make(folder)
            self.assertEqual(first, self.make(folder))
            self.assertNotEqual(first, self.make(folder, "--seed", 8))

    def test_rows_are_in_time_order_and_items_have_titles(self):
        with tempfile.TemporaryDirectory() as folder:
            rows, items = self.make(folder)
            events = [line.split("\t") for line in rows.decode().splitlines()[1:]]
            self.assertEqual(len({u for u, _, _ in events}), 20)
            times = [int(t) for _, _, t in events]
            self.assertEqual(times, sorted(times))
            titled = {line.split("\t")[0] for line in items.decode().splitlines()[1:]}
            self.assertLessEqual({i for _, i, _ in events}, titled)

    def test_a_wrong_name_is_refused(self):
        done = run(sys.executable, DEPLOY / "synthesize.py", "/nowhere/s.csv")
        self.assertEqual(done.returncode, 2)
        self.assertIn("must end in .inter", done.stderr)


class Progress(unittest.TestCase):
    def test_the_last_step_is_shown_and_other_lines_pass(self):
        done = run(sys.executable, DEPLOY / "progress.py", "--label", "build",
                   input="[1/2] compiling\nwarning: odd\n[2/2] linking\n")
        self.assertIn("warning: odd\n", done.stdout)
        self.assertRegex(done.stdout, r"build \[#{30}\] 2/2 .* left")


class Packages(unittest.TestCase):
    def test_the_list_is_the_only_one(self):
        lines = [n for n in (DEPLOY / "packages.txt").read_text().splitlines() if n and not n.startswith("#")]
        self.assertEqual(lines.count("[tests]"), 1)
        names = [name for line in lines if line != "[tests]" for name in line.split(" | ")]
        self.assertEqual(len(names), len(set(names)))
        for name in names:
            self.assertRegex(name, r"^[a-z0-9][a-z0-9.+-]*$")
        self.assertIn("deploy/packages.txt", (ROOT / "Dockerfile").read_text())
        for script in (DEPLOY / "quickstart.sh", ROOT / "tests" / "run.sh"):
            self.assertIn("deploy/install_packages.sh", script.read_text())
            self.assertNotIn("apt-get", script.read_text())

    def test_the_part_of_the_tests_is_installed_for_them_only(self):
        def wanted(*flags):
            with tempfile.TemporaryDirectory() as folder:  # every package is installed, in here
                query = pathlib.Path(folder, "dpkg-query")
                query.write_text(f'#!/bin/sh\necho "$3" >>{folder}/asked\necho installed\n')
                query.chmod(0o755)
                done = run(DEPLOY / "install_packages.sh", *flags, env={"PATH": f"{folder}:/usr/bin:/bin"})
                self.assertEqual(done.returncode, 0, done.stderr)
                return set(pathlib.Path(folder, "asked").read_text().splitlines())
        part, whole = wanted(), wanted("--tests")
        self.assertLess(part, whole)
        self.assertIn("g++", part)
        self.assertEqual({"valgrind", "clang-tidy-14"} & part, set())
        self.assertLess({"valgrind", "clang-tidy-14"}, whole)
        self.assertEqual(run(DEPLOY / "install_packages.sh", "--test").returncode, 2)


class Capacity(unittest.TestCase):
    def plan(self, *flags):
        done = run(DEPLOY / "capacity.py", *flags)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_the_table_of_the_readme_is_what_it_prints(self):
        self.assertIn(self.plan(), (DEPLOY / "README.md").read_text())

    def test_whatever_is_scarcest_decides(self):
        # A million users: 46,300 events/s at 124 us are 5.7 cores; a tenth in memory is 3.9 GB; no events kept: 42 GB.
        flags = ["--users", 1e6, "--daily", 1, "--recommends", 0, "--events", 1000, "--peak", 4, "--hot", 0.1, "--history", 0]
        self.assertRegex(self.plan(*flags), r"\| 1M \| 0 \| 46k \| 5\.7 \| 3\.9 GB \| 42 GB \| 2 \|")
        self.assertRegex(self.plan(*flags, "--shard-cores", 1), r"\| 10 \|\n$")
        self.assertRegex(self.plan(*flags, "--shard-memory", 4), r"\| 2 \|\n$")
        self.assertRegex(self.plan(*flags, "--shard-memory", 2), r"\| 7 \|\n$")
        self.assertRegex(self.plan(*flags, "--shard-disk", 0.01), r"\| 7 \|\n$")


class Quickstart(unittest.TestCase):
    def test_an_unknown_option_and_a_missing_file_are_refused(self):
        for argument, word in (("--nope", "unknown option --nope"), ("/nowhere.inter", "cannot read /nowhere.inter")):
            done = run(DEPLOY / "quickstart.sh", argument)
            self.assertEqual(done.returncode, 2)
            self.assertIn(word, done.stderr)

    def test_help_tells_the_usage(self):
        done = run(DEPLOY / "quickstart.sh", "--help")
        self.assertEqual(done.returncode, 0)
        self.assertIn("Usage: deploy/quickstart.sh [--exit] [INTERACTIONS]", done.stdout)

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.data = pathlib.Path(folder.name, "tiny.inter")
        self.env = {"PATH": "/usr/local/cuda/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": folder.name,
                    "TIM4REC_PRESET": PRESET, "TIM4REC_RUN": str(pathlib.Path(folder.name, "run")),
                    "TIM4REC_TRAIN_FLAGS": "--epochs 2"}
        self.env |= {name: value for name, value in os.environ.items() if name.endswith("SAN_OPTIONS")}
        run(sys.executable, DEPLOY / "synthesize.py", self.data, "--users", 40, "--items", 80, "--events", 20)

    def test_from_a_file_to_recommendations(self):
        done = run(DEPLOY / "quickstart.sh", "--exit", self.data, timeout=900, env=self.env)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for heading in ("last interactions", "top 10 before", "top 10 after", "thirty days later",
                        "gRPC     127.0.0.1:", "metrics  http://127.0.0.1:", "the server was stopped"):
            self.assertIn(heading, done.stdout)
        rows = [line for line in done.stdout.splitlines() if re.search(r"Series \d+, Part \d+.* {3}.*Series", line)]
        self.assertEqual(len(rows), 30, done.stdout)

    def test_the_server_answers_until_ctrl_c_and_is_then_drained(self):
        # A shell cannot trap a signal that was ignored when it started, as it is in background jobs.
        with subprocess.Popen([DEPLOY / "quickstart.sh", self.data], env=self.env, text=True, start_new_session=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as quickstart:
            metrics = None
            for line in quickstart.stdout:
                metrics = line.split()[-1] if line.startswith("metrics  http") else metrics
                if line.startswith("stop it with Ctrl-C"):
                    break
            self.assertIsNotNone(metrics)
            with urllib.request.urlopen(metrics, timeout=30) as answer:
                self.assertIn("tim4rec_requests_total", answer.read().decode())
            os.killpg(quickstart.pid, signal.SIGINT)
            self.assertIn("the server has stopped", quickstart.stdout.read())
            self.assertEqual(quickstart.wait(), 0)
        log = pathlib.Path(self.env["TIM4REC_RUN"], "server.log").read_text()
        self.assertIn('"stopped"', log.splitlines()[-1])


if __name__ == "__main__":
    unittest.main(verbosity=2)
