"""A real cluster of `flotilla` processes on loopback, bootstrapped with the CLI as an operator would."""

import contextlib
import itertools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import aiohttp
from media import KEY, SECRET

ROOT = pathlib.Path(__file__).resolve().parents[3]
CLUSTER_SECRET = "interop cluster secret, long enough"
ADMIN_TOKEN = "interop admin token"


def binary():
    """The binary under test: FLOTILLA_BIN, or the one of the development profile."""
    chosen = os.environ.get("FLOTILLA_BIN")
    if chosen:
        return chosen
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return str(target / "debug" / "flotilla")


# Below the ports that the system gives to outgoing connections, which could take one before its node has it.
_ports = itertools.cycle(range(12_000, 32_000))
for _ in range(os.getpid() % 20_000):
    next(_ports)


def free_port(kind=socket.SOCK_STREAM):
    for port in _ports:
        with socket.socket(socket.AF_INET, kind) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Node:
    """One process and its configuration."""

    def __init__(self, number, folder):
        self.number = number
        self.folder = folder / f"n{number}"
        self.folder.mkdir(parents=True)
        self.config = self.folder / "flotilla.yaml"
        self.log = self.folder / "log.txt"
        self.port, self.cluster_port, self.admin_port = free_port(), free_port(), free_port()
        self.udp_port = free_port(socket.SOCK_DGRAM)
        self.process = None
        self.killed = False

    @property
    def cluster_address(self):
        return f"127.0.0.1:{self.cluster_port}"

    @property
    def admin_address(self):
        return f"127.0.0.1:{self.admin_port}"

    def write_config(self, seeds, settings):
        config = {
            "port": self.port,
            "bind_addresses": ["127.0.0.1"],
            "keys": {KEY: SECRET},
            "region": "local",
            "rtc": {"udp_port": self.udp_port, "node_ip": "127.0.0.1"},
            "cluster": {
                # The machine may be small and busy: silence is no sign of death here.
                "failure_detection": "2s",
                "name": "interop",
                "node_id": self.number,
                "data_dir": str(self.folder / "data"),
                "bind": self.cluster_address,
                "advertise": self.cluster_address,
                "secret": CLUSTER_SECRET,
                "seeds": seeds,
            },
            "admin": {"bind": self.admin_address, "token": ADMIN_TOKEN},
            **settings,
        }
        # JSON is YAML.
        self.config.write_text(json.dumps(config, indent=1))

    def start(self):
        self.killed = False
        environment = dict(os.environ, RUST_BACKTRACE="1")
        environment.setdefault("RUST_LOG", "info")
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [binary(), "start", "--config", str(self.config)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def kill(self):
        """SIGKILL: what a crash looks like to everybody else."""
        self.killed = True
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"node {self.number} did not stop within 15 s of SIGTERM") from None

    def healthy(self):
        if self.process.poll() is not None:
            raise AssertionError(f"node {self.number} ended: {self.log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=1) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


class Cluster:
    """Some nodes of one region; numbers start at 1."""

    def __init__(self, nodes=3, settings=None):
        self.settings = settings or {}
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="flotilla-interop-"))
        self.nodes = [Node(number + 1, self.folder) for number in range(nodes)]

    def node(self, number):
        return self.nodes[number - 1]

    def url(self, number):
        return f"http://127.0.0.1:{self.node(number).port}"

    def cli(self, *arguments, check=True):
        done = subprocess.run(
            [binary(), *arguments], capture_output=True, text=True, timeout=30, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(f"flotilla {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done

    def start(self):
        """Bootstraps: one `cluster init`, a `cluster join` for each further node, then they run."""
        first = self.node(1)
        for node in self.nodes:
            node.write_config([first.cluster_address] if node is not first else [], self.settings)
        self.cli("cluster", "init", "--config", str(first.config))
        first.start()
        self.wait(first.healthy, 20, "node 1 is healthy")
        for node in self.nodes[1:]:
            self.cli(
                "cluster", "join", "--config", str(node.config), "--peer", first.cluster_address
            )
            node.start()
        for node in self.nodes:
            self.wait(node.healthy, 20, f"node {node.number} is healthy")
        self.wait(
            lambda: sum(node["role"] == "voter" for node in self.status()["nodes"]) == len(self.nodes),
            20,
            "every node is a voter",
        )

    def stop(self):
        failures = []
        for node in self.nodes:
            try:
                node.stop()
            except AssertionError as failure:
                failures.append(str(failure))
        assert not failures, failures

    def check_logs(self):
        """No panic and no error line in any node's log; the folder goes away only then."""
        for node in self.nodes:
            text = node.log.read_text()
            for line in text.splitlines():
                assert "panicked" not in line, f"node {node.number}: {line}"
                assert " ERROR " not in line, f"node {node.number}: {line}"
        shutil.rmtree(self.folder)

    @staticmethod
    def wait(condition, seconds, what):
        deadline = time.monotonic() + seconds
        last = None
        while time.monotonic() < deadline:
            try:
                if condition():
                    return
            except (AssertionError, KeyError) as failure:
                last = failure
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s: {what} ({last})")

    def admin(self, *arguments, node=None):
        """`flotilla admin … --json` against a living node."""
        alive = [n for n in self.nodes if n.process and n.process.poll() is None]
        asked = self.node(node) if node else alive[0]
        done = self.cli(
            "admin", "--address", asked.admin_address, "--token", ADMIN_TOKEN, "--json", *arguments
        )
        return json.loads(done.stdout)

    def status(self, node=None):
        return self.admin("status", node=node)

    def leader(self):
        """Number of the Raft leader, as a living node knows it."""
        return int(self.status()["leader"])

    async def get(self, number, path):
        async with aiohttp.ClientSession() as session:
            async with session.get(self.url(number) + path) as answer:
                return answer.status, answer.headers, await answer.text()

    async def post(self, number, path, body, jwt):
        headers = {"Authorization": f"Bearer {jwt}"}
        async with aiohttp.ClientSession() as session:
            async with session.post(self.url(number) + path, json=body, headers=headers) as answer:
                return answer.status, await answer.json()


