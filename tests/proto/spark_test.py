"""tim4rec.spark on a Spark of two worker processes, before two real servers.

By hand, not part of ctest: pyspark is 420 MB and needs a Java 17 (Debian: openjdk-17-jre-headless).

    deploy/build.sh tim4rec-server
    python3 -m venv /tmp/spark && /tmp/spark/bin/pip install './proto/python[spark]'
    /tmp/spark/bin/python tests/proto/spark_test.py build/release [unittest arguments]

Skips (77) where pyspark or Java are missing. TIM4REC_SPARK_USERS: how many users, 4000 if not given; it prints users/s.
"""
import importlib.util
import os
import pathlib
import shutil
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from server_process import ServerProcess, free_port  # noqa: E402
from tim4rec import CallError, Client, Interaction, Query, Ring  # noqa: E402

if __name__ == "__main__":
    BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
    for missing in [m for m, found in (("pyspark", importlib.util.find_spec("pyspark")),
                                       ("java", shutil.which("java"))) if not found]:
        print(f"skipped: no {missing}; see the first lines of {__file__}")
        sys.exit(77)
from pyspark.errors import PythonException  # noqa: E402
from pyspark.sql import SparkSession  # noqa: E402
from tim4rec import spark  # noqa: E402

USERS = int(os.environ.get("TIM4REC_SPARK_USERS", "4000"))
T0 = 1_700_000_000_000
ASKED = Query(k=5, as_of_ms=T0 + 10**9)


class Spark(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        made = tempfile.TemporaryDirectory()
        cls.addClassCleanup(made.cleanup)
        cls.folder = pathlib.Path(made.name)
        cls.names = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        cls.ring, cls.users = Ring(cls.names), [f"u{n}" for n in range(USERS)]
        cls.clients = {}
        for name in cls.names:
            server = ServerProcess(BUILD, cls.folder / name.replace(":", "_"), listen=name)
            cls.addClassCleanup(server.__exit__)
            cls.clients[name] = Client(name)
            cls.addClassCleanup(cls.clients[name].close)
            mine = [u for u in cls.users[::3] if cls.ring.server_of(u) == name]
            with cls.clients[name].stream() as stream:
                for n in range(3):
                    for at in range(0, len(mine), 5000):
                        stream.send({u: [Interaction(f"item{(7 * n + int(u[1:])) % 60 + 1}", T0 + n * 1000)]
                                     for u in mine[at:at + 5000]})
        os.environ |= {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
        cls.session = (SparkSession.builder.master("local-cluster[2,1,1024]").appName("spark_test")
                       .config("spark.ui.enabled", "false").config("spark.driver.host", "127.0.0.1")
                       .config("spark.driver.bindAddress", "127.0.0.1").getOrCreate())
        cls.addClassCleanup(cls.session.stop)

    def frame(self, users):
        return self.session.createDataFrame([(n, u) for n, u in enumerate(users)], "n int, user_id string")

    def test_every_user_has_the_list_of_the_users_server_once(self):
        began = time.monotonic()
        out = str(self.folder / "lists")
        spark.recommend(self.frame(self.users).repartition(8), self.names, ASKED).write.parquet(out)
        print(f"{USERS} users in {time.monotonic() - began:.1f} s, {USERS / (time.monotonic() - began):.0f} users/s "
              f"(load {os.getloadavg()[0]:.1f})")
        lists = {}
        for row in self.session.read.parquet(out).collect():
            lists.setdefault(row.user_id, []).append((row["rank"], row.item_id, row.score, row.tier, row.model, row.error))
        self.assertEqual(set(lists), set(self.users))
        answers = {a.user_id: a.recommendation for name, client in self.clients.items() for a in client.recommend_batch(
            [u for u in self.users if self.ring.server_of(u) == name], ASKED)}
        for user, answer in answers.items():
            self.assertEqual([(n, item, score) for n, item, score, *_ in sorted(lists[user])],
                             [(n, i.item_id, i.score) for n, i in enumerate(answer.items, 1)])
            self.assertEqual({rest for *_, rest in lists[user]}, {None})
        self.assertEqual({tier for rows in lists.values() for _, _, _, tier, _, _ in rows}, {"HOT", "COLD_START"})

    def test_both_workers_took_part(self):
        pids = self.frame(self.users).repartition(8).mapInPandas(
            lambda frames: (f.assign(n=os.getppid())[["n"]] for f in frames), "n int").distinct().collect()
        self.assertEqual(len(pids), 2, "the test would not have shown that tasks travel to other processes")

    def test_a_user_who_cannot_be_answered_is_a_row(self):
        rows = spark.recommend(self.frame(["u1", "x" * 300, "u2"]), self.names, ASKED).collect()
        bad, = [r for r in rows if r["rank"] == 0]
        self.assertEqual((bad.user_id, bad.item_id, len(rows)), ("x" * 300, None, 11))
        self.assertIn("INVALID_ARGUMENT", bad.error)

    def test_other_columns_and_types(self):
        numbers = self.session.createDataFrame([(7,), (8,)], "who bigint")
        self.assertEqual({r.user_id for r in spark.recommend(numbers, self.names, ASKED, column="who").collect()}, {"7", "8"})
        with self.assertRaisesRegex(ValueError, "no column 'user_id'; there are .'who'."):
            spark.recommend(numbers, self.names)
        with self.assertRaisesRegex(PythonException, "a user id is null"):
            spark.recommend(self.frame(["u1", None]), self.names, ASKED).collect()

    def test_an_unknown_model_is_told_before_anything_is_done(self):
        with self.assertRaisesRegex(CallError, "NOT_FOUND"):
            spark.recommend(self.frame(["u1"]), self.names, Query(model="nobody@00"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
