"""tim4rec-batch against real servers: killed and run again, over shards, with faulty users.

Usage: batch_test.py BUILD [unittest arguments]     BUILD: build/<preset>
"""
import collections
import json
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import grpc
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from server_process import TINY_MODEL, ServerProcess, free_port, secured  # noqa: E402
from tim4rec import Client, Interaction, Query, Ring  # noqa: E402
from tim4rec.v1 import admin_pb2, admin_pb2_grpc  # noqa: E402

BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
BATCH = pathlib.Path(sys.executable).with_name("tim4rec-batch")
T0, USERS, DAY = 1_700_000_000_000, 4000, 86_400_000
AS_OF = T0 + 10**9
MOST_KEPT = 2 + 16  # events of a log with store.max_events_per_user 2, before retention cuts it


class Batch(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        made = tempfile.TemporaryDirectory()
        cls.addClassCleanup(made.cleanup)
        cls.folder = pathlib.Path(made.name)
        cls.names = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        cls.ring, cls.clients = Ring(cls.names), {}
        for name in cls.names:
            server = ServerProcess(BUILD, cls.folder / name.replace(":", "_"), listen=name)
            cls.addClassCleanup(server.__exit__)
            cls.clients[name] = Client(name)
            cls.addClassCleanup(cls.clients[name].close)
        cls.users = [f"u{n}" for n in range(USERS)]
        for name, client in cls.clients.items():
            with client.stream() as stream:
                for n in range(3):
                    stream.send({u: [Interaction(f"item{(7 * n + len(u) + int(u[1:])) % 60 + 1}", T0 + n * 1000)]
                                 for u in cls.users[::3] if cls.ring.server_of(u) == name})

    def file(self, name, users=None):
        path = self.folder / name
        table = pa.table({"n": range(len(users or self.users)), "user_id": users or self.users})
        if name.endswith(".parquet"):
            pq.write_table(table, path, row_group_size=700)
        elif name.endswith(".csv"):
            pa.csv.write_csv(table, path)
        else:
            path.write_text("".join(f"{u}\n" for u in users or self.users))
        return path

    def command(self, users, out, *flags):
        return [BATCH, users, self.folder / out, "--servers", ",".join(self.names), "--as-of-ms", str(AS_OF),
                "--part-users", "300", "--k", "5", *flags]

    def run_batch(self, users, out, *flags, code=0):
        done = subprocess.run(self.command(users, out, *flags), capture_output=True, text=True, check=False, timeout=120)
        self.assertEqual(done.returncode, code, done.stderr)
        return done.stderr

    def result(self, out):
        """Rows of all parts, in order."""
        return [row for part in sorted((self.folder / out).glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]

    def expect_all(self, rows, users):
        asked = Query(k=5, as_of_ms=AS_OF)
        by_user = {}
        for row in rows:
            by_user.setdefault(row["user_id"], []).append(row)
        self.assertEqual(list(by_user), users)  # in order, nobody twice, nobody missing
        self.assertEqual(len(rows), 5 * len(users))
        for user in users[::97]:
            answer = self.clients[self.ring.server_of(user)].recommend(user, asked)
            self.assertEqual([(r["rank"], r["item_id"], r["score"], r["model"]) for r in by_user[user]],
                             [(n, i.item_id, i.score, answer.provenance.model) for n, i in enumerate(answer.items, 1)])

    def test_killed_and_run_again_it_gives_each_user_once(self):
        seed = time.time_ns()
        print(f"seed {seed}")
        rng, users = random.Random(seed), self.file("users.parquet")
        parts = self.folder / "killed"
        for _ in range(3):
            process = subprocess.Popen(self.command(users, "killed"), stderr=subprocess.DEVNULL)
            before, began = len(list(parts.glob("part-*"))), time.monotonic()
            while len(list(parts.glob("part-*"))) < before + 2 and process.poll() is None \
                    and time.monotonic() - began < 30:
                time.sleep(rng.uniform(0, 0.02))
            process.kill()
            process.wait()
        kept = {p.name: p.stat().st_mtime_ns for p in parts.glob("part-*.parquet")}
        said = self.run_batch(users, "killed")
        self.assertIn(f"{USERS}/{USERS} users", said)
        self.expect_all(self.result("killed"), self.users)
        now = {p.name: p.stat().st_mtime_ns for p in parts.glob("part-*.parquet")}
        self.assertEqual(len(now), -(-USERS // 300))
        self.assertEqual({name: now[name] for name in kept}, kept)  # what was there was not made again

    def test_shards_make_together_what_one_run_makes(self):
        users = self.file("users.csv")
        for shard in range(2):
            self.run_batch(users, f"shard{shard}", "--shard", str(shard))
            for row in self.result(f"shard{shard}"):
                self.assertEqual(self.ring.server_of(row["user_id"]), self.names[shard])
        rows = self.result("shard0") + self.result("shard1")
        order = {u: n for n, u in enumerate(self.users)}
        self.expect_all(sorted(rows, key=lambda r: (order[r["user_id"]], r["rank"])), self.users)

    def test_a_user_who_cannot_be_answered_is_a_row_and_the_exit_code(self):
        users = self.file("users.txt", ["u1", "x" * 300, "u2"])
        said = self.run_batch(users, "faulty", code=1)
        self.assertIn("1 users could not be answered", said)
        rows = self.result("faulty")
        bad, = [r for r in rows if r["rank"] == 0]
        self.assertEqual((bad["user_id"], bad["item_id"], len(rows)), ("x" * 300, None, 11))
        self.assertIn("INVALID_ARGUMENT", bad["error"])
        self.assertEqual({r["error"] for r in rows if r["rank"] > 0}, {None})

    def test_another_question_in_the_same_folder_is_refused(self):
        users = self.file("few.txt", ["u1", "u2"])
        self.run_batch(users, "same")
        plan = json.loads((self.folder / "same" / "batch.json").read_text())
        self.assertRegex(plan["model"], r"^.+@[0-9a-f]{32}$")
        self.assertIn("k 5, this one has 6", self.run_batch(users, "same", "--k", "6", code=1))
        self.assertIn("exclude_seen True", self.run_batch(users, "same", "--include-seen", code=1))
        self.assertIn("there are 2 servers", self.run_batch(users, "other", "--shard", "2", code=1))
        self.assertIn("no column 'user'", self.run_batch(self.file("c.parquet"), "other", "--column", "user", code=1))
        self.assertIn("'user'", self.run_batch(self.file("c.csv"), "more", "--column", "user", code=1))


class SecuredBatch(unittest.TestCase):
    """A server that asks for a certificate and a token."""

    def test_it_shows_certificate_and_token(self):
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        folder = pathlib.Path(made.name)
        config = secured(folder, "read reader-0123456789abcdef", "write writer-0123456789abcdef")
        server = ServerProcess(BUILD, folder / "data", "--config", str(config))
        self.addCleanup(server.__exit__)
        (folder / "users.txt").write_text("".join(f"u{n}\n" for n in range(50)))
        (folder / "token").write_text("reader-0123456789abcdef\n")
        certificate = ["--certificate", folder / "client.crt", "--key", folder / "client.key"]

        def run(out, *flags):
            return subprocess.run([BATCH, folder / "users.txt", folder / out, "--servers",
                                   f"localhost:{server.address.rpartition(':')[2]}", "--ca", folder / "ca.crt", *flags],
                                  check=False, capture_output=True, text=True, timeout=120)
        done = run("out", *certificate, "--token-file", folder / "token")
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = [r for part in (folder / "out").glob("part-*.parquet") for r in pq.read_table(part).to_pylist()]
        self.assertEqual(len({r["user_id"] for r in rows}), 50)
        (folder / "token").write_text("writer-0123456789abcdef\n")
        refused = run("wrong", *certificate, "--token-file", folder / "token")
        self.assertEqual(refused.returncode, 1)
        self.assertIn("PERMISSION_DENIED", refused.stderr)
        self.assertIn("UNAUTHENTICATED", run("none", *certificate).stderr)
        half = run("half", "--certificate", folder / "client.crt")
        self.assertEqual(half.returncode, 1)
        self.assertIn("certificate and key come together", half.stderr)


class Offline(unittest.TestCase):
    """`tim4rec batch` on the store of a stopped server gives what the server gave, bit for bit."""

    model = TINY_MODEL

    def offline(self, *flags, code=0):
        done = subprocess.run([BUILD / "bin" / "tim4rec", "batch", "--store", self.data, "--model", self.model, *flags],
                              capture_output=True, text=True, check=False, timeout=120)
        self.assertEqual(done.returncode, code, done.stderr)
        return [line.split("\t") for line in done.stdout.splitlines()], done.stderr

    def test_lists_are_those_of_the_server(self):
        self.compare(rounds=20, environment={"TIM4REC_STORE_USER_SHARE": "0.5"}, flags=("--user-share", "0.5"))

    def test_lists_of_logs_that_retention_cut_are_those_of_the_server(self):
        errors = self.compare(rounds=60, environment={"TIM4REC_STORE_MAX_EVENTS_PER_USER": "2"})
        self.assertTrue(errors, "of no user was a time asked that retention has removed")

    def compare(self, rounds, environment, flags=()):
        """Random events, the server's lists, then those of its store; returns the users that neither can answer."""
        seed = time.time_ns()
        print(f"seed {seed}")
        rng = random.Random(seed)
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        self.data, self.model = pathlib.Path(made.name, "data"), pathlib.Path(made.name, "model")
        day = T0 // DAY  # the items' trend ends before the events, which go on with it
        subprocess.run([BUILD / "bin" / "write_tiny_model", self.model, str(day - 40), str(day - 10)], check=True, timeout=60)
        users = [f"u{n}" for n in range(700)]
        asked = {"k": 7, "as_of_ms": T0 + 30_000}  # in the midst of the events: of most users the past is asked
        with ServerProcess(BUILD, self.data, env=environment, model=self.model) as server, Client(server.address) as client:
            with client.stream() as stream:
                stream.send({u: [Interaction("item1", T0)] for u in users})  # so that each of them is in the store
                for _ in range(rounds):  # late ones and items that the model does not know among them
                    stream.send({u: [Interaction(f"item{rng.randint(1, 62)}", T0 + rng.randint(0, 32) * 1000 - rng.randint(0, 2) * 4 * DAY)]
                                 for u in rng.sample(users, 300)})
            while "TIM4REC_STORE_MAX_EVENTS_PER_USER" in environment and any(u.event_count - u.removed_events > MOST_KEPT for u in map(client.get_user, users)):
                time.sleep(0.1)  # retention follows the events
            online = {seen: {a.user_id: a for a in client.recommend_batch(
                users + ["nobody"], Query(exclude_seen=seen, **asked))} for seen in (True, False)}
            self.assertEqual(server.stop(), 0)
        some = pathlib.Path(made.name, "some")
        some.write_text("u5\nnobody\nu3\n")
        common = ["--k", "7", "--as-of-ms", str(asked["as_of_ms"]), *flags]
        stored = sorted(users, key=lambda u: (len(u), u))  # in the order of keys
        for more, seen, expected in ((["--threads", "3"], True, stored), (["--include-seen"], False, stored),
                                      (["--users", some], True, ["u5", "nobody", "u3"])):
            errors = [u for u in expected if online[seen][u].error]
            rows, said = self.offline(*common, *more, code=1 if errors else 0)
            self.assertIn(f"{len(expected)} users in", said)
            for user in errors:
                self.assertIn(f"'{user}'", said)
            lists = {}
            for user, item, score in rows:
                lists.setdefault(user, []).append((item, struct.unpack("f", struct.pack("f", float(score)))[0]))
            self.assertEqual([u for u in expected if u not in errors], list(lists))
            for user, items in lists.items():
                self.assertEqual(items, [(i.item_id, i.score) for i in online[seen][user].recommendation.items], user)
        # The trend is in the lists: without what the store counted, they are others.
        with self.subTest("counts matter"):
            self.assertNotEqual(rows, self.offline(*common[:4], *more, "--user-share", "0.001", code=1 if errors else 0)[0])
        tiers = {a.recommendation.provenance.tier.name for a in online[True].values() if a.recommendation}
        self.assertLessEqual({"HOT", "REBUILT"}, tiers)
        return [u for u in users if online[True][u].error]

    def users(self, code=0):
        done = subprocess.run([BUILD / "bin" / "tim4rec", "users", "--store", self.data], capture_output=True, text=True,
                              check=False, timeout=60)
        self.assertEqual(done.returncode, code, done.stderr)
        return done

    def test_all_users_of_a_backup_are_asked_of_the_running_server(self):
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        folder, users = pathlib.Path(made.name), ["a b", "é", "u\t2", *(f"u{n}" for n in range(300))]
        self.data = folder / "backup"
        with ServerProcess(BUILD, folder / "data") as server, Client(server.address) as client:
            for user in users:
                client.record(user, [Interaction("item1", T0)])
            with grpc.insecure_channel(server.admin) as channel:
                admin_pb2_grpc.AdminStub(channel).CreateBackup(
                    admin_pb2.CreateBackupRequest(directory=str(self.data)), timeout=60)
            (folder / "users.txt").write_text(self.users().stdout)
            subprocess.run([BATCH, folder / "users.txt", folder / "out", "--servers", server.address], check=True,
                           stderr=subprocess.DEVNULL, timeout=60)
            rows = [r for part in (folder / "out").glob("part-*.parquet") for r in pq.read_table(part).to_pylist()]
            self.assertEqual(collections.Counter(r["user_id"] for r in rows), {user: 10 for user in users})
            self.assertEqual({r["tier"] for r in rows}, {"HOT"})
            client.record("two\nlines", [Interaction("item1", T0)])
            self.assertEqual(server.stop(), 0)
        self.data = folder / "data"
        done = self.users(code=1)
        self.assertEqual(set(done.stdout.splitlines()), set(users))
        self.assertIn("left out, as it is no line: 'two\\nlines'", done.stderr)

    def test_faults_are_named(self):
        self.data = pathlib.Path("/nowhere")
        self.assertIn("/nowhere", self.offline(code=1)[1])
        self.assertIn("/nowhere", self.users(code=1).stderr)
        self.assertEqual(self.offline("--k", "0", code=2)[0], [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
