#!/usr/bin/env python3
"""What the server's program holds of CUDA: code for sm_80 and sm_90, PTX for later chips, and no library but the runtime.

Usage: binary_test.py PROGRAM
"""
import pathlib
import re
import struct
import subprocess
import sys
import unittest

PROGRAM = pathlib.Path(sys.argv.pop(1))
FATBIN = 0xBA55ED50  # the magic number of a container of device code
PTX, ELF = 1, 2


def section(name):
    listing = subprocess.run(["readelf", "-SW", PROGRAM], capture_output=True, text=True, check=True).stdout
    found = re.search(rf"\] {re.escape(name)}\s+\S+\s+\S+\s+([0-9a-f]+)\s+([0-9a-f]+)", listing)
    offset, size = (int(n, 16) for n in found.groups())
    return PROGRAM.read_bytes()[offset:offset + size]


def device_code(data):
    """(kind, architecture) of every piece in the containers."""
    at, pieces = 0, []
    while at + 16 <= len(data):
        magic, _, header, size = struct.unpack_from("<IHHQ", data, at)
        if magic != FATBIN:
            at += 8
            continue
        piece, end = at + header, at + header + size
        while piece < end:
            kind, _, piece_header, payload = struct.unpack_from("<HHIQ", data, piece)
            pieces.append((kind, struct.unpack_from("<I", data, piece + 28)[0]))
            piece += piece_header + payload
        at = (end + 7) // 8 * 8
    return pieces


class Program(unittest.TestCase):
    def test_runs_without_any_cuda_library(self):
        dynamic = subprocess.run(["readelf", "-dW", PROGRAM], capture_output=True, text=True, check=True).stdout
        needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
        self.assertGreater(len(needed), 5)
        self.assertEqual([n for n in needed if re.match(r"lib(cu|nv)", n)], [])

    def test_has_code_for_sm_80_and_sm_90_and_ptx(self):
        pieces = device_code(section(".nv_fatbin"))
        by_kind = {kind: {arch for k, arch in pieces if k == kind} for kind in (PTX, ELF)}
        self.assertEqual(by_kind, {PTX: {90}, ELF: {80, 90}})
        # Every kernel source has all three.
        counts = [sum(1 for p in pieces if p == one) for one in ((ELF, 80), (ELF, 90), (PTX, 90))]
        self.assertEqual(len(set(counts)), 1, pieces)
        self.assertGreaterEqual(counts[0], 5)


if __name__ == "__main__":
    unittest.main(verbosity=2)
