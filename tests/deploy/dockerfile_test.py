"""Rules for the Dockerfile, hadolint's and ours. What it builds is tested by dockerfile_test.sh.

Usage: dockerfile_test.py BUILD [unittest arguments]
"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import yaml

import dockerfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.argv.pop(1)
ARGUMENTS, STAGES = dockerfile.parse((ROOT / "Dockerfile").read_text())
NAMED = {s.name: s for s in STAGES}
SERVING = [NAMED["router"], NAMED["server"]]
SHIPPED = [*SERVING, NAMED["batch"]]


class Rules(unittest.TestCase):
    def test_hadolint_finds_nothing(self):
        done = subprocess.run([pathlib.Path(sys.executable).with_name("hadolint"), ROOT / "Dockerfile"],
                              capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)

    def test_the_last_stage_is_the_server_and_compiles_nothing(self):
        self.assertIs(STAGES[-1], NAMED["server"])
        for stage in SHIPPED:
            commands = " ".join(i.text for i in stage.all("RUN"))
            for tool in ("cmake", "install_packages.sh", "pip", "curl", "wget"):
                self.assertNotRegex(commands, rf"\b{tool}\b")
            self.assertIn("--no-install-recommends", commands)
            self.assertIn("rm -rf /var/lib/apt/lists/*", commands)
            copied = [i.text for i in stage.all("COPY")]
            self.assertFalse([c for c in copied if c.split()[-2:] == [".", "."]])

    def test_every_base_is_debian_12_or_cuda_s_compiler(self):
        for stage in STAGES:
            base = stage.base
            self.assertTrue(base == "debian:12-slim" or base == "cuda-${CUDA}" or
                            (stage.name == "cuda-ON" and re.fullmatch(r"nvidia/cuda:[\d.]+-devel-\S+", base)), base)
        self.assertEqual(ARGUMENTS, {"CUDA": "OFF"})  # the one argument that picks the variant

    def test_nobody_is_root_and_nothing_is_written_beside_the_volumes(self):
        for stage in SHIPPED:
            user, = stage.all("USER")
            self.assertRegex(user.text, r"^[1-9]\d{3,}$")
            after = stage.instructions[stage.instructions.index(user):]
            self.assertFalse([i for i in after if i.name in ("RUN", "COPY")], "files of the image belong to root")
            self.assertNotRegex(" ".join(i.text for i in stage.all("RUN")), r"chmod|setcap|sudo")
        overlay = yaml.safe_load((ROOT / "deploy/k8s/base/server/statefulset.yaml").read_text())
        context = overlay["spec"]["template"]["spec"]["securityContext"]
        self.assertEqual(NAMED["server"].all("USER")[0].text, str(context["runAsUser"]))

    def test_labels_health_ports_and_entry(self):
        for stage in SHIPPED:
            labels = dict(word.split("=", 1) for word in stage.all("LABEL")[0].words({"VERSION": "v", "REVISION": "r"}))
            prefix = "org.opencontainers.image."
            self.assertEqual({k.removeprefix(prefix) for k in labels},
                             {"title", "description", "version", "revision", "base.name"})
            self.assertEqual(labels[f"{prefix}title"], f"tim4rec-{stage.name}")
            self.assertTrue(stage.all("ENTRYPOINT")[0].items(), "the process itself gets the signals")
            self.assertIn("sbom.cdx.json", " ".join(i.text for i in stage.all("RUN")))
        for stage in SERVING:
            health, = stage.all("HEALTHCHECK")
            self.assertRegex(health.text, r"--interval=\d+s --timeout=\d+s --start-period=\d+s\s+CMD \[")
            port = re.search(r"/dev/tcp/127\.0\.0\.1/(\d+)", health.text)[1]
            self.assertIn(port, stage.all("EXPOSE")[0].text.split())
        self.assertEqual(NAMED["server"].all("VOLUME")[0].text, "/data")

    def test_secrets_and_build_output_stay_out(self):
        ignored = (ROOT / ".dockerignore").read_text().split()
        self.assertLessEqual({"build", ".git"}, set(ignored))
        for stage in STAGES:
            for i in stage.instructions:
                self.assertNotRegex(f"{i.name} {i.text}", r"(?i)password|secret|token=")

    def test_faults_are_found(self):
        with self.assertRaisesRegex(ValueError, "line 2: ADD"):
            dockerfile.parse("FROM a\nADD x y\n")
        with self.assertRaises(KeyError):
            dockerfile.substitute("a $MISSING", {})


class Sbom(unittest.TestCase):
    def test_it_lists_what_is_installed(self):
        with tempfile.NamedTemporaryFile("w") as built, tempfile.NamedTemporaryFile("w") as python:
            built.write("libhwy-dev 1.0.3-3+deb12u1\n")
            built.flush()
            python.write("grpcio 1.85.1\n")
            python.flush()
            done = subprocess.run(["sh", ROOT / "deploy" / "sbom.sh", "tim4rec-server", "1.2", built.name, python.name],
                                  capture_output=True, text=True, check=True)
        sbom = json.loads(done.stdout)
        self.assertEqual((sbom["bomFormat"], sbom["specVersion"]), ("CycloneDX", "1.5"))
        here = subprocess.run(["dpkg-query", "-W", "-f=${Package} ${Version}\n"], capture_output=True, text=True,
                              check=True).stdout.splitlines()
        listed = {f"{c['name']} {c['version']}" for c in sbom["components"] if c["scope"] == "required"}
        self.assertEqual(listed, {*here, "tim4rec-server 1.2", "grpcio 1.85.1"})
        *_, debian, python = sbom["components"]
        self.assertEqual(debian["purl"], "pkg:deb/debian/libhwy-dev@1.0.3-3%2Bdeb12u1?distro=bookworm")
        self.assertEqual(debian["scope"], "excluded")
        self.assertEqual(python["purl"], "pkg:pypi/grpcio@1.85.1")


if __name__ == "__main__":
    unittest.main(verbosity=2)
