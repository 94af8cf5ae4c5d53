"""The overlays of deploy/k8s: rendered, held against the schemas of Kubernetes, and their configuration loaded.

Usage: k8s_test.py BUILD [unittest arguments]     BUILD: build/<preset>
"""
import base64
import collections
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

import grpc
import kubernetes_validate
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
from server_process import ServerProcess, free_port  # noqa: E402
from tim4rec import Ring  # noqa: E402

os.environ["PATH"] += ":/usr/sbin"
BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
K8S = ROOT / "deploy" / "k8s"
JOB = "batch"  # runs beside the servers of another overlay
OVERLAYS = sorted(p.name for p in (K8S / "overlays").iterdir() if p.name != JOB)
VERSIONS = ("1.27", "1.37")
NO_SCHEMA = {"ServiceMonitor"}  # of the Prometheus operator
PLURALS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def bytes_of(quantity):
    return int(quantity[:-2]) * PLURALS[quantity[-2:]]


class Rendered:
    """The objects of an overlay."""

    def __init__(self, overlay):
        done = subprocess.run(["kubectl", "kustomize", str(K8S / "overlays" / overlay)], capture_output=True, text=True,
                              check=False)
        if done.returncode != 0:
            raise AssertionError(f"{overlay}: {done.stderr}")
        self.objects = list(yaml.safe_load_all(done.stdout))

    def all(self, kind):
        return [o for o in self.objects if o["kind"] == kind]

    def one(self, kind, name=None):
        found = [o for o in self.all(kind) if name in (None, o["metadata"]["name"])]
        assert len(found) == 1, f"{len(found)} {kind} {name}"
        return found[0]

    def pods(self):
        return [(o["metadata"]["name"], o["spec"]["template"]) for k in ("StatefulSet", "Deployment", "Job")
                for o in self.all(k)]

    def server(self):
        return self.one("StatefulSet")["spec"]["template"]["spec"]["containers"][0]

    def files(self, prefix):
        """Of ConfigMaps and Secrets."""
        files = {}
        for o in self.all("ConfigMap"):
            if o["metadata"]["name"].startswith(prefix):
                files.update(o["data"])
        for o in self.all("Secret"):
            if o["metadata"]["name"].startswith(prefix):
                files.update({k: base64.b64decode(v).decode() for k, v in o["data"].items()})
        return files


class Overlays(unittest.TestCase):
    rendered = {}

    @classmethod
    def setUpClass(cls):
        cls.rendered = {name: Rendered(name) for name in OVERLAYS}
        cls.job = Rendered(JOB)

    def test_cpu_dev_and_gpu_are_there(self):
        self.assertEqual(OVERLAYS, ["cpu", "dev", "gpu", "history", "tls"])

    def test_every_object_fits_its_schema(self):
        for rendered in self.rendered.values():
            kinds = collections.Counter(o["kind"] for o in rendered.objects)
            for kind in ("StatefulSet", "Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler",
                         "NetworkPolicy", "ConfigMap", "ServiceAccount", "ServiceMonitor"):
                self.assertIn(kind, kinds)
        for rendered in (*self.rendered.values(), self.job):
            for o in rendered.objects:
                if o["kind"] in NO_SCHEMA:
                    continue
                for version in VERSIONS:
                    kubernetes_validate.validate(o, version, strict=True)

    def test_the_schemas_find_faults(self):
        broken = {**self.rendered["cpu"].one("StatefulSet")}
        broken["spec"] = {**broken["spec"], "replica": 3}
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, VERSIONS[0], strict=True)

    def test_selectors_find_pods_and_ports(self):
        def fits(selector, labels):
            return all(labels.get(k) == v for k, v in selector.items())
        for rendered in self.rendered.values():
            labels = {}  # a pod of a StatefulSet has its name as a label
            for name, pod in rendered.pods():
                for n in range(rendered.one("StatefulSet")["spec"]["replicas"] if name == "tim4rec" else 1):
                    labels[f"{name}-{n}"] = ({**pod["metadata"]["labels"],
                                              "statefulset.kubernetes.io/pod-name": f"{name}-{n}"}, pod)
            for service in rendered.all("Service"):
                found = [p for l, p in labels.values() if fits(service["spec"]["selector"], l)]
                self.assertTrue(found, service["metadata"]["name"])
                for pod in found:
                    ports = {p["name"] for c in pod["spec"]["containers"] for p in c["ports"]}
                    self.assertLessEqual({p["targetPort"] for p in service["spec"]["ports"]}, ports)
            for kind, path in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
                for o in rendered.all(kind):
                    self.assertTrue(any(fits(o["spec"][path]["matchLabels"], l) for l, _ in labels.values()))
            monitor = rendered.one("ServiceMonitor")["spec"]
            watched = [s for s in rendered.all("Service")
                       if fits(monitor["selector"]["matchLabels"], s["metadata"]["labels"])]
            self.assertEqual([s["metadata"]["name"] for s in watched],
                             ["tim4rec", "tim4rec-history"] if rendered is self.rendered["history"] else ["tim4rec"])
            for service in watched:
                self.assertIn(monitor["endpoints"][0]["port"], {p["name"] for p in service["spec"]["ports"]})
            targets = [o["spec"]["scaleTargetRef"] for o in rendered.all("HorizontalPodAutoscaler")]
            self.assertEqual({t["kind"] for t in targets}, {"Deployment"})  # the number of shards is nobody's to change
            self.assertEqual({t["name"] for t in targets}, {d["metadata"]["name"] for d in rendered.all("Deployment")})

    def test_what_is_mounted_exists(self):
        outside = {"tim4rec-router-tls", "tim4rec-router-tokens", "tim4rec-server-tls", "tim4rec-server-tokens"}  # by hand
        for name, rendered in self.rendered.items():
            made = {o["metadata"]["name"] for k in ("ConfigMap", "Secret") for o in rendered.all(k)}
            for workload, pod in rendered.pods():
                spec = pod["spec"]
                volumes = {v["name"] for v in spec["volumes"]}
                if workload == "tim4rec":
                    volumes |= {c["metadata"]["name"] for c in rendered.one("StatefulSet")["spec"]["volumeClaimTemplates"]}
                for container in spec["containers"] + spec.get("initContainers", []):
                    self.assertLessEqual({m["name"] for m in container["volumeMounts"]}, volumes)
                used = set(re.findall(r"(?:'name'|'secretName'): '(tim4rec-[^']*)'", str(spec["volumes"])))
                self.assertLessEqual(used, made | (set() if name == "dev" else outside), workload)
        readme = (K8S / "README.md").read_text()
        for secret in outside:
            self.assertIn(f"create secret generic {secret} ", readme)

    def test_containers_are_confined(self):
        for rendered in (*self.rendered.values(), self.job):
            for _, pod in rendered.pods():
                spec = pod["spec"]
                self.assertFalse(spec["automountServiceAccountToken"])
                context = spec["securityContext"]
                self.assertTrue(context["runAsNonRoot"] and context["runAsUser"] > 0)
                self.assertEqual(context["seccompProfile"], {"type": "RuntimeDefault"})
                for c in spec["containers"] + spec.get("initContainers", []):
                    self.assertEqual(c["securityContext"], {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem":
                                                            True, "capabilities": {"drop": ["ALL"]}})
                    self.assertIn("memory", c["resources"]["limits"])
                    self.assertLessEqual({"cpu", "memory"}, set(c["resources"]["requests"]))
                    self.assertRegex(c["image"], r"^registry\.example/tim4rec-\w+:[\w.-]+$")
                    self.assertNotIn(":latest", c["image"])
                for c in spec["containers"] if rendered is not self.job else []:
                    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                        self.assertIn(probe, c)
        for rendered in self.rendered.values():
            policy = rendered.one("NetworkPolicy", "tim4rec-router")
            self.assertNotEqual(policy["spec"]["egress"], [{}])
            server = rendered.one("NetworkPolicy", "tim4rec")
            self.assertEqual((server["spec"]["policyTypes"], server["spec"].get("egress", [])), (["Ingress", "Egress"], []))

    def test_shards_are_named_the_same_everywhere(self):
        for rendered in self.rendered.values():
            shards = [f"tim4rec-{n}" for n in range(rendered.one("StatefulSet")["spec"]["replicas"])]
            listed = re.findall(r"^server (\S+) max_fails=0;$", rendered.files("tim4rec-router")["servers.conf"], re.M)
            port = rendered.server()["ports"][0]["containerPort"]
            self.assertEqual(listed, [f"{s}:{port}" for s in shards])
            share = yaml.safe_load(rendered.files("tim4rec-config")["server.yaml"])["store"]["user_share"]
            self.assertAlmostEqual(share, 1 / len(shards), places=3)
            services = {s["metadata"]["name"]: s["spec"] for s in rendered.all("Service")}
            for shard in shards:
                self.assertEqual(services[shard]["selector"]["statefulset.kubernetes.io/pod-name"], shard)
                self.assertTrue(services[shard]["publishNotReadyAddresses"])
                self.assertNotIn("clusterIP", services[shard])
                self.assertEqual(services[shard]["ports"][0]["port"], port)
            self.assertEqual(len([s for s in services if re.fullmatch(r"tim4rec-\d+", s)]), len(shards))

    def test_the_job_has_an_index_for_each_shard_and_may_call_it(self):
        job = self.job.one("Job")["spec"]
        self.assertEqual((job["completionMode"], job["parallelism"]), ("Indexed", job["completions"]))
        pod = job["template"]
        container, = pod["spec"]["containers"]
        servers, = [a.removeprefix("--servers=") for a in container["args"] if a.startswith("--servers=")]
        for rendered in self.rendered.values():
            listed = re.findall(r"^server (\S+) max_fails=0;$", rendered.files("tim4rec-router")["servers.conf"], re.M)
            self.assertEqual(servers.split(","), listed)
            self.assertEqual(job["completions"], len(listed))
            policy = rendered.one("NetworkPolicy", "tim4rec")
            allowed = [f["podSelector"]["matchLabels"] for f in policy["spec"]["ingress"][0]["from"]]
            self.assertTrue(any(a.items() <= pod["metadata"]["labels"].items() for a in allowed))
            services = [s["spec"]["selector"] for s in rendered.all("Service")]
            self.assertFalse(any(s.items() <= pod["metadata"]["labels"].items() for s in services))
        claim = self.job.one("PersistentVolumeClaim")
        self.assertEqual(pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"], claim["metadata"]["name"])
        self.assertEqual(claim["spec"]["accessModes"], ["ReadWriteMany"])  # the pods are on several nodes

    def test_what_holds_nothing_is_scaled_by_its_queue_time(self):
        rendered = self.rendered["history"]
        metric, = rendered.one("HorizontalPodAutoscaler", "tim4rec-history")["spec"]["metrics"]
        rule, = yaml.safe_load((ROOT / "deploy/prometheus/adapter.yaml").read_text())["rules"]
        self.assertEqual((metric["type"], metric["pods"]["metric"]["name"]), ("Pods", rule["name"]["as"]))
        # Only they differ from the shards, whose server and configuration they run.
        history = rendered.one("Deployment", "tim4rec-history")["spec"]["template"]["spec"]
        shard = rendered.one("StatefulSet")["spec"]["template"]["spec"]
        for key in ("initContainers", "nodeSelector", "terminationGracePeriodSeconds"):
            self.assertEqual(history[key], shard[key])
        for key in set(history["containers"][0]) - {"resources"}:
            self.assertEqual(history["containers"][0][key], shard["containers"][0][key])
        self.assertEqual([v for v in history["volumes"] if v["name"] == "data"],
                         [{"name": "data", "emptyDir": {"sizeLimit": "1Gi"}}])
        service = rendered.one("Service", "tim4rec-history")["spec"]
        self.assertEqual(rendered.files("tim4rec-router")["any.conf"],
                         f"server tim4rec-history:{service['ports'][0]['port']};\n")
        reaches = rendered.one("NetworkPolicy", "tim4rec-history-router")["spec"]
        self.assertEqual(reaches["podSelector"], rendered.one("NetworkPolicy", "tim4rec-router")["spec"]["podSelector"])
        self.assertEqual(reaches["egress"][0]["to"][0]["podSelector"]["matchLabels"], service["selector"])

    def test_gpu_has_one_and_may_go_where_they_are(self):
        spec = self.rendered["gpu"].one("StatefulSet")["spec"]["template"]["spec"]
        self.assertEqual(spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"], 1)
        self.assertEqual(spec["tolerations"][0]["key"], "nvidia.com/gpu")
        self.assertIn("nvidia.com/gpu.present", spec["nodeSelector"])
        self.assertTrue(spec["containers"][0]["image"].endswith("-cuda"))
        self.assertNotIn("nvidia.com/gpu", str(self.rendered["cpu"].objects))


class Loaded(unittest.TestCase):
    """The configuration inside, read by those whom it is for."""

    def setUp(self):
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        self.folder = pathlib.Path(made.name)

    def test_the_server_takes_its_configuration(self):
        for overlay in OVERLAYS:
            with self.subTest(overlay=overlay):
                rendered = Rendered(overlay)
                container = rendered.server()
                path = self.folder / f"{overlay}.yaml"
                path.write_text(rendered.files("tim4rec-config")["server.yaml"])
                environment = {e["name"]: e["value"] for e in container.get("env", [])}
                self.assertEqual(container["args"], ["--config", "/etc/tim4rec/server.yaml"])
                done = subprocess.run([BUILD / "bin" / "tim4rec-server", "--config", path, "--print-config"],
                                      env=environment, capture_output=True, text=True, check=False)
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                config = yaml.safe_load(done.stdout)
                self.assertEqual((config["model"]["dir"], config["store"]["dir"]), ("/model", "/data/store"))
                ports = {p["name"]: p["containerPort"] for p in container["ports"]}
                self.assertEqual({"grpc": config["listen"], "metrics": config["metrics_listen"]},
                                 {name: f"0.0.0.0:{port}" for name, port in ports.items()})
                for probe in (container["startupProbe"], container["readinessProbe"]):  # the kubelet's gRPC speaks no TLS
                    asked = [probe.get("grpc", {}).get("port"), probe.get("httpGet")]
                    self.assertEqual(asked, [None, {"path": "/readyz", "port": "metrics"}] if config["tls"]["certificate"]
                                     else [ports["grpc"], None])
                grace = rendered.one("StatefulSet")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
                self.assertGreaterEqual(grace, 2 * int(config["server"]["drain_timeout_ms"]) / 1000)
                states = int(config["pipeline"]["max_resident_users"]) * 37_000 + int(config["store"]["block_cache_bytes"])
                self.assertGreater(bytes_of(container["resources"]["limits"]["memory"]), 1.3 * states)
                client = config["limits"]["client_metadata"]
                self.assertIn(f"grpc_set_header {client} $remote_addr;", rendered.files("tim4rec-router")["nginx.conf"])
                for name in environment:  # each names a key: the server warns of those that do not, at its start
                    key = name.removeprefix("TIM4REC_").lower()
                    keys = {"_".join((a, b)) for a, v in config.items() if isinstance(v, dict) for b in v}
                    self.assertIn(key, keys)

                environment.pop("TIM4REC_MODEL_BACKEND", None)  # there is no GPU here
                secrets = self.secrets(rendered, container)
                environment = {name: value.replace("/etc/tim4rec-secrets", str(secrets)) for name, value in environment.items()}
                data = self.folder / overlay
                with ServerProcess(BUILD, data, "--config", str(path), env=environment) as server:
                    channel = grpc.insecure_channel(server.address)
                    if config["tls"]["certificate"]:
                        channel = grpc.secure_channel(server.address, grpc.ssl_channel_credentials(
                            (secrets / "tls.crt").read_bytes()), [("grpc.ssl_target_name_override", "tim4rec-server")])
                    with channel:
                        check = channel.unary_unary("/grpc.health.v1.Health/Check")
                        self.assertEqual(check(b"", timeout=20), b"\x08\x01")  # SERVING
                    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                        if "httpGet" in container[probe]:
                            url = f"http://{server.metrics}{container[probe]['httpGet']['path']}"
                            with urllib.request.urlopen(url, timeout=20) as answer:
                                self.assertEqual(answer.status, 200)
                    self.assertEqual(server.stop(), 0)

    def secrets(self, rendered, container):
        """The folder that the pod mounts them from, files and modes as there, made here."""
        folder = self.folder / "secrets"
        if not any(m["name"] == "secrets" for m in container["volumeMounts"]):
            return folder
        volume, = [v["projected"] for v in rendered.one("StatefulSet")["spec"]["template"]["spec"]["volumes"]
                   if v["name"] == "secrets"]
        self.assertEqual([s["secret"]["name"] for s in volume["sources"]], ["tim4rec-server-tls", "tim4rec-server-tokens"])
        folder.mkdir()
        self.make_certificate(folder, "tim4rec-server")
        (folder / "tokens").write_text("read,write 0123456789abcdef\n")
        for file in folder.iterdir():
            file.chmod(volume["defaultMode"])
        return folder

    def make_certificate(self, folder, name):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
                        f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-keyout", "tls.key", "-out", "tls.crt"],
                       cwd=folder, check=True, capture_output=True)

    def test_the_job_answers_every_user_once(self):
        """Its command for each index, before real servers; each container is killed once and started again."""
        job = Rendered(JOB).one("Job")["spec"]
        container, = job["template"]["spec"]["containers"]
        self.assertEqual(container["env"][0]["valueFrom"]["fieldRef"]["fieldPath"],
                         "metadata.annotations['batch.kubernetes.io/job-completion-index']")
        names = {f"tim4rec-{n}:50051": f"127.0.0.1:{free_port()}" for n in range(job["completions"])}
        for address in names.values():
            server = ServerProcess(BUILD, self.folder / address.replace(":", "_"), listen=address)
            self.addCleanup(server.__exit__)
        users = [f"u{n}" for n in range(3000)]
        pq.write_table(pa.table({"user_id": users}), self.folder / "users.parquet")
        (self.folder / "lists").mkdir()
        program = pathlib.Path(sys.executable).with_name(pathlib.PurePath(container["command"][0]).name)
        for index in range(job["completions"]):
            command = [str(program)]
            for word in container["args"]:
                word = word.replace("$(SHARD)", str(index)).replace("/batch/", f"{self.folder}/")
                command.append(re.sub(r"tim4rec-\d+:50051", lambda m: names[m[0]], word))
            command += ["--part-users", "100"]
            with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
                while not (self.folder / "lists" / str(index) / "part-00001.parquet").exists() and first.poll() is None:
                    time.sleep(0.005)
                first.kill()
            subprocess.run(command, stderr=subprocess.DEVNULL, check=True, timeout=60)
        rows = collections.Counter()
        for index, address in enumerate(names.values()):
            ring, parts = Ring(list(names.values())), sorted((self.folder / "lists" / str(index)).glob("part-*.parquet"))
            self.assertEqual(len(parts), 30)
            for part in parts:
                mine = pq.read_table(part, columns=["user_id"])["user_id"].to_pylist()
                self.assertEqual({ring.server_of(u) for u in mine} - {address}, set())
                rows.update(mine)
        self.assertEqual(rows, {user: 10 for user in users})

    def test_nginx_takes_its_configuration(self):
        self.make_certificate(self.folder, "router")
        shutil.copy(self.folder / "tls.crt", self.folder / "ca.crt")
        for overlay in OVERLAYS:
            with self.subTest(overlay=overlay):
                rendered = Rendered(overlay)
                files = {"tokens.conf": '"Bearer token" 1;\n', **rendered.files("tim4rec-router")}
                for name, text in files.items():
                    text = text.replace("/tmp/", f"{self.folder}/").replace("/etc/tim4rec/tls", str(self.folder))
                    text = text.replace("/etc/tim4rec/servers-tls", str(self.folder))
                    (self.folder / name).write_text(re.sub(r"tim4rec-(\d+|history):", "127.0.0.1:", text))
                pod = rendered.one("Deployment", "tim4rec-router")["spec"]["template"]["spec"]["containers"][0]
                self.assertIn("/etc/tim4rec/router/nginx.conf", pod["command"])
                done = subprocess.run(["nginx", "-t", "-e", "stderr", "-p", self.folder, "-c",
                                       self.folder / "nginx.conf"], capture_output=True, text=True, check=False)
                self.assertEqual(done.returncode, 0, done.stderr)
                ports = {f"listen {p['containerPort']}" for p in pod["ports"]}
                self.assertEqual(set(re.findall(r"^\s*(listen \d+)", files["listen.conf"] + files["nginx.conf"], re.M)), ports)


if __name__ == "__main__":
    for tool in ("kubectl", "nginx"):
        if shutil.which(tool) is None:
            print(f"skipped: no {tool}; deploy/install_packages.sh --tests installs it")
            sys.exit(77)
    unittest.main(verbosity=2)
