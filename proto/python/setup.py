"""Makes the messages and stubs of tim4rec.v1 while the package is built; everything else is pyproject.toml's."""
import pathlib
import re
import sys
from importlib import metadata

from grpc_tools import protoc
from setuptools import setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).resolve().parent
PROTOS = HERE.parent


class BuildWithStubs(build_py):
    """Writes tim4rec/v1/*_pb2.py, their .pyi and *_pb2_grpc.py beside the copied sources."""

    def run(self):
        super().run()
        out = HERE if self.editable_mode else pathlib.Path(self.build_lib)
        sources = sorted(str(p.relative_to(PROTOS)) for p in (PROTOS / "tim4rec" / "v1").glob("*.proto"))
        if not sources:
            sys.exit(f"no .proto files in {PROTOS}/tim4rec/v1: build from a checkout of the repository")
        (out / "tim4rec" / "v1").mkdir(parents=True, exist_ok=True)
        (out / "tim4rec" / "v1" / "__init__.py").touch()
        flags = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
        if protoc.main(["protoc", f"-I{PROTOS}", *flags, *sources]) != 0:
            sys.exit("protoc failed")


def release(package):
    return re.match(r"[\d.]+", metadata.version(package)).group().rstrip(".")


# Generated code asks for run-time libraries at least as new as what generated it.
setup(
    cmdclass={"build_py": BuildWithStubs},
    install_requires=[f"grpcio>={release('grpcio-tools')}", f"protobuf>={release('protobuf')}",
                      "googleapis-common-protos>=1.56"],
)
