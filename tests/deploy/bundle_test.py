#!/usr/bin/env python3
"""The relocatable bundle: `cmake --install --component serve`, and `--component cli` into the same folder, run where nothing
of ours, nor of Debian's, is installed.

Usage: bundle_test.py BUILD     BUILD: build/<preset>. As root, to make a root file system that holds glibc alone.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
# glibc's, which every Linux brings, newer or the same.
GLIBC = re.compile(r"^(ld-linux.*|lib(c|m|dl|rt|pthread|resolv|util)\.so\..*|linux-vdso.*)$")


class Bundle(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.root = pathlib.Path(folder.name)
        cls.bundle = cls.root / "opt" / "anywhere"
        cls.install("serve")
        cls.of_service = {p.name for p in (cls.bundle / "lib").iterdir()}
        cls.install("cli")
        shutil.copytree(ROOT / "tests" / "e2e" / "testdata" / "tiny_model", cls.bundle / "model")

    @classmethod
    def install(cls, component):
        subprocess.run(["cmake", "--install", BUILD, "--prefix", cls.bundle, "--component", component, "--strip"], check=True,
                       capture_output=True)

    def test_every_library_but_glibc_is_within(self):
        for program in ("tim4rec-server", "tim4rec-loadgen", "tim4rec", "libtim4rec_torch.so"):
            # As another machine: the loader of this one, told of no folder and no cache of libraries.
            listed = subprocess.run(["ldd", self.bundle / "bin" / program], capture_output=True, text=True, check=True).stdout
            libraries = dict(re.findall(r"^\s*(\S+) => (\S+)", listed, re.M))
            self.assertGreater(len(libraries), 30)
            for name, path in libraries.items():
                if not GLIBC.match(name):
                    self.assertTrue(path.startswith(str(self.bundle / "lib")) or path.startswith(
                        str(self.bundle / "bin" / ".." / "lib")), f"{program}: {name} is {path}")
                    # The service needs nothing that the CLI brought.
                    self.assertTrue("torch" in program or program == "tim4rec" or name in self.of_service,
                                    f"{program}: {name}")
        self.assertEqual([p.name for p in (self.bundle / "lib").iterdir() if GLIBC.match(p.name)], [])
        self.assertEqual([name for name in self.of_service if "torch" in name], [])

    def inside(self, program, *arguments):
        """A command that runs a program of the bundle in self.root, with /proc: $ORIGIN is found there."""
        script = 'mount --bind /proc "$1/proc" && exec chroot "$@"'
        return ["unshare", "--mount", "sh", "-c", script, "sh", self.root, f"/opt/anywhere/bin/{program}", *arguments]

    def run_inside(self, program, *arguments):
        """What it prints."""
        done = subprocess.run(self.inside(program, *arguments), capture_output=True, text=True, timeout=120, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_serves_and_verifies_where_only_glibc_is(self):
        (self.root / "proc").mkdir()
        mounts = ["unshare", "--mount", "mount", "--bind", "/proc", self.root / "proc"]
        if os.geteuid() != 0 or subprocess.run(mounts, check=False).returncode != 0:
            self.skipTest("a root file system of its own needs root and mounts")
        for program in ("tim4rec-server", "tim4rec"):
            listed = subprocess.run(["ldd", self.bundle / "bin" / program], capture_output=True, text=True, check=True)
            for path in re.findall(r"(/\S+)", listed.stdout):
                if GLIBC.match(pathlib.Path(path).name):
                    target = self.root / path.lstrip("/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, target)
        for name in ("tmp", "etc", "dev", "data"):
            (self.root / name).mkdir()
        os.mknod(self.root / "dev" / "urandom", 0o20666, os.makedev(1, 9))
        os.mknod(self.root / "dev" / "null", 0o20666, os.makedev(1, 3))
        log = self.root / "log"
        with log.open("w") as output:
            server = subprocess.Popen(
                self.inside("tim4rec-server", "--model", "/opt/anywhere/model", "--data", "/data/store", "--listen",
                            "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"),
                stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 60
            while not (found := re.search(r"^listening on (\S+)$", log.read_text(), re.M)):
                self.assertIsNone(server.poll(), log.read_text())
                self.assertLess(time.monotonic(), deadline, log.read_text())
                time.sleep(0.1)
            self.run_inside("tim4rec-loadgen", "--target", found[1], "--model", "/opt/anywhere/model", "--users", "20",
                            "--history", "5", "--scenario", "recommend", "--duration", "0.5")
        finally:
            server.terminate()
            self.assertEqual(server.wait(timeout=60), 0, log.read_text())
        self.assertIn("recommend", self.run_inside("tim4rec", "--help"))
        for program in ("tim4rec", "tim4rec-server", "tim4rec-loadgen"):
            self.assertRegex(self.run_inside(program, "--version"), rf"^{program} \d+\.\d+\.\d+$")
        store = ("--store", "/data/store", "--model", "/opt/anywhere/model")
        self.assertEqual(self.run_inside("tim4rec", "verify", *store), "")
        batch = ("tim4rec", "batch", *store, "--k", "3", "--as-of-ms", "4102444800000")
        rows = [row.split("\t") for row in self.run_inside(*batch).splitlines()]
        self.assertEqual(len(rows), 20 * 3, rows)
        for row, by_torch in zip(rows, self.run_inside(*batch, "--backend", "torch").splitlines(), strict=True):
            user, item, score = by_torch.split("\t")
            self.assertEqual([user, item], row[:2])
            self.assertAlmostEqual(float(score), float(row[2]), delta=1e-4)


if __name__ == "__main__":
    unittest.main(verbosity=2)
