"""The router (nginx with the shipped configuration) before three real servers.

Usage: router_test.py BUILD [unittest arguments]     BUILD: build/<preset>
"""
import collections
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request

import grpc

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
import abuse  # noqa: E402
from server_process import ServerProcess, free_port  # noqa: E402
from tim4rec import NEVER, CallError, Client, Interaction, Query, Retry, Ring, Tls  # noqa: E402

os.environ["PATH"] += ":/usr/sbin"
BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
SHIPPED = ROOT / "deploy" / "k8s" / "base" / "router"
T0 = 1_700_000_000_000
EVERYBODY = "default 1;\n"


class Router:
    """nginx with the shipped nginx.conf, in a folder of its own; `address` takes calls."""

    def __init__(self, folder, servers, anybody=None, listen="listen {address} http2;\n", tokens=EVERYBODY,
                 transport="set $transport grpc;\n"):
        self.folder, self.port, health = pathlib.Path(folder), free_port(), free_port()
        self.address, self.health = f"127.0.0.1:{self.port}", f"127.0.0.1:{health}"
        conf = (SHIPPED / "nginx.conf").read_text()
        for ours, theirs in (("/tmp/", f"{folder}/"), ("listen 8081;", f"listen {self.health};"),
                             ("worker_processes auto;", "worker_processes 2;\nuser root;")):
            assert ours in conf, ours
            conf = conf.replace(ours, theirs)
        self.write("nginx.conf", conf)
        self.write("servers.conf", "".join(f"server {s} max_fails=0;\n" for s in servers))
        self.write("transport.conf", transport)
        self.write("any.conf", "".join(f"server {s};\n" for s in anybody or servers))
        self.write("listen.conf", listen.format(address=self.address))
        self.write("tokens.conf", tokens)
        self.errors = (self.folder / "errors").open("w")
        self.process = subprocess.Popen(["nginx", "-p", folder, "-c", f"{folder}/nginx.conf"], stderr=self.errors)
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://{self.health}/healthz", timeout=1).close()
                return
            except OSError:
                if self.process.poll() is not None:
                    raise RuntimeError((self.folder / "errors").read_text()) from None
                time.sleep(0.05)
        raise RuntimeError("nginx is not up after 10 s")

    def write(self, name, text):
        (self.folder / name).write_text(text)

    def reload(self):
        """Returns when no process of the old configuration takes connections any more."""
        before = self.workers()
        subprocess.run(["nginx", "-p", self.folder, "-c", f"{self.folder}/nginx.conf", "-s", "reload"], check=True,
                       stderr=self.errors)
        while before & self.workers():
            time.sleep(0.05)

    def workers(self):
        pid = self.process.pid
        return set(pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split())

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        self.errors.close()


def make_certificates(folder, name):
    """ca.crt, and of it tls.crt and client.crt with their .key, for the DNS name `name`; returns the folder."""
    folder.mkdir()

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *key, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.crt", "-days", "2")
    (folder / "san").write_text(f"subjectAltName=DNS:{name}\n")
    for file in ("tls", "client"):
        openssl("req", *key, "-subj", f"/CN={file}", "-keyout", f"{file}.key", "-out", f"{file}.csr")
        openssl("x509", "-req", "-in", f"{file}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                "-extfile", "san", "-days", "2", "-out", f"{file}.crt")
    return folder


class WithServers(unittest.TestCase):
    count = 3
    environment = {}

    def setUp(self):
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        self.folder = pathlib.Path(made.name)
        self.names = [f"127.0.0.1:{free_port()}" for _ in range(self.count)]
        self.servers = {name: self.serve(name) for name in self.names}

    def serve(self, name):
        server = ServerProcess(BUILD, self.folder / name.replace(":", "_"), listen=name, env=self.environment)
        self.addCleanup(server.__exit__)
        return server

    def route(self, **options):
        (self.folder / "router").mkdir(exist_ok=True)
        router = Router(str(self.folder / "router"), self.names, **options)
        self.addCleanup(router.stop)
        return router

    def connect(self, address, **options):
        client = Client(address, **options)
        self.addCleanup(client.close)
        return client


def event(n):
    return [Interaction(f"item{n % 60 + 1}", T0 + n * 1000)]


class Stickiness(WithServers):
    def test_a_user_is_on_the_server_that_the_ring_names_and_on_no_other(self):
        client = self.connect(self.route().address)
        users = [f"user {n}/é" for n in range(200)]
        for n in range(3):
            for user in users:
                self.assertEqual(client.record(user, event(n)).state_version, n + 1)
        ring, spread = Ring(self.names), collections.Counter()
        for name in self.names:
            direct = self.connect(name)
            for user in users:
                held = direct.get_user(user).event_count
                self.assertEqual(held, 3 if ring.server_of(user) == name else 0, (user, name))
                spread[name] += held > 0
        self.assertTrue(all(spread[name] >= 200 / 3 / 2 for name in self.names), spread)

    def test_one_more_server_takes_users_and_moves_no_others(self):
        users = [f"u{n}" for n in range(3000)]
        before, after = Ring(["a:1", "b:1", "c:1"]), Ring(["c:1", "a:1", "b:1", "d:1"])
        moved = [u for u in users if before.server_of(u) != after.server_of(u)]
        self.assertTrue(all(after.server_of(u) == "d:1" for u in moved))
        self.assertTrue(3000 / 4 / 2 < len(moved) < 3000 / 4 * 2, len(moved))


class History(WithServers):
    """Calls that belong to no user, as overlays/history routes them: beside the shards, to whoever is there."""

    def test_they_go_to_the_servers_of_any_conf(self):
        shards, others = self.names[:1], self.names[1:]
        router = Router(str(self.folder), shards, anybody=others)
        self.addCleanup(router.stop)
        client = self.connect(router.address, retry=NEVER)
        client.record("u", event(1))
        answers = [client.recommend_for_history(event(1), Query(k=5, as_of_ms=T0 + 10**6)).items for _ in range(20)]
        self.assertEqual(answers, [client.recommend("u", Query(k=5, as_of_ms=T0 + 10**6)).items] * 20)

        def answered(name):
            found = re.findall(r'^tim4rec_requests_total{code="OK",method="RecommendForHistory"} (\d+)$',
                               self.servers[name].scrape(), re.M)
            return int(found[0]) if found else 0
        self.assertEqual([answered(n) for n in shards], [0])
        self.assertEqual(sum(answered(n) for n in others), 20)
        self.assertTrue(all(answered(n) for n in others))
        # One of them ends: nobody notices, as nothing is stored there.
        self.servers[others[0]].kill()
        for _ in range(20):
            self.assertEqual(client.recommend_for_history(event(1), Query(k=5, as_of_ms=T0 + 10**6)).items, answers[0])


class Abuse(WithServers):
    """What gRPC would keep without a bound (server/README.md, Scope) ends at the router."""
    count = 1

    def test_endless_headers_and_floods_of_calls_reach_no_server_whole(self):
        router, server = self.route(), self.servers[self.names[0]]
        processes = [server.process.pid, *map(int, pathlib.Path(
            f"/proc/{router.process.pid}/task/{router.process.pid}/children").read_text().split())]
        self.assertGreater(len(processes), 1)
        self.connect(router.address).recommend("u")
        before = [abuse.memory_mib(p) for p in processes]
        named = abuse.headers(abuse.RECOMMEND, ("x-tim4rec-user-id", "u"))
        endless = abuse.Connection(router.address)
        endless.send(abuse.frame(abuse.HEADERS, abuse.END_STREAM, 1, named))
        part = b"".join(abuse.literal(f"x{n}", "y" * 100) for n in range(140))
        for _ in range(2000):  # 30 MB
            if not endless.send(abuse.frame(abuse.CONTINUATION, 0, 1, part)):
                break
        flood = abuse.Connection(router.address)
        for n in range(5000):
            if not flood.send(abuse.frame(abuse.HEADERS, abuse.END_HEADERS, 2 * n + 1, named)):
                break
        self.assertTrue(self.connect(router.address).recommend("u").items)
        grown = [abuse.memory_mib(p) - b for p, b in zip(processes, before)]
        # http2_max_concurrent_streams calls of 20 kB each at most, where 30 MB of headers and 5000 calls were sent.
        most = float(os.environ.get("TIM4REC_TEST_MOST_MIB", 28))
        self.assertLess(max(grown), most, f"MiB, of the server and of each process of nginx: {grown}")
        endless.close()
        flood.close()


class Encrypted(WithServers):
    """overlays/tls: the router calls servers that have certificates and ask for tokens by role."""

    def setUp(self):
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        self.certs = make_certificates(pathlib.Path(made.name, "certs"), "tim4rec-server")
        (self.certs / "tokens").write_text("read reader-reader-reader\nread,write writer-writer-writer\n")
        (self.certs / "tokens").chmod(0o440)
        self.environment = {"TIM4REC_TLS_CERTIFICATE": f"{self.certs}/tls.crt", "TIM4REC_TLS_KEY": f"{self.certs}/tls.key",
                            "TIM4REC_AUTH_TOKENS_FILE": f"{self.certs}/tokens"}
        super().setUp()
        self.shipped = (SHIPPED.parents[1] / "overlays" / "tls" / "router" / "transport.conf").read_text()

    def outcome(self, router, token, call):
        with Client(router.address, token=token, retry=NEVER) as client:
            try:
                return call(client)
            except CallError as error:
                return error.code.name

    def test_calls_reach_servers_that_check_the_token(self):
        router = self.route(transport=self.shipped.replace("/etc/tim4rec/servers-tls", str(self.certs)))
        users = [f"u{n}" for n in range(30)]

        def record(client):
            return [client.record(u, event(1)).state_version for u in users]

        def held(client):
            return [client.get_user(u).event_count for u in users]
        self.assertEqual(self.outcome(router, "writer-writer-writer", record), [1] * 30)
        self.assertEqual(self.outcome(router, "reader-reader-reader", held), [1] * 30)
        self.assertEqual(self.outcome(router, "reader-reader-reader", record), "PERMISSION_DENIED")
        self.assertEqual(self.outcome(router, "nobody-nobody-nobody", held), "UNAUTHENTICATED")
        self.assertEqual(self.outcome(router, None, held), "UNAUTHENTICATED")
        # What goes to the servers themselves takes the same.
        (self.folder / "users.txt").write_text("".join(f"{u}\n" for u in users))
        (self.folder / "token").write_text("reader-reader-reader\n")
        flags = ["--ca", self.certs / "ca.crt", "--server-name", "tim4rec-server", "--token-file", self.folder / "token"]
        command = [pathlib.Path(sys.executable).with_name("tim4rec-batch"), self.folder / "users.txt", self.folder / "out",
                   "--servers", ",".join(self.names)]
        done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("30/30 users", done.stderr)
        done = subprocess.run([*command[:2], self.folder / "other", *command[3:], *flags[:4]], capture_output=True,
                              text=True, check=False, timeout=60)
        self.assertEqual(done.returncode, 1)
        self.assertIn("UNAUTHENTICATED", done.stderr)

    def test_servers_of_another_authority_are_not_called(self):
        others = make_certificates(self.folder / "others", "tim4rec-server")
        for transport in (self.shipped.replace("/etc/tim4rec/servers-tls", str(others)),
                          self.shipped.replace("/etc/tim4rec/servers-tls", str(self.certs)).replace(
                              "grpc_ssl_name tim4rec-server;", "grpc_ssl_name somebody;")):
            router = self.route(transport=transport)
            self.assertEqual(self.outcome(router, "writer-writer-writer", lambda c: c.record("u", event(1))), "UNAVAILABLE")


class Outage(WithServers):
    """Traffic on all three servers, one of which is killed and comes back with its data."""

    def setUp(self):
        super().setUp()
        self.acknowledged = collections.Counter()  # by user
        self.failed = []  # (user, error)
        self.while_down = collections.Counter()  # calls answered, by server
        self.down, self.over = threading.Event(), threading.Event()

    def write(self, router, users):
        """Durable events for users in turn, never tried again: an error is seen as it is."""
        ring, n = Ring(self.names), 0
        with Client(router.address, retry=NEVER, timeout_s=30) as client:
            while not self.over.is_set():
                for user in users:
                    try:
                        client.record(user, event(n), durable=True)
                        client.recommend(user, Query(k=3))
                        self.acknowledged[user] += 1
                        self.while_down[ring.server_of(user)] += self.down.is_set()
                    except CallError as error:
                        self.failed.append((user, error))
                n += 1

    def test_only_the_users_of_a_dead_server_wait_and_nothing_acknowledged_is_lost(self):
        router, ring = self.route(), Ring(self.names)
        users = [[f"u{t}.{n}" for n in range(12)] for t in range(3)]
        threads = [threading.Thread(target=self.write, args=(router, u)) for u in users]
        for t in threads:
            t.start()
        time.sleep(0.5)
        dead = self.names[0]
        self.servers[dead].kill()
        self.down.set()
        for _ in range(600):
            if len(self.failed) >= 30 and min(self.while_down[n] for n in self.names[1:]) >= 30:
                break
            time.sleep(0.05)

        waiting = next(u for u in sum(users, []) if ring.server_of(u) == dead)
        patient = self.connect(router.address, retry=Retry(attempts=100), timeout_s=60)
        answers = []
        waiter = threading.Thread(target=lambda: answers.append(patient.get_user(waiting)))
        waiter.start()
        time.sleep(0.2)
        self.down.clear()
        self.serve(dead)
        waiter.join()
        self.over.set()
        for t in threads:
            t.join()

        self.assertEqual({ring.server_of(u) for u, _ in self.failed}, {dead})
        self.assertEqual({(e.code, e.retry_after_s) for _, e in self.failed}, {(grpc.StatusCode.UNAVAILABLE, 1.0)})
        self.assertGreaterEqual(min(self.while_down[n] for n in self.names[1:]), 30)
        self.assertEqual(self.while_down[dead], 0)
        self.assertEqual(len(answers), 1)
        for user in sum(users, []):
            self.assertGreaterEqual(patient.get_user(user).event_count, self.acknowledged[user], user)
        for name in self.names:
            direct = self.connect(name)
            others = [u for u in sum(users, []) if ring.server_of(u) != name]
            self.assertEqual({direct.get_user(u).event_count for u in others}, {0})
        self.assertGreater(sum(self.acknowledged.values()), 100)


class RollingRestart(WithServers):
    """An upgrade as a StatefulSet makes it: one server at a time drains, ends and comes back on its volume."""

    def test_no_call_fails_and_nothing_is_lost(self):
        router, over = self.route(), threading.Event()
        users = [[f"u{t}.{n}" for n in range(12)] for t in range(3)]
        acknowledged, asked, failed = collections.Counter(), collections.Counter(), []

        def call(mine):
            n = 0
            with Client(router.address, retry=Retry(attempts=100), timeout_s=60) as client:
                while not over.is_set():
                    for user in mine:
                        try:
                            client.record(user, event(n))
                            acknowledged[user] += 1
                            client.recommend(user, Query(k=3))
                            asked[user] += 1
                        except CallError as error:
                            failed.append((user, error))
                    n += 1
        threads = [threading.Thread(target=call, args=(mine,)) for mine in users]
        for t in threads:
            t.start()
        for name in self.names:
            before = sum(asked.values())
            while sum(asked.values()) < before + 100:
                time.sleep(0.01)
            self.assertEqual(self.servers[name].stop(), 0)
            self.servers[name] = self.serve(name)
        over.set()
        for t in threads:
            t.join()
        self.assertEqual(failed, [])
        client = self.connect(router.address)
        for user in sum(users, []):
            self.assertEqual(client.get_user(user).event_count, acknowledged[user], user)


class Refusals(WithServers):
    count = 1

    def call(self, router, method, request=b"", metadata=()):
        with grpc.insecure_channel(router.address) as channel:
            try:
                channel.unary_unary(f"/tim4rec.v1.{method}")(request, metadata=metadata, timeout=20)
                return None
            except grpc.RpcError as error:
                return error.code().name, error.details()

    def test_what_cannot_be_routed_is_refused_with_the_reason(self):
        router, user = self.route(), (("x-tim4rec-user-id", "u"),)
        self.assertIsNone(self.call(router, "Recommender/GetUser", b"\x0a\x01u", user))
        for method, metadata, code, words in (
                ("Recommender/Recommend", (), "INVALID_ARGUMENT", "x-tim4rec-user-id"),
                ("Recommender/StreamInteractions", user, "UNIMPLEMENTED", "each server itself"),
                ("Recommender/RecommendBatch", user, "UNIMPLEMENTED", "each server itself"),
                ("Admin/Drain", user, "UNIMPLEMENTED", "no such call"),
                ("Recommender/Nothing", user, "UNIMPLEMENTED", "no such call")):
            got, details = self.call(router, method, b"", metadata)
            self.assertEqual(got, code, method)
            self.assertIn(words, details)
        # What the server says passes unchanged.
        got, details = self.call(router, "Recommender/Recommend", b"", user)
        self.assertEqual(got, "INVALID_ARGUMENT")
        self.assertIn("user_id", details)
        got, details = self.call(router, "Recommender/Recommend", b"\x0a" * (5 << 20), user)
        self.assertEqual(got, "RESOURCE_EXHAUSTED")

    def test_every_call_of_the_contract_has_its_place(self):
        from tim4rec.v1 import recommender_pb2 as pb
        conf = (SHIPPED / "nginx.conf").read_text()
        for name in pb.DESCRIPTOR.services_by_name["Recommender"].methods_by_name:
            self.assertRegex(conf, rf"location [^\n]*\b{name}\b")

    def test_certificates_and_tokens_as_shipped(self):
        certs = make_certificates(self.folder / "tls", "router.example")
        shipped = (SHIPPED / "listen.conf").read_text().replace("/etc/tim4rec/tls/", f"{certs}/")
        shipped = shipped.replace("listen 8443 ", "listen {address} ")
        router = self.route(listen=shipped, tokens='"Bearer one" 1;\n"Bearer two" 1;\n')
        plain = Tls.from_files(ca=certs / "ca.crt", server_name="router.example")
        own = Tls.from_files(ca=certs / "ca.crt", certificate=certs / "client.crt", key=certs / "client.key",
                             server_name="router.example")

        def outcome(tls, token):
            with Client(router.address, tls=tls, token=token, retry=NEVER) as client:
                try:
                    return client.get_user("u").event_count
                except CallError as error:
                    return error.code.name
        self.assertEqual([outcome(plain, t) for t in ("one", "two", lambda: "one", "three", None)],
                         [0, 0, 0, "UNAUTHENTICATED", "UNAUTHENTICATED"])
        with Client(router.address, retry=NEVER) as client, self.assertRaises(CallError) as raised:
            client.get_user("u")  # in clear text
        self.assertIs(raised.exception.code, grpc.StatusCode.UNAVAILABLE)

        # A token is taken back, and clients need certificates: for new connections, without a restart.
        router.write("tokens.conf", '"Bearer two" 1;\n')
        router.write("listen.conf", (router.folder / "listen.conf").read_text().replace("#ssl", "ssl"))
        router.reload()
        self.assertEqual([outcome(own, "two"), outcome(own, "one")], [0, "UNAUTHENTICATED"])
        self.assertNotEqual(outcome(plain, "two"), 0)


if __name__ == "__main__":
    if shutil.which("nginx") is None:
        print("skipped: no nginx; deploy/install_packages.sh --tests installs it")
        sys.exit(77)
    unittest.main(verbosity=2)
