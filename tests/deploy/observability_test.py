"""The dashboard and the alerts: against a live server, a real Prometheus and promtool.

Usage: observability_test.py BUILD [unittest arguments]     BUILD: build/<preset>
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
from server_process import ServerProcess, free_port  # noqa: E402
from tim4rec import CallError, Client, Interaction, Query  # noqa: E402

BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
DASHBOARD = ROOT / "deploy" / "grafana" / "tim4rec.json"
T0 = 1_700_000_000_000
# Metrics that no panel shows, and why. Whoever adds a metric adds a panel or a line.
NOT_SHOWN = {
    "tim4rec_certificate_expiry_timestamp_seconds": "an alert watches it, weeks ahead",
    "tim4rec_secrets_unusable": "an alert watches it",
}


def alerts():
    return {rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}


def queries():
    """(panel, expression) of the dashboard."""
    return [(panel["title"], target["expr"]) for panel in json.loads(DASHBOARD.read_text())["panels"]
            for target in panel.get("targets", [])]


def metrics_in(expression, known):
    """The server's metrics that an expression names; a histogram by its family."""
    names = set(re.findall(r"\b(?:tim4rec|process)_\w+", expression))
    return {n if n in known else re.sub(r"_(bucket|sum|count)$", "", n) for n in names}


def traffic(client, n):
    """A little of everything, an error included."""
    user = f"u{n % 7}"
    client.record_and_recommend(user, [Interaction(f"item{n % 60 + 1}", T0 + n * 1000)])
    client.recommend(user, Query(k=5))
    try:
        client.recommend("")
    except CallError:
        pass


class Live(unittest.TestCase):
    """A server with some traffic, and a Prometheus that scrapes it and holds the rules."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.server = ServerProcess(BUILD, pathlib.Path(folder.name, "data"))
        cls.addClassCleanup(cls.server.__exit__)
        port = free_port()
        config = pathlib.Path(folder.name, "prometheus.yaml")
        config.write_text(yaml.safe_dump({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": "tim4rec", "static_configs": [{"targets": [cls.server.metrics]}]}]}))
        log = pathlib.Path(folder.name, "log").open("w")
        cls.addClassCleanup(log.close)
        prometheus = subprocess.Popen(["prometheus", f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}",
                                       f"--storage.tsdb.path={folder.name}/tsdb"], stdout=log, stderr=log)
        cls.addClassCleanup(prometheus.wait)
        cls.addClassCleanup(prometheus.terminate)
        cls.api = f"http://127.0.0.1:{port}/api/v1"
        cls.wait_until_ready(port, prometheus)
        with Client(cls.server.address) as client:
            deadline = time.monotonic() + 60
            n = 0
            while time.monotonic() < deadline:
                traffic(client, n)
                n += 1
                # rate() needs two scrapes with traffic between them, of series that were there at the first.
                if n % 20 == 0 and cls.value('min(count_over_time(tim4rec_requests_total{code!="OK"}[1m]))') >= 4:
                    break
                time.sleep(0.02)
        cls.known = {line.split()[2] for line in cls.server.scrape().splitlines() if line.startswith("# TYPE ")}

    @staticmethod
    def wait_until_ready(port, prometheus):
        """Queries are refused with 503 before."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and prometheus.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=20).close()
                return
            except urllib.error.URLError:
                time.sleep(0.05)
        raise AssertionError(f"Prometheus is not ready, exit status {prometheus.poll()}")

    @classmethod
    def ask(cls, path, **parameters):
        url = f"{cls.api}/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    @classmethod
    def value(cls, expression):
        result = cls.ask("query", query=expression)["result"]
        return float(result[0]["value"][1]) if result else 0.0

    def test_every_panel_shows_something(self):
        self.assertGreater(len(queries()), 20)
        for panel, expression in queries():
            plain = expression.replace("$__rate_interval", "30s").replace("$instance", ".*")
            found = self.ask("query", query=plain)["result"]
            self.assertTrue(found, f"{panel}: nothing for {plain}")
            if "quantile" not in plain and " / " not in plain:
                self.assertNotIn("NaN", [f["value"][1] for f in found], panel)

    def test_every_metric_is_shown_documented_and_real(self):
        shown = set().union(*(metrics_in(e, self.known) for _, e in queries()))
        alerted = set().union(*(metrics_in(a["expr"], self.known) for a in alerts().values()))
        self.assertEqual(shown - self.known, set(), "panels of metrics that the server does not have")
        self.assertEqual(alerted - self.known, set(), "alerts on metrics that the server does not have")
        self.assertEqual(self.known - shown - set(NOT_SHOWN), set(), "metrics without a panel or a reason")
        documented = set(re.findall(r"^\| `((?:tim4rec|process)_\w+)` \|", (ROOT / "server" / "README.md").read_text(), re.M))
        self.assertEqual(documented, self.known)

    def test_the_autoscaler_is_told_the_mean_queue_time(self):
        rule, = yaml.safe_load((ROOT / "deploy" / "prometheus" / "adapter.yaml").read_text())["rules"]
        self.assertIn(re.match(r"\w+", rule["seriesQuery"])[0].removesuffix("_count"), self.known)
        query = rule["metricsQuery"].replace("<<.LabelMatchers>>", 'job="tim4rec"').replace("<<.GroupBy>>", "instance")
        found, = self.ask("query", query=query)["result"]
        self.assertEqual(found["metric"], {"instance": self.server.metrics})
        total, count = (float(re.search(rf"^tim4rec_queue_wait_seconds_{what} (\S+)$", self.server.scrape(), re.M)[1])
                        for what in ("sum", "count"))
        self.assertGreater(count, 0)
        self.assertGreater(float(found["value"][1]), 0)
        self.assertLess(float(found["value"][1]), 10 * total / count)

    def test_a_healthy_server_raises_no_alert(self):
        groups = self.ask("rules")["groups"]
        rules = [r for g in groups for r in g["rules"]]
        self.assertEqual({r["name"] for r in rules}, set(alerts()))
        self.assertEqual({(r["name"], r["health"], r.get("lastError", "")) for r in rules},
                         {(name, "ok", "") for name in alerts()})
        states = {r["name"]: r["state"] for r in rules}
        if states["Tim4recSlow"] == "pending":  # this machine is busy, which says nothing of the server
            del states["Tim4recSlow"]
        self.assertEqual(set(states.values()), {"inactive"}, states)


S = 'instance="a:9464"'
# Alert → the series that fire it, when it fires, what it is labelled with beside severity and instance.
FIRES = {
    "Tim4recDown": ({f'up{{job="tim4rec",{S}}}': "1 0x20"}, "5m", {"job": "tim4rec"}),
    "Tim4recNotReady": ({f"tim4rec_ready{{{S}}}": "0x20"}, "6m", {}),
    "Tim4recCrashLoop": ({f"tim4rec_unclean_starts{{{S}}}": "3x20", f"process_start_time_seconds{{{S}}}": "60x20"}, "5m", {}),
    "Tim4recStoreNotWritable": ({f"tim4rec_store_writable{{{S}}}": "1 0x20"}, "3m", {}),
    "Tim4recDiskFilling": ({'kubelet_volume_stats_available_bytes{persistentvolumeclaim="data-tim4rec-0"}': "14x20",
                            'kubelet_volume_stats_capacity_bytes{persistentvolumeclaim="data-tim4rec-0"}': "100x20"},
                           "12m", {"persistentvolumeclaim": "data-tim4rec-0", "instance": None}),
    "Tim4recStoreFailures": ({f'tim4rec_store_failures_total{{operation="read",{S}}}': "0 0 1x20"}, "4m",
                             {"operation": "read"}),
    "Tim4recDataLoss": ({f'tim4rec_requests_total{{code="DATA_LOSS",method="Recommend",{S}}}': "0x10 1x20"}, "14m", {}),
    "Tim4recCorruptStates": ({f"tim4rec_corrupt_states{{{S}}}": "0 1x20"}, "2m", {}),
    "Tim4recErrors": ({f'tim4rec_requests_total{{code="OK",method="Recommend",{S}}}': "0+980x20",
                       f'tim4rec_requests_total{{code="UNAVAILABLE",method="Recommend",{S}}}': "0+20x20"}, "11m", {}),
    "Tim4recSlow": ({f'tim4rec_request_duration_seconds_bucket{{method="Recommend",le="0.1",{S}}}': "0+98x30",
                     f'tim4rec_request_duration_seconds_bucket{{method="Recommend",le="0.2",{S}}}': "0+100x30",
                     f'tim4rec_request_duration_seconds_bucket{{method="Recommend",le="+Inf",{S}}}': "0+100x30"},
                    "16m", {}),
    "Tim4recQueueLong": ({f'tim4rec_queue_depth{{worker="1",{S}}}': "1001x20",
                          f'tim4rec_queue_depth{{worker="0",{S}}}': "3x20"}, "6m", {}),
    "Tim4recRefusing": ({f'tim4rec_dropped_requests_total{{reason="queue_full",{S}}}': "0+1x20"}, "10m",
                        {"reason": "queue_full"}),
    "Tim4recColdMemory": ({f'tim4rec_state_lookups_total{{tier="hot",{S}}}': "0+400x60",
                           f'tim4rec_state_lookups_total{{tier="stored",{S}}}': "0+600x60",
                           f"tim4rec_evictions_total{{{S}}}": "0+600x60"}, "35m", {}),
    "Tim4recRejectedEvents": ({f'tim4rec_events_total{{outcome="applied",{S}}}': "0+94x40",
                               f'tim4rec_events_total{{outcome="rejected",{S}}}': "0+6x40"}, "25m", {}),
    "Tim4recUnknownItems": ({f'tim4rec_events_total{{outcome="applied",{S}}}': "0+79x90",
                             f'tim4rec_events_total{{outcome="unknown_item",{S}}}': "0+21x90"}, "70m", {}),
    "Tim4recModelsDiffer": ({f'tim4rec_model_info{{fingerprint="x",{S}}}': "1x90",
                             'tim4rec_model_info{fingerprint="y",instance="b:9464"}': "1x90"}, "65m", {"instance": None}),
    "Tim4recPromotionStuck": ({f"tim4rec_model_states_to_refold{{{S}}}": "0 50x60"}, "35m", {}),
    "Tim4recCertificateExpires": ({f"tim4rec_certificate_expiry_timestamp_seconds{{{S}}}": "1200000x90"}, "65m", {}),
    "Tim4recDeviceLost": ({f"tim4rec_device_lost{{{S}}}": "0 0 1x20"}, "4m", {}),
    "Tim4recSecretsUnusable": ({f'tim4rec_secrets_unusable{{kind="tls",{S}}}': "1x20"}, "6m", {"kind": "tls"}),
}
# The same kinds of series in a healthy state: alert → series, where none may fire at the time of FIRES.
QUIET = {
    "Tim4recDown": {f'up{{job="other",{S}}}': "0x20"},
    "Tim4recNotReady": {f"tim4rec_ready{{{S}}}": "0 0 0 1x20"},
    "Tim4recCrashLoop": {f"tim4rec_unclean_starts{{{S}}}": "2x20", f"process_start_time_seconds{{{S}}}": "60x20"},
    "Tim4recStoreNotWritable": {f"tim4rec_store_writable{{{S}}}": "1x20"},
    "Tim4recDiskFilling": {'kubelet_volume_stats_available_bytes{persistentvolumeclaim="data-tim4rec-0"}': "16x20",
                           'kubelet_volume_stats_capacity_bytes{persistentvolumeclaim="data-tim4rec-0"}': "100x20"},
    "Tim4recStoreFailures": {f'tim4rec_store_failures_total{{operation="read",{S}}}': "5x20"},
    "Tim4recDataLoss": {f'tim4rec_requests_total{{code="NOT_FOUND",method="Recommend",{S}}}': "0x10 5x20",
                        f'tim4rec_requests_total{{code="DATA_LOSS",method="Recommend",{S}}}': "5x30"},  # long ago
    "Tim4recCorruptStates": {f"tim4rec_corrupt_states{{{S}}}": "0x20"},
    "Tim4recErrors": {f'tim4rec_requests_total{{code="OK",method="Recommend",{S}}}': "0+980x20",
                      f'tim4rec_requests_total{{code="INVALID_ARGUMENT",method="Recommend",{S}}}': "0+900x20",
                      f'tim4rec_requests_total{{code="UNAVAILABLE",method="Recommend",{S}}}': "0+5x20"},
    "Tim4recSlow": {f'tim4rec_request_duration_seconds_bucket{{method="Recommend",le="0.1",{S}}}': "0+100x30",
                    f'tim4rec_request_duration_seconds_bucket{{method="Recommend",le="+Inf",{S}}}': "0+100x30",
                    f'tim4rec_request_duration_seconds_bucket{{method="DeleteUser",le="0.1",{S}}}': "0x30",
                    f'tim4rec_request_duration_seconds_bucket{{method="DeleteUser",le="+Inf",{S}}}': "0+100x30"},
    "Tim4recQueueLong": {f'tim4rec_queue_depth{{worker="{w}",{S}}}': "600x20" for w in (0, 1)},
    "Tim4recRefusing": {f'tim4rec_dropped_requests_total{{reason="deadline",{S}}}': "0+1x20"},
    "Tim4recColdMemory": {f'tim4rec_state_lookups_total{{tier="stored",{S}}}': "0+600x60",  # warming up: none evicted
                          f"tim4rec_evictions_total{{{S}}}": "0x60"},
    "Tim4recRejectedEvents": {f'tim4rec_events_total{{outcome="applied",{S}}}': "0+96x40",
                              f'tim4rec_events_total{{outcome="rejected",{S}}}': "0+4x40"},
    "Tim4recUnknownItems": {f'tim4rec_events_total{{outcome="applied",{S}}}': "0+81x90",
                            f'tim4rec_events_total{{outcome="unknown_item",{S}}}': "0+19x90"},
    "Tim4recModelsDiffer": {f'tim4rec_model_info{{fingerprint="x",{S}}}': "1x90",
                            'tim4rec_model_info{fingerprint="x",instance="b:9464"}': "1x90"},
    "Tim4recPromotionStuck": {f"tim4rec_model_states_to_refold{{{S}}}": "100-1x60"},
    "Tim4recCertificateExpires": {f"tim4rec_certificate_expiry_timestamp_seconds{{{S}}}": "1300000x90",
                                  'tim4rec_certificate_expiry_timestamp_seconds{instance="b:9464"}': "0x90"},
    "Tim4recDeviceLost": {f"tim4rec_device_lost{{{S}}}": "0x20"},
    "Tim4recSecretsUnusable": {f'tim4rec_secrets_unusable{{kind="tls",{S}}}': "0x20"},
}


class Rules(unittest.TestCase):
    def test_every_alert_fires_and_only_when_it_should(self):
        self.assertEqual((set(FIRES), set(QUIET)), (set(alerts()), set(alerts())))
        tests = []
        for name, rule in alerts().items():
            series, at, more = FIRES[name]
            labels = {k: v for k, v in {"instance": "a:9464", **rule["labels"], **more}.items() if v is not None}
            summary = re.sub(r"{{ \$labels\.(\w+) }}", lambda m: labels[m[1]], rule["annotations"]["summary"])
            fired = [{"exp_labels": labels, "exp_annotations": {**rule["annotations"], "summary": summary}}]
            for inputs, expected in ((series, fired), (QUIET[name], [])):
                tests.append({"interval": "1m", "input_series": [{"series": s, "values": v} for s, v in inputs.items()],
                              "alert_rule_test": [{"alertname": name, "eval_time": at, "exp_alerts": expected}]})
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "tests.yaml")
            path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
            done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_every_alert_has_a_section_of_the_runbook(self):
        sections = re.findall(r"^## (Tim4rec\w+)\n\n(\S)", (ROOT / "deploy" / "RUNBOOK.md").read_text(), re.M)
        self.assertEqual([name for name, _ in sections], list(alerts()))
        for name, rule in alerts().items():
            self.assertEqual(rule["annotations"]["runbook"], f"deploy/RUNBOOK.md#{name.lower()}")
            self.assertIn(rule["labels"]["severity"], ("page", "ticket"))

    def test_panels_that_the_runbook_names_exist(self):
        titles = {panel["title"] for panel in json.loads(DASHBOARD.read_text())["panels"]}
        named = set(re.findall(r'[Pp]anel "([^"]+)"', (ROOT / "deploy" / "RUNBOOK.md").read_text()))
        self.assertTrue(named)
        self.assertLessEqual(named, titles)


if __name__ == "__main__":
    os.environ["PATH"] += ":/usr/sbin"
    for tool in ("prometheus", "promtool"):
        if shutil.which(tool) is None:
            print(f"skipped: no {tool}; deploy/install_packages.sh --tests installs it")
            sys.exit(77)
    unittest.main(verbosity=2)
