"""Tests of the Python client against the real server.

Usage: client_test.py BUILD [unittest arguments]     BUILD: build/<preset>
"""
import asyncio
import concurrent.futures
import dataclasses
import itertools
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from unittest import mock

import grpc
import pandas as pd
import pyarrow as pa

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from server_process import ServerProcess, free_port, secured  # noqa: E402
from tim4rec import (NEVER, AsyncClient, CallError, Client, Interaction, Outcome, Query, Retry, Ring, Tier, Tls,  # noqa: E402
                     frames, routing_key)

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
T0 = 1_700_000_000_000


def events(*items, start=T0):
    return [Interaction(item, start + n * 60_000) for n, item in enumerate(items)]


class WithServer(unittest.TestCase):
    """A test with a server of its own."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.data = pathlib.Path(folder.name, "data")

    def serve(self, *flags, **more):
        server = ServerProcess(BUILD, self.data, *flags, **more)
        self.addCleanup(server.__exit__)
        return server

    def connect(self, target, **options):
        client = Client(target, **options)
        self.addCleanup(client.close)
        return client


class Calls(WithServer):
    """Every call once, by the blocking and by the asyncio client, with the same expectations."""

    def expect(self, call):
        recorded = call("record", "ada", events("item1", "item2", "nobody-knows", "item1"), durable=True)
        self.assertEqual([r.outcome for r in recorded.results],
                         [Outcome.APPLIED, Outcome.APPLIED, Outcome.UNKNOWN_ITEM, Outcome.APPLIED])
        self.assertEqual(recorded.state_version, 4)
        again = call("record", "ada", [*events("item1"), Interaction("", T0)])
        self.assertEqual([r.outcome for r in again.results], [Outcome.DUPLICATE, Outcome.REJECTED])
        self.assertEqual(again.rejected[0][0], 1)
        self.assertIn("item_id", again.rejected[0][1])

        hot = call("recommend", "ada", Query(k=5, min_state_version=4))
        self.assertEqual((len(hot.items), hot.provenance.tier, hot.provenance.event_count), (5, Tier.HOT, 3))
        self.assertFalse({"item1", "item2"} & set(hot.item_ids))
        self.assertEqual(hot.items, tuple(sorted(hot.items, key=lambda i: -i.score)))
        chosen = call("recommend", "ada", Query(k=9, exclude_seen=False, candidate_item_ids=["item1", "item7"],
                                                exclude_item_ids=["item7"]))
        self.assertEqual(chosen.item_ids, ["item1"])
        self.assertIs(call("recommend", "nobody").provenance.tier, Tier.COLD_START)

        history = events("item1", "item2", "item1")
        as_of = history[-1].timestamp_ms + 1000
        alone = call("recommend_for_history", history, Query(k=7, as_of_ms=as_of))
        stored, told = call("record_and_recommend", "bob", history, Query(k=7, as_of_ms=as_of))
        self.assertEqual(stored.state_version, 3)
        self.assertEqual((len(told.items), told.provenance.as_of_ms), (7, as_of))
        self.assertEqual(told.items, alone.items)

        user = call("get_user", "ada", max_events=2)
        self.assertEqual((user.event_count, user.first_event_ms, user.last_event_ms), (4, T0, T0 + 180_000))
        self.assertEqual(user.events, tuple(events("item1", "item2", "nobody-knows", "item1")[2:]))
        self.assertEqual(len(user.lineage_hash), 32)
        gone = call("delete_user", "ada", purge=True)
        self.assertEqual(gone.events_removed, 4)
        self.assertEqual(call("get_user", "ada").event_count, 0)

        with self.assertRaises(CallError) as raised:
            call("recommend", "", Query(k=1001))
        self.assertIs(raised.exception.code, grpc.StatusCode.INVALID_ARGUMENT)
        self.assertEqual({field for field, _ in raised.exception.violations}, {"user_id", "k"})
        self.assertEqual(raised.exception.attempts, 1)
        with self.assertRaises(CallError) as raised:
            call("recommend", "bob", Query(model="none"))
        self.assertIs(raised.exception.code, grpc.StatusCode.NOT_FOUND)
        # The server answers a tenth of a second before the deadline, which a busy machine may miss.
        for timeout_s in (1, 2, 3, 4):
            with self.assertRaises(CallError) as raised:
                call("recommend", "bob", Query(min_state_version=99), timeout_s=timeout_s)
            if raised.exception.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
                break
        self.assertIs(raised.exception.code, grpc.StatusCode.FAILED_PRECONDITION)

    def test_blocking(self):
        client = self.connect(self.serve().address)
        self.expect(lambda name, *a, **k: getattr(client, name)(*a, **k))

    def test_asyncio(self):
        server = self.serve()
        with asyncio.Runner() as runner:
            async def make():
                return AsyncClient(server.address)
            client = runner.run(make())
            self.expect(lambda name, *a, **k: runner.run(getattr(client, name)(*a, **k)))
            runner.run(client.close())


class Retries(WithServer):
    def test_only_what_may_help_is_tried_again(self):
        code, retry = grpc.StatusCode, Retry(attempts=4, first_s=0.1, most_s=0.3)
        for c in code:
            self.assertEqual(retry.delay_s(1, c, None) is not None, c is code.UNAVAILABLE, c)
        self.assertIsNone(retry.delay_s(4, code.UNAVAILABLE, None))
        self.assertIsNone(NEVER.delay_s(1, code.UNAVAILABLE, 0.05))
        for attempt, most in ((1, 0.1), (2, 0.2), (3, 0.3)):
            delays = [retry.delay_s(attempt, code.UNAVAILABLE, None) for _ in range(500)]
            self.assertTrue(0 <= min(delays) < most / 4 and most * 3 / 4 < max(delays) <= most, (attempt, delays))
            advised = [retry.delay_s(attempt, code.RESOURCE_EXHAUSTED, 0.4) for _ in range(500)]
            self.assertTrue(0.4 <= min(advised) < max(advised) <= 0.6)

    def test_a_restart_is_invisible(self):
        listen = f"127.0.0.1:{free_port()}"
        client = self.connect(listen, retry=Retry(attempts=1000, first_s=0.05, most_s=0.2), timeout_s=30)
        server = self.serve(listen=listen)
        self.assertEqual(client.record("ada", events("item1")).state_version, 1)
        server.kill()
        again = []
        back = threading.Timer(0.5, lambda: again.append(self.serve(listen=listen)))
        back.start()
        answer = client.record("ada", events("item1", "item2"))
        back.join()
        self.assertEqual([r.outcome for r in answer.results], [Outcome.DUPLICATE, Outcome.APPLIED])

    def test_a_call_in_a_server_s_last_moment_is_tried_again(self):
        from tim4rec.v1 import recommender_pb2 as pb
        said = iter(["CANCELLED", "CANCELLED", None, "by somebody"])

        class Ending(grpc.GenericRpcHandler):  # as gRPC's own server ends, whose moment a test cannot hit at will
            def service(self, call):
                def answer(request, context):
                    if word := next(said):
                        context.abort(grpc.StatusCode.CANCELLED, word)
                    return pb.GetUserResponse(event_count=7).SerializeToString()
                return grpc.unary_unary_rpc_method_handler(answer)
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
        port = server.add_insecure_port("127.0.0.1:0")
        server.add_generic_rpc_handlers((Ending(),))
        server.start()
        self.addCleanup(server.stop, None)
        client = self.connect(f"127.0.0.1:{port}")
        self.assertEqual(client.get_user("u").event_count, 7)
        with self.assertRaises(CallError) as raised:
            client.get_user("u")
        self.assertEqual((raised.exception.code, raised.exception.attempts), (grpc.StatusCode.CANCELLED, 1))

    def test_the_deadline_is_for_all_tries(self):
        client = self.connect(f"127.0.0.1:{free_port()}", retry=Retry(attempts=1000), timeout_s=0.7)
        began = time.monotonic()
        with self.assertRaises(CallError) as raised:
            client.recommend("ada")
        self.assertIs(raised.exception.code, grpc.StatusCode.UNAVAILABLE)
        self.assertGreater(raised.exception.attempts, 1)
        self.assertLess(time.monotonic() - began, 5)

    def test_a_full_queue_is_waited_for_as_advised(self):
        address = self.serve(env={"TIM4REC_PIPELINE_QUEUE_ROWS": "1", "TIM4REC_PIPELINE_WORKERS": "1"}).address

        async def flood(retry):
            async with AsyncClient(address, retry=retry, timeout_s=60) as client:
                return await asyncio.gather(*(client.record("ada", events("item1", start=T0 + n * 1000))
                                              for n in range(300)), return_exceptions=True)
        refused = [e for e in asyncio.run(flood(NEVER)) if isinstance(e, CallError)]
        self.assertTrue(refused, "no call found the queue full")
        self.assertEqual({e.code for e in refused}, {grpc.StatusCode.RESOURCE_EXHAUSTED})
        self.assertTrue(all(0.005 <= e.retry_after_s <= 5 for e in refused))
        answers = asyncio.run(flood(Retry(attempts=1000)))
        self.assertEqual([a for a in answers if isinstance(a, Exception)], [])
        self.assertEqual(max(a.state_version for a in answers), 300)

    def test_a_request_too_large_is_not_tried_again(self):
        client = self.connect(self.serve(env={"TIM4REC_LIMITS_MAX_MESSAGE_BYTES": "1024"}).address)
        with self.assertRaises(CallError) as raised:
            client.record("ada", events(*["item1"] * 500))
        self.assertEqual((raised.exception.code, raised.exception.attempts), (grpc.StatusCode.RESOURCE_EXHAUSTED, 1))


class Streams(WithServer):
    def test_a_killed_server_loses_and_repeats_nothing(self):
        listen = f"127.0.0.1:{free_port()}"
        retry = Retry(attempts=1000, first_s=0.05, most_s=0.2)
        sent = [{f"u{u}": events(f"item{n % 60 + 1}", start=T0 + n * 1000) for u in range(5)} for n in range(400)]

        def blocking():
            acks = []
            with Client(listen, retry=retry) as client, client.stream(most_unanswered=4) as stream:
                for batch in sent:
                    got = stream.send(batch)
                    acks += got
                    yield len(acks)
                acks += stream.flush()
            self.assertEqual([a.sequence for a in acks], list(range(1, 401)))
            self.assertEqual(sum(a.applied + a.duplicates for a in acks), 2000)

        server = self.serve(listen=listen)
        for done in blocking():
            if done == 150 and server is not None:
                server.kill()
                server = None
                threading.Timer(0.3, lambda: self.serve(listen=listen)).start()
        with Client(listen) as client:
            self.assertEqual([client.get_user(f"u{u}").event_count for u in range(5)], [400] * 5)

        async def once_more():
            acks = []
            async with AsyncClient(listen, retry=retry) as client, client.stream() as stream:
                for batch in sent:
                    acks += await stream.send(batch)
                acks += await stream.flush()
            return acks
        acks = asyncio.run(once_more())
        self.assertEqual((len(acks), sum(a.duplicates for a in acks)), (400, 2000))

    def test_a_faulty_interaction_is_named_and_the_rest_stored(self):
        client = self.connect(self.serve().address)
        with client.stream(durable=True) as stream:
            bad = Interaction("", T0)
            stream.send({"ada": events("item1"), "bob": [*events("item1", "item2"), bad]})
            ack, = stream.flush()
        self.assertEqual(ack.applied, 3)
        self.assertEqual(ack.rejected[0][:2], ("bob", bad))

    def test_a_batch_that_fails_as_a_whole_raises(self):
        client = self.connect(self.serve(env={"TIM4REC_LIMITS_MAX_INTERACTIONS": "3"}).address)
        stream = client.stream()
        stream.send({"ada": events("item1")})
        stream.send({"ada": events("item1", "item2", "item3", "item4")})
        with self.assertRaises(CallError) as raised:
            stream.flush()
        stream.close()
        self.assertIs(raised.exception.code, grpc.StatusCode.INVALID_ARGUMENT)


class RecommendBatch(WithServer):
    """Many users on one stream: as asked one by one, whatever breaks on the way."""

    def test_answers_are_those_of_single_calls_and_errors_are_in_place(self):
        address, query = self.serve().address, Query(k=4, as_of_ms=T0 + 10**9)
        client = self.connect(address)
        with client.stream() as stream:
            for n in range(40):
                stream.send({f"u{u}": events(f"item{(n * u) % 60 + 1}", start=T0 + n * 1000) for u in range(0, 3000, 10)})
        users = [f"u{u}" for u in range(3000)]
        users[1234] = "x" * 257
        answers = list(client.recommend_batch(iter(users), query))
        self.assertEqual([a.user_id for a in answers], users)
        self.assertIs(answers[1234].error.code, grpc.StatusCode.INVALID_ARGUMENT)
        self.assertEqual([a.user_id for a in answers if a.error], [users[1234]])
        for n in (0, 10, 11, 2990):
            self.assertEqual(answers[n].recommendation.items, client.recommend(users[n], query).items)

        async def once_more():
            async with AsyncClient(address) as client:
                return [a async for a in client.recommend_batch(users, query)]
        again = asyncio.run(once_more())
        self.assertEqual([a.recommendation and a.recommendation.items for a in again],
                         [a.recommendation and a.recommendation.items for a in answers])
        self.assertEqual(list(client.recommend_batch([])), [])
        with self.assertRaises(CallError) as raised:
            list(client.recommend_batch(users, Query(k=0)))
        self.assertIs(raised.exception.code, grpc.StatusCode.INVALID_ARGUMENT)

    def test_a_restart_repeats_and_leaves_out_nobody(self):
        listen = f"127.0.0.1:{free_port()}"
        client = self.connect(listen, retry=Retry(attempts=1000, first_s=0.05, most_s=0.2))
        server, users, got = self.serve(listen=listen), [f"u{n}" for n in range(20_000)], []
        for answer in client.recommend_batch(users, Query(k=2)):
            got.append(answer.user_id)
            if len(got) == 5000:
                server.kill()
                threading.Timer(0.3, lambda: self.serve(listen=listen)).start()
        self.assertEqual(got, users)

    def test_old_calls_are_followed_by_new_ones(self):
        client = self.connect(self.serve().address)
        # Every look at the clock moves it on, so that a call grows old between any two of them.
        looks = itertools.count()
        clock = mock.Mock(monotonic=lambda: next(looks) / 5, sleep=time.sleep)
        with mock.patch("tim4rec._core.STREAM_CALL_S", 1.0), mock.patch("tim4rec.client.time", clock):
            users = [f"u{n}" for n in range(20_000)]
            self.assertEqual([a.user_id for a in client.recommend_batch(users, Query(k=1))], users)
            with client.stream() as stream:
                acks = []
                for n in range(300):
                    acks += stream.send({"u": events("item1", start=T0 + n)})
                acks += stream.flush()
            self.assertEqual(sum(a.applied for a in acks), 300)  # none was sent twice

    def test_old_calls_are_followed_by_new_ones_in_asyncio(self):
        address, looks = self.serve().address, itertools.count()
        clock = mock.Mock(monotonic=lambda: next(looks) / 5)

        async def send():
            async with AsyncClient(address) as client, client.stream() as stream:
                acks = []
                for n in range(300):
                    acks += await stream.send({"u": events("item1", start=T0 + n)})
                return acks + await stream.flush()
        with mock.patch("tim4rec._core.STREAM_CALL_S", 1.0), mock.patch("tim4rec.aio.time", clock):
            self.assertEqual(sum(a.applied for a in asyncio.run(send())), 300)


class Secured(WithServer):
    """A server that asks for a certificate and a token."""

    def test_both_clients_show_certificate_and_token(self):
        folder = self.data.parent
        config = secured(folder, "read,write both-0123456789abcdef", "read reader-0123456789abcdef")
        ca, client = folder / "ca", folder / "client"
        target = f"localhost:{self.serve('--config', str(config)).address.rpartition(':')[2]}"
        tls = Tls.from_files(f"{ca}.crt", f"{client}.crt", f"{client}.key")
        both = self.connect(target, token="both-0123456789abcdef", tls=tls)
        both.record("u", events("item1"))
        with both.stream() as stream:
            stream.send({"u": events("item2", start=T0 + 1000)})
        reader = self.connect(target, token=lambda: "reader-0123456789abcdef", tls=tls)
        self.assertEqual(reader.get_user("u").event_count, 2)
        with self.assertRaisesRegex(CallError, "RecordInteractions needs a token for write") as refused:
            reader.record("u", events("item3"))
        self.assertEqual(refused.exception.code, grpc.StatusCode.PERMISSION_DENIED)
        with self.assertRaisesRegex(CallError, "knows no such token"):
            self.connect(target, token="unknown-0123456789abcdef", tls=tls).recommend("u")

        async def recommend():
            async with AsyncClient(target, token="reader-0123456789abcdef", tls=tls) as asynchronous:
                return await asynchronous.recommend("u")
        self.assertTrue(asyncio.run(recommend()).items)
        bare = self.connect(target, token="reader-0123456789abcdef", tls=Tls.from_files(f"{ca}.crt"),
                            retry=Retry(attempts=1), timeout_s=5)
        with self.assertRaises(CallError) as strange:
            bare.recommend("u")
        self.assertEqual(strange.exception.code, grpc.StatusCode.UNAVAILABLE)


    def test_the_tail_of_a_file_shows_certificate_and_token(self):
        folder = self.data.parent
        config = secured(folder, "write writer-0123456789abcdef", "read reader-0123456789abcdef")
        server = f"localhost:{self.serve('--config', str(config)).address.rpartition(':')[2]}"
        lines, token = folder / "events.jsonl", folder / "token"
        lines.write_text("".join(json.dumps({"user_id": f"u{n % 3}", "item_id": "item1", "timestamp_ms": T0 + n}) + "\n"
                                 for n in range(900)))
        token.write_text("writer-0123456789abcdef\n")
        command = [sys.executable, ROOT / "proto" / "python" / "examples" / "tail_interactions.py", lines, "--servers",
                   server, "--once", "--ca", f"{folder}/ca.crt", "--certificate", f"{folder}/client.crt", "--key",
                   f"{folder}/client.key", "--token-file", token]
        told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
        self.assertIn("900 stored, 0 repeated, 0 rejected", told)
        token.write_text("reader-0123456789abcdef\n")
        lines.with_name("events.jsonl.offset").unlink()
        refused = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        self.assertNotEqual(refused.returncode, 0)
        self.assertIn("StreamInteractions needs a token for write", refused.stderr)


class Options(unittest.TestCase):
    def test_a_token_goes_in_clear_text_to_this_machine_only(self):
        for target in ("localhost:1", "127.0.0.1:1", "[::1]:1", "unix:///run/s.sock"):
            Client(target, token="secret").close()
        for target in ("10.0.0.1:1", "recommender.example:1", "dns:///recommender.example:1"):
            with self.assertRaisesRegex(ValueError, "clear text"):
                Client(target, token="secret")
            Client(target, token="secret", tls=Tls()).close()

    def test_what_cannot_work_is_refused(self):
        for wrong in (dict(timeout_s=0), dict(tls=0)):
            with self.assertRaises((ValueError, AttributeError)):
                Client("localhost:1", **wrong)
        for retry in (dict(attempts=0), dict(first_s=0), dict(first_s=3, most_s=2)):
            with self.assertRaises(ValueError):
                Retry(**retry)
        with self.assertRaisesRegex(ValueError, "come together"):
            Tls(certificate=b"c")
        self.assertNotIn("KEY", repr(Tls(certificate=b"c", key=b"KEY")))

    def test_any_user_id_makes_a_header(self):
        self.assertEqual(routing_key("Ab9-._~"), "Ab9-._~")
        self.assertEqual(routing_key("a b/é\n"), "a%20b%2F%C3%A9%0A")


class Frames(WithServer):
    def test_tables_in_and_out(self):
        client = self.connect(self.serve().address)
        table = pa.table({"user_id": ["a", "b", "a"], "item_id": ["item1", "item2", "item3"], "timestamp_ms": [T0, T0, T0 + 5]})
        frame = table.to_pandas()
        times = frame.assign(timestamp_ms=pd.to_datetime(frame.timestamp_ms, unit="ms"))
        local = frame.assign(timestamp_ms=pd.to_datetime(frame.timestamp_ms, unit="ms", utc=True)
                             .dt.tz_convert("Asia/Tokyo"), user_id=frame.user_id.astype("category"))
        expected = [{"a": [Interaction("item1", T0)], "b": [Interaction("item2", T0)]}, {"a": [Interaction("item3", T0 + 5)]}]
        for given in (table, frame, times, local):
            self.assertEqual(list(frames.batches(given, rows=2)), expected)
        with client.stream() as stream:
            for batch in frames.batches(times):
                stream.send(batch)
        answers = [(u, client.recommend(u, Query(k=3))) for u in ("a", "b", "new")]
        out = frames.to_pandas(answers)
        self.assertEqual(list(out.user_id), ["a"] * 3 + ["b"] * 3 + ["new"] * 3)
        self.assertEqual(list(out["rank"]), [1, 2, 3] * 3)
        self.assertEqual(list(out.item_id), [i for _, r in answers for i in r.item_ids])
        self.assertEqual(set(out.tier), {"HOT", "COLD_START"})
        self.assertEqual(frames.to_arrow([]).num_rows, 0)

    def test_faults_of_tables_are_named(self):
        good = {"user_id": ["a"], "item_id": ["i"], "timestamp_ms": [1]}
        for change, message in (({"user_id": [None]}, "row 0 is null"), ({"item_id": [1.5]}, "makes no ids"),
                                ({"timestamp_ms": ["x"]}, "is no time")):
            with self.assertRaisesRegex(ValueError, message):
                list(frames.batches(pa.table({**good, **change})))
        with self.assertRaisesRegex(ValueError, "no column 'when'"):
            list(frames.batches(pa.table(good), time="when"))
        numbers = pa.table({**good, "user_id": [7], "item_id": [8], "e": ["x"]})
        self.assertEqual(list(frames.batches(numbers, event="e")), [{"7": [Interaction("8", 1, "x")]}])


class Example(unittest.TestCase):
    def test_the_quickstart_runs_from_training_to_recommendations(self):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([sys.executable, ROOT / "proto" / "python" / "examples" / "quickstart.py"],
                                  capture_output=True, text=True, check=False, timeout=250,
                                  env={**os.environ, "TIM4REC_BUILD": str(BUILD), "TMPDIR": folder,
                                       "TIM4REC_TRAIN_FLAGS": "--epochs 1"})
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertRegex(done.stdout, r"[1-9]\d{4} stored, 0 were there before")
        self.assertRegex(done.stdout, r"\d+ of 200 held-out")
        self.assertRegex(done.stdout, r"a month later: \['\d+'")


class Consumer(WithServer):
    """examples/tail_interactions.py: killed at random, over servers that are killed, and nothing is lost or doubled."""

    def start(self, *flags):
        return subprocess.Popen([sys.executable, ROOT / "proto" / "python" / "examples" / "tail_interactions.py",
                                 self.file, "--servers", ",".join(self.names), *flags],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def test_every_line_is_stored_once_whoever_is_killed(self):
        seed = time.time_ns()
        print(f"seed {seed}")
        rng = random.Random(seed)
        self.names = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        servers = [self.serve_at(n) for n in self.names]
        self.file = self.data.with_name("events.jsonl")
        lines = [json.dumps({"user_id": f"u{n % 11}", "item_id": f"item{n % 60 + 1}", "timestamp_ms": T0 + n * 1000})
                 for n in range(30_000)]
        odd = ["no json", '{"user_id": "u1"}', '{"user_id": "u1", "item_id": "", "timestamp_ms": 1}']
        written, complaints = 0, set()
        for n in range(6):  # the file grows, in cuts that do not end with a line
            text = "\n".join([*lines, *odd]) + "\n"
            until = len(text) * (n + 1) // 6
            with self.file.open("a") as f:
                f.write(text[written:until])
            written = until
            consumer = self.start()
            time.sleep(rng.uniform(0.3, 1.2))
            if n == 2:
                servers[0].kill()
                time.sleep(rng.uniform(0, 0.3))
                servers[0] = self.serve_at(self.names[0])
            consumer.kill()
            complaints.update(consumer.communicate()[1].splitlines())
        told, errors = self.start("--once").communicate(timeout=120)
        self.assertRegex(told.splitlines()[-1], rf"; {written} of {written} bytes")
        self.assertEqual(self.file.with_name("events.jsonl.offset").read_text(), str(written))
        complaints.update(errors.splitlines())
        self.assertEqual(sorted(c.split(":")[0] for c in complaints), ["no interaction", "no interaction", "rejected"])
        ring, counts = Ring(self.names), {}
        for name in self.names:
            with Client(name) as client:
                counts[name] = {f"u{u}": client.get_user(f"u{u}").event_count for u in range(11)}
        for u in range(11):
            user, expected = f"u{u}", len(range(u, 30_000, 11))
            self.assertEqual({n: counts[n][user] for n in self.names},
                             {n: expected if ring.server_of(user) == n else 0 for n in self.names})

    def serve_at(self, name):
        server = ServerProcess(BUILD, self.data.with_name(name.replace(":", "_")), listen=name)
        self.addCleanup(server.__exit__)
        return server


class Contract(unittest.TestCase):
    def test_every_option_of_the_contract_is_a_field_of_query(self):
        from tim4rec.v1 import recommender_pb2 as pb
        self.assertEqual({f.name for f in dataclasses.fields(Query)},
                         {f.name for f in pb.RecommendRequest.DESCRIPTOR.fields} - {"user_id"})
        for ours, theirs in ((Outcome, pb.InteractionStatus), (Tier, pb.Tier)):
            self.assertEqual([v.value for v in ours], theirs.values())


if __name__ == "__main__":
    unittest.main(verbosity=2)
