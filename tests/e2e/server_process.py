"""Starts tim4rec-server for tests in Python, as server_process.h does for those in C++."""
import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY_MODEL = ROOT / "tests" / "e2e" / "testdata" / "tiny_model"  # items "item1" to "item60"


class ServerProcess:
    """A running server on ports of its own; `address` and `metrics` are HOST:PORT."""

    def __init__(self, build, data, *flags, listen="127.0.0.1:0", env=None, model=TINY_MODEL):
        """Raises RuntimeError with the server's errors if it does not come up."""
        self._errors = tempfile.TemporaryFile("w+")
        command = [str(build / "bin" / "tim4rec-server"), "--model", str(model), "--data", str(data),
                   "--listen", listen, "--metrics-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._errors, text=True,
                                        env={**os.environ, **(env or {})})
        said = {}
        for line in self.process.stdout:
            what, _, where = line.strip().rpartition(" on ")
            said[what] = where
            if what == "metrics":
                break
        else:
            self.process.wait()
            raise RuntimeError(f"tim4rec-server ended with {self.process.returncode}: {self.errors()}")
        self.address, self.admin, self.metrics = said["listening"], said["admin"], said["metrics"]

    def errors(self):
        self._errors.seek(0)
        return self._errors.read()

    def scrape(self):
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as answer:
            return answer.read().decode()

    def kill(self):
        self._end(signal.SIGKILL)

    def stop(self):
        """SIGTERM; returns the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number):
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.stdout.close()
        return self.process.wait(timeout=60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.kill()
        self._errors.close()


def secured(folder, *tokens):
    """Makes a CA, certificates of a server (localhost) and of a client in `folder`, `ca`, `server` and `client` with .crt and
    .key, and a configuration that asks for both; `tokens`: lines of the tokens file. Returns the configuration's path."""
    def certificate(name, *signed):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                        "-days", "2", "-subj", f"/CN={name}", "-keyout", f"{folder}/{name}.key", "-out",
                        f"{folder}/{name}.crt", *signed], check=True, capture_output=True)
    certificate("ca")
    for name in ("server", "client"):
        certificate(name, "-CA", f"{folder}/ca.crt", "-CAkey", f"{folder}/ca.key", "-addext",
                    "basicConstraints=critical,CA:false", "-addext", "subjectAltName=DNS:localhost")
    path = pathlib.Path(folder, "tokens")
    path.touch(0o600)
    path.write_text("".join(f"{line}\n" for line in tokens))
    config = pathlib.Path(folder, "server.yaml")
    config.write_text(json.dumps({
        "tls": {"certificate": f"{folder}/server.crt", "key": f"{folder}/server.key", "client_ca": f"{folder}/ca.crt"},
        "auth": {"tokens_file": str(path)}}))
    return config


def free_port():
    """A port that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
