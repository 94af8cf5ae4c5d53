"""The restore drill of deploy/README.md: a server is backed up under writes, dies with its disk, and comes back.

Usage: restore_test.py BUILD [unittest arguments]     BUILD: build/<preset>
"""
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from server_process import TINY_MODEL, ServerProcess  # noqa: E402
from tim4rec import Client, Interaction, Query  # noqa: E402
from tim4rec.v1 import admin_pb2, admin_pb2_grpc  # noqa: E402

BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
T0 = 1_700_000_000_000
QUIET, BUSY = [f"quiet{n}" for n in range(300)], [f"busy{n}" for n in range(40)]


def seen_of(address, users):
    """What a server says of users: event counts, hashes over all their events, lists with their scores."""
    with Client(address) as client:
        held = [client.get_user(u) for u in users]
        lists = client.recommend_batch(users, Query(k=10, as_of_ms=T0 + 10**10))
        return [(u, h.event_count, h.lineage_hash, h.last_event_ms, a.recommendation.items)
                for u, h, a in zip(users, held, lists)]


class Drill(unittest.TestCase):
    def setUp(self):
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        self.folder = pathlib.Path(made.name)
        self.data = self.folder / "volume" / "store"
        self.data.parent.mkdir()

    def serve(self):
        server = ServerProcess(BUILD, self.data, env={"TIM4REC_PIPELINE_CHECKPOINT_INTERVAL_MS": "50"})
        self.addCleanup(server.__exit__)
        return server

    def admin(self, server):
        channel = grpc.insecure_channel(server.admin)
        self.addCleanup(channel.close)
        return admin_pb2_grpc.AdminStub(channel)

    def test_a_server_that_died_with_its_disk_comes_back_from_its_backup(self):
        seed = time.time_ns()
        print(f"seed {seed}")
        rng = random.Random(seed)
        sent = []  # what the producers keep, as a log of events does: all that was acknowledged
        server = self.serve()
        with Client(server.address) as client:
            with client.stream(durable=True) as stream:
                for _ in range(10):
                    batch = {u: [Interaction(f"item{rng.randint(1, 62)}", T0 + rng.randint(0, 10**6))] for u in QUIET}
                    stream.send(batch)
                    sent.append(batch)
            before = seen_of(server.address, QUIET)

            stop = threading.Event()

            def write():
                while not stop.is_set():
                    batch = {u: [Interaction(f"item{rng.randint(1, 62)}", T0 + rng.randint(0, 10**6))] for u in BUSY}
                    for user, events in batch.items():
                        client.record(user, events, durable=True)
                    sent.append(batch)
            writer = threading.Thread(target=write)
            writer.start()
            while len(sent) < 15:
                time.sleep(0.01)
            acknowledged = len(sent)

            # 1. Back up, while the server serves; carry the copy to another machine.
            directory = self.folder / "volume" / "backup"
            made = self.admin(server).CreateBackup(admin_pb2.CreateBackupRequest(directory=str(directory)), timeout=60)
            self.assertGreater(made.files, 0)
            elsewhere = self.folder / "elsewhere"
            shutil.copytree(directory, elsewhere)
            while len(sent) < acknowledged + 10:
                time.sleep(0.01)
            stop.set()
            writer.join()
            last = seen_of(server.address, QUIET + BUSY)
        # 2. The machine dies, its volume with it.
        server.kill()
        shutil.rmtree(self.folder / "volume")

        # 3. Restore, and check before anybody is served.
        self.data.parent.mkdir()
        shutil.copytree(elsewhere, self.data)
        verified = subprocess.run([BUILD / "bin" / "tim4rec", "verify", "--store", self.data, "--model", TINY_MODEL],
                                  capture_output=True, text=True, check=False)
        self.assertEqual((verified.returncode, verified.stdout), (0, ""), verified.stderr)
        self.assertRegex(verified.stderr, r"3[0-4]\d users")

        # 4. Serve. What was acknowledged before the backup is there, to the bit.
        restored = self.serve()
        self.assertEqual(seen_of(restored.address, QUIET), before)
        counts = {u: c for u, c, *_ in seen_of(restored.address, BUSY)}
        for user in BUSY:
            keys = {(e.timestamp_ms, e.item_id) for batch in sent[:acknowledged] for e in batch.get(user, ())}
            self.assertGreaterEqual(counts[user], len(keys), user)
        self.assertLess(sum(counts.values()), sum(c for u, c, *_ in last if u in counts), "nothing came after the backup")

        # 5. Send again what came since; all of it, to be safe: what is there counts once.
        with Client(restored.address) as client, client.stream(durable=True) as stream:
            for batch in sent:
                stream.send(batch)
        self.assertEqual(seen_of(restored.address, QUIET + BUSY), last)
        stub = self.admin(restored)
        for user in QUIET[::20] + BUSY:
            checked = stub.VerifyUser(admin_pb2.VerifyUserRequest(user_id=user), timeout=20)
            self.assertTrue(checked.resident_compared and checked.resident_equal, checked.difference)
        self.assertEqual(restored.stop(), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
