#!/usr/bin/env python3
"""Writes the first inputs of the fuzz targets, corpus/*/seed_*, which are kept in the tree.

Usage: make_seeds.py        in tests/fuzz; needs nothing but Python and build/release/bin/write_fuzz_package
"""
import io
import pathlib
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent


def write(target, name, content):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"seed_{name}").write_bytes(content)


def record_codec():
    """The worked example of store/FORMAT.md, without checksums, which the target appends."""
    user = bytes.fromhex("0005616c696365")
    newest = bytes.fromhex("8000018bcfe56800029a6b019f95a49a9af4edaab5e5c1529d")
    fingerprint = bytes.fromhex("00112233445566778899aabbccddeeff")
    state = (b"T4RS" + struct.pack("<HH", 1, 1) + fingerprint + struct.pack("<QQQQ", 4, 2, 7, 8) + b"\0"
             + struct.pack("<H", len(newest)) + newest + b"\1\2\3\4")
    for name, key, value in [
        ("event", user + newest, b"\0\2\0m1"),
        ("event_id", user + bytes.fromhex("7fffffffffffffff016537"), b"\1\2\0m1"),
        ("late", user + bytes.fromhex("8000018bcfe567ff0245d4b1023e06f1912990f37af5fe486f"),
         b"\2\2\0m2" + struct.pack("<H", len(newest)) + newest + struct.pack("<I", 1)),
        ("state", user + fingerprint, state),
        ("format", b"format", struct.pack("<II", 1, 1)),
        ("truncation", user, struct.pack("<QQQqH", 2, 7, 8, 1700000000000, len(newest)) + newest),
        ("base", user + fingerprint + b"\1", state[:56] + b"\1" + state[57:]),
    ]:
        for checksum in (0, 1):
            write("record_codec", f"{name}_{checksum}", bytes([checksum, len(key)]) + key + value)


def pickles():
    values = {
        "dict": {"a": 1, "b": [1.5, None, True, -7, 2**40, 2**80], "c": ("x", b"y", {"z"})},
        "nested": [[[[]]], {"k": {"k": {}}}],
        "shared": [list(range(5))] * 3,
    }
    for name, value in values.items():
        for protocol in (2, 4, 5):
            write("pickle", f"{name}_{protocol}", pickle.dumps(value, protocol))


def torch_checkpoints():
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        file.writestr("m/data.pkl", pickle.dumps({"state_dict": {}}, 2))
        file.writestr("m/version", "3\n")
    write("torch_checkpoint", "empty", archive.getvalue())


def varint(number):
    number &= 2**64 - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out + bytes([number]))


def message(*fields):
    """(number, value) as protobuf writes them: integers as varints, text and messages with their length."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            value = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def requests():
    """One request of each call with every field set, by the first byte of requests_fuzz.cc; then faulty ones."""
    now = 1_700_000_000_000
    event = message((1, "item1"), (2, now), (3, "e1"))
    other = message((1, "unknown"), (2, 0))
    recommend = message((2, 7), (3, now), (4, 0), (5, "item1"), (5, "none"), (6, "item2"), (6, "item3"), (7, "c1"),
                        (8, "c0"), (9, 3), (10, "m@0"))
    record = message((1, "u"), (2, event), (2, other), (3, 2))
    for call, name, content in [
        (0, "record", record), (1, "recommend", message((1, "u")) + recommend),
        (2, "both", message((1, record), (2, recommend))),
        (3, "history", message((1, event), (1, other), (2, message((2, 7), (3, now), (7, "c1"))))),
        (4, "stream", message((1, 9), (2, message((1, "u"), (2, event))), (2, message((1, "v"), (2, other))), (3, 1))),
        (5, "batch", message((1, recommend), (2, "u"), (2, ""), (2, "w" * 257))),
        (6, "get_user", message((1, "u"), (2, now), (3, 10))), (7, "delete_user", message((1, "u"), (2, 1))),
        (0, "broken_text", message((1, "u"), (2, message((1, b"\xff\xfe"), (2, now))), (2, event))),
        (1, "broken_id", message((1, b"u\xc3"), (2, 2**31), (3, -1))),
        (4, "many_users", message(*[(2, b"")] * 9)), (4, "many_events", message((2, message((1, "u"), *[(2, event)] * 9)))),
        (0, "future", message((1, "u"), (2, message((1, "item1"), (2, now + 10**6))), (3, 7))),
    ]:
        write("requests", name, bytes([call]) + content)


def admin_requests():
    """One request of each call, by the first byte of admin_requests_fuzz.cc, then faulty ones."""
    version = message((1, "m@00112233445566778899aabbccddeeff"))
    for call, name, content in [
        (0, "load", message((1, "/models/m"), (2, "name"), (3, "cpu"))), (1, "promote", version), (2, "unload", version),
        (3, "verify", message((1, "u"), (2, "m@0"))), (4, "backup", message((1, "/backups/b"))),
        (5, "drain", message((1, 30_000))), (6, "list", b""), (7, "config", b""),
        (0, "no_directory", message((2, "name" * 30))), (0, "zero_byte", message((1, "/models\0/m"))),
        (1, "broken_text", message((1, b"\xff\xfe"))), (2, "nothing", b""), (3, "long_id", message((1, "u" * 257))),
        (4, "relative", message((1, "b" * 3000))), (4, "long_characters", message((1, "\u20ac" * 1000))),
        (5, "negative", message((1, -1))), (5, "for_ever", message((1, 2**63 - 1))), (6, "unknown", message((9, "x"))),
    ]:
        write("admin_requests", name, bytes([call]) + content)


def package():
    with tempfile.TemporaryDirectory() as folder:
        directory = pathlib.Path(folder, "package")
        subprocess.run([ROOT / "build/release/bin/write_fuzz_package", directory], check=True)
        names = ["config.json", "items.tsv", "weights.safetensors", "probe.safetensors"]
        files = [(directory / name).read_bytes() for name in names]
        content = b"".join(struct.pack("<I", len(file)) + file for file in files)
        write("package", "tiny", content + (directory / "metrics.json").read_bytes())


if __name__ == "__main__":
    if len(sys.argv) != 1:
        sys.exit(__doc__)
    record_codec()
    pickles()
    torch_checkpoints()
    requests()
    admin_requests()
    package()
