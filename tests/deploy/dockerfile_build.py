"""Executes the Dockerfile in debootstrap's root file systems and runs what comes out. See dockerfile_test.sh.

Usage: dockerfile_build.py ROOT FOLDER [BINARY]     as root, in mount and pid namespaces of its own
BINARY: a tim4rec-server that was built on Debian 12 before, in place of compiling one.
"""
import ctypes
import fcntl
import fnmatch
import glob
import hashlib
import json
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time

import dockerfile

ROOT, FOLDER = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]).resolve()
BINARY = pathlib.Path(sys.argv[3]) if len(sys.argv) > 3 else None
MODEL = ROOT / "tests" / "e2e" / "testdata" / "tiny_model"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ARGUMENTS, STAGES = dockerfile.parse((ROOT / "Dockerfile").read_text())
MOST_MIB = {"server": 320, "router": 200, "batch": 480}  # of the last stages: Debian itself is 200


def run(*command, **options):
    return subprocess.run([str(c) for c in command], check=True, **options)


def debian(folder):
    """debian:12-slim: a minimal Debian 12."""
    base = folder / "debian"
    if not (base / "made").exists():
        shutil.rmtree(base, ignore_errors=True)
        run("debootstrap", "--variant=minbase", "bookworm", base, "http://deb.debian.org/debian",
            stdout=subprocess.DEVNULL)
        subprocess.run(["umount", "-R", base / "proc"], check=False, stderr=subprocess.DEVNULL)
        lines = [f"deb http://deb.debian.org/{where} main\n"
                 for where in ("debian bookworm", "debian bookworm-updates", "debian-security bookworm-security")]
        (base / "etc/apt/sources.list").write_text("".join(lines))
        # As in Debian's image: packages start nothing, and bring no documentation.
        (base / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
        (base / "usr/sbin/policy-rc.d").chmod(0o755)
        for junk in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(base / junk, ignore_errors=True)
        (base / "etc/dpkg/dpkg.cfg.d/slim").write_text("".join(
            f"path-exclude /usr/share/{d}/*\n" for d in ("doc", "man", "locale")))
        (base / "made").touch()
    return base


def copy_context(target):
    """The build context: the checkout without what .dockerignore names."""
    ignored = (ROOT / ".dockerignore").read_text().split()

    def out(folder, names):
        inner = pathlib.Path(folder).relative_to(ROOT)
        return [n for n in names if any(fnmatch.fnmatch(str(inner / n), pattern) for pattern in ignored)]
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(ROOT, target, symlinks=True, ignore=out)


class Image:
    """A stage: its root file system, and what its instructions say of the container."""

    def __init__(self, stage):
        self.stage, self.root = stage, FOLDER / "stages" / stage.name
        self.directory, self.shell = "/", ["/bin/sh", "-c"]
        self.environment, self.arguments = {"PATH": PATH}, {}
        self.user, self.entry, self.health = "0", None, None
        self.view, self.last_key = FOLDER / "view" / stage.name, ""

    def build(self, base, images):
        """Executes the instructions on a copy of `base`. Goes on where an earlier run of the same ones stopped."""
        mark, keys = self.root.with_suffix(".json"), self.keys(images)
        done = json.loads(mark.read_text()) if mark.exists() else []
        if not done or done != keys[:len(done)]:
            done = []
            mark.unlink(missing_ok=True)
            shutil.rmtree(self.root, ignore_errors=True)
            self.root.parent.mkdir(exist_ok=True)
            run("cp", "-ax", "--reflink=auto", base, self.root)
        mount("-t", "proc", "proc", self.root / "proc")
        mount("--bind", "/dev", self.root / "dev")
        shutil.copy("/etc/resolv.conf", self.root / "etc/resolv.conf")
        for n, i in enumerate(self.stage.instructions):
            if i.name in ("RUN", "COPY"):
                if n < len(done):
                    continue
                print(f"== {self.stage.name}, line {i.line}: {i.name} {i.text[:100]}", flush=True)
            self.execute(i, images)
            mark.write_text(json.dumps(keys[:n + 1]))
        self.last_key = keys[-1] if keys else images[dockerfile.substitute(self.stage.base, ARGUMENTS)].last_key

    def keys(self, images):
        """Of each instruction: what it and those before it depend on."""
        base = dockerfile.substitute(self.stage.base, ARGUMENTS)
        keys, key = [], images[base].last_key if base in images else base
        for i in self.stage.instructions:
            sha = hashlib.sha256(f"{key}{i.name}{i.text}".encode())
            if i.name == "COPY":
                words = i.words(ARGUMENTS)
                if words[0].startswith("--from="):
                    sha.update(images[words[0].removeprefix("--from=")].last_key.encode())
                else:
                    sources = [FOLDER / "context" / w for w in words[:-1]]
                    for path in sorted(p for s in sources for p in [s, *s.rglob("*")] if p.is_file()):
                        sha.update(str(path).encode() + path.read_bytes())
            key = sha.hexdigest()
            keys.append(key)
        return keys

    def execute(self, i, images):
        if i.name == "ARG":
            name, _, default = i.text.partition("=")
            self.arguments[name] = ARGUMENTS.get(name, default)
        elif i.name == "ENV":
            self.environment.update(word.split("=", 1) for word in i.words(self.arguments))
        elif i.name == "WORKDIR":
            self.directory = i.text
            (self.root / i.text.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif i.name == "SHELL":
            self.shell = i.items()
        elif i.name == "RUN" and BINARY is not None and "cmake --build" in i.text:
            (self.root / "src/build/release/bin").mkdir(parents=True, exist_ok=True)
            run("cp", BINARY, self.root / "src/build/release/bin/tim4rec-server")
        elif i.name == "RUN":
            environment = {**self.environment, **self.arguments}
            if "pip install" in i.text and "PIP_CERT" in os.environ:  # this machine's network has certificates of its own
                shutil.copy(os.environ["PIP_CERT"], self.root / "tmp/certificates")
                environment["PIP_CERT"] = "/tmp/certificates"
            self.inside([*self.shell, i.text], environment, self.directory)
        elif i.name == "COPY":
            self.copy(i.words(self.arguments), images)
        elif i.name == "USER":
            self.user = i.text
        elif i.name == "ENTRYPOINT":
            self.entry = i.items()
        elif i.name == "HEALTHCHECK" and i.text != "NONE":
            self.health = json.loads(i.text[i.text.index("CMD ") + 4:])

    def copy(self, words, images):
        source = FOLDER / "context"
        if words[0].startswith("--from="):
            source = images[words.pop(0).removeprefix("--from=")].root
        *names, target = words
        into = self.root / os.path.join(self.directory, target).lstrip("/")
        if target.endswith("/") or len(names) > 1 or (source / names[0].lstrip("/")).is_dir():
            into.mkdir(parents=True, exist_ok=True)
        else:
            into.parent.mkdir(parents=True, exist_ok=True)
        for name in names:
            for path in glob.glob(str(source / name.lstrip("/"))) or [str(source / name)]:
                run("cp", "-a", path + ("/." if os.path.isdir(path) else ""), into)

    def inside(self, command, environment, directory="/", **options):
        pairs = [f"{k}={v}" for k, v in environment.items()]
        return run("chroot", self.root, "/usr/bin/env", "-i", *pairs,
                   "/bin/sh", "-c", 'cd "$0" && exec "$@"', directory, *command, **options)

    def mount_read_only(self, mounts):
        """Makes `self.view` of the root, read-only, with `mounts` {inside: (outside, writable)} in it."""
        subprocess.run(["umount", "-R", self.root / "dev", self.root / "proc"], check=False, stderr=subprocess.DEVNULL)
        for inside, (outside, _) in mounts.items():
            (self.root / inside.lstrip("/")).mkdir(exist_ok=True)
            outside.mkdir(parents=True, exist_ok=True)
        self.view.mkdir(parents=True, exist_ok=True)
        mount("--bind", self.root, self.view)
        mount("-o", "remount,ro,bind", self.view)
        mount("-t", "proc", "proc", self.view / "proc")
        mount("--bind", "/dev", self.view / "dev")
        for inside, (outside, writable) in mounts.items():
            where = self.view / inside.lstrip("/")
            mount("--bind", outside, where)
            if writable:
                os.chown(outside, int(self.user), int(self.user))
            else:
                mount("-o", "remount,ro,bind", where)

    def as_started(self, command):
        """The command line that runs `command` as a container engine would: not root, in the read-only view."""
        pairs = [f"{k}={v}" for k, v in self.environment.items()]
        return ["chroot", f"--userspec={self.user}:{self.user}", "--groups=", str(self.view),
                "/usr/bin/env", "-i", *pairs, *command]


def mount(*arguments):
    run("mount", *arguments)


def build_all():
    """Every stage of the CPU variant, in order; what is of the other variant is left out."""
    copy_context(FOLDER / "context")
    images = {}
    for stage in STAGES:
        base = dockerfile.substitute(stage.base, ARGUMENTS)
        if base.startswith("nvidia/"):
            continue
        images[stage.name] = Image(stage)
        images[stage.name].build(debian(FOLDER) if base == "debian:12-slim" else images[base].root, images)
    return images


class Container:
    """A running image."""

    def __init__(self, image, more=(), mounts=None):
        image.mount_read_only(mounts or {})
        self.image = image
        self.process = subprocess.Popen(image.as_started([*image.entry, *more]), stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True)

    def run(self, command):
        """Its exit code, run beside the process."""
        return subprocess.run(self.image.as_started(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              check=False).returncode

    def healthy(self):
        return self.run(self.image.health) == 0

    def wait_until_healthy(self):
        for _ in range(150):
            if self.healthy():
                return
            if self.process.poll() is not None:
                raise AssertionError(self.process.stdout.read())
            time.sleep(0.2)
        raise AssertionError("not healthy after 30 s")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        said = self.process.communicate(timeout=60)[0]
        return self.process.returncode, said


def check(condition, what):
    print(("ok   " if condition else "FAIL ") + what, flush=True)
    if not condition:
        raise SystemExit(1)


def check_files(image):
    name, root = image.stage.name, image.root
    size = int(run("du", "-sxm", "--exclude=dev", root, capture_output=True, text=True).stdout.split()[0])
    check(size < MOST_MIB[name], f"{name}: {size} MiB, fewer than {MOST_MIB[name]}")
    for tool in ("gcc", "cc", "cmake", "make", "git", "curl", "pip") + (("python3",) if name != "batch" else ()):
        check(not (root / "usr/bin" / tool).exists(), f"{name}: no {tool}")
    check(not list(root.glob("usr/lib/x86_64-linux-gnu/libtorch*")), f"{name}: no libtorch")
    sbom = json.loads((root / "usr/share/tim4rec/sbom.cdx.json").read_text())
    listed = {c["name"] for c in sbom["components"] if c["scope"] == "required"}
    installed = set(image.inside(["dpkg-query", "-W", "-f=${Package}\n"], image.environment, capture_output=True,
                                 text=True).stdout.split())
    python = {p.split()[0] for p in (root / "opt/tim4rec/packages.txt").read_text().splitlines()} if name == "batch" else set()
    check(("pyarrow" in python) == (name == "batch"), f"{name}: {len(python)} Python packages")
    check(listed == installed | python | {f"tim4rec-{name}"}, f"{name}: the SBOM lists {len(installed)} packages, all")


def check_server(image, batch):
    data = FOLDER / "data"
    shutil.rmtree(data, ignore_errors=True)
    server = Container(image, ["--admin-listen", "127.0.0.1:0"],
                       {"/model": (MODEL, False), "/data": (data, True)})
    server.wait_until_healthy()
    check(True, "server: healthy by the image's own check")
    status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    check("\nUid:\t10001\t10001\t10001\t10001\n" in status, "server: runs as user 10001")
    check("\nCapEff:\t0000000000000000\n" in status, "server: has no capabilities")
    for path in ("/x", "/usr/x", "/model/x", "/etc/passwd"):
        check(server.run(["/bin/sh", "-c", f"echo >>{path}"]) != 0, f"server: cannot write {path}")
    check(server.run(["/bin/sh", "-c", "echo >>/data/x"]) == 0, "server: can write its volume")
    check(call_server() == (1, 5), "server: records and recommends")
    check_batch(batch)
    code, said = server.stop()
    check(code == 0, f"server: ends with 0 after SIGTERM ({said.splitlines()[-1][:80]})")
    check(any(data.iterdir()), "server: its store is on the volume")
    check(not server.healthy(), "server: its health check fails once it has ended")


def check_batch(image):
    """The image's command for two users of the running server, with a read-only root."""
    folder = FOLDER / "batch"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "users.txt").write_text("u\nnobody\n")
    job = Container(image, ["/batch/users.txt", "/batch/out", "--servers", "127.0.0.1:50051"],
                    {"/batch": (folder, True), "/tmp": (FOLDER / "tmp", True)})
    said = job.process.communicate(timeout=120)[0]
    check(job.process.returncode == 0 and "2/2 users" in said, f"batch: answers two users ({said.splitlines()[-1][:80]})")
    check((folder / "out/part-00000.parquet").stat().st_uid == int(image.user), "batch: its list belongs to user 10001")


def call_server():
    """(state_version, items) of one RecordAndRecommend."""
    made = FOLDER / "python"
    made.mkdir(exist_ok=True)
    run("protoc", f"-I{ROOT}/proto", f"--python_out={made}", "tim4rec/v1/recommender.proto")
    sys.path.insert(0, str(made))
    import grpc
    from tim4rec.v1 import recommender_pb2 as pb
    request = pb.RecordAndRecommendRequest(
        record=pb.RecordInteractionsRequest(user_id="u", interactions=[pb.Interaction(item_id="item1", timestamp_ms=1)]),
        recommend=pb.RecommendRequest(k=5))
    with grpc.insecure_channel("127.0.0.1:50051") as channel:
        call = channel.unary_unary("/tim4rec.v1.Recommender/RecordAndRecommend",
                                   request_serializer=pb.RecordAndRecommendRequest.SerializeToString,
                                   response_deserializer=pb.RecordAndRecommendResponse.FromString)
        answer = call(request, timeout=20)
    return answer.record.state_version, len(answer.recommend.items)


def own_network():
    """Nothing but a loopback of its own, so that the image's ports are free."""
    clone_newnet, siocsifflags, up_and_running = 0x40000000, 0x8914, 0x41
    if ctypes.CDLL(None, use_errno=True).unshare(clone_newnet) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    with socket.socket() as s:
        fcntl.ioctl(s, siocsifflags, struct.pack("16sh14x", b"lo", up_and_running))


def check_router(image):
    folder = FOLDER / "router"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, text in (("listen.conf", "listen 8443 http2;\n"), ("tokens.conf", "default 1;\n"),
                       ("servers.conf", "server 127.0.0.1:50051 max_fails=0;\n"),
                       ("any.conf", "server 127.0.0.1:50051;\n"), ("transport.conf", "set $transport grpc;\n")):
        (folder / name).write_text(text)
    shutil.copy(ROOT / "deploy/k8s/base/router/nginx.conf", folder)
    router = Container(image, mounts={"/etc/tim4rec/router": (folder, False), "/tmp": (FOLDER / "tmp", True)})
    router.wait_until_healthy()
    check(True, "router: healthy by the image's own check, with a read-only root")
    check(router.stop()[0] == 0, "router: ends with 0 after SIGTERM")


def main():
    images = build_all()
    own_network()
    for name in ("server", "router", "batch"):
        check_files(images[name])
    check_server(images["server"], images["batch"])
    check_router(images["router"])
    print("the Dockerfile builds and runs")


if __name__ == "__main__":
    main()
