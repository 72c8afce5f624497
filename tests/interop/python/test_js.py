"""LiveKit's JavaScript SDKs: each file of the neighbouring folder runs under node's own test runner."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

from cluster import ROOT, binary, free_port

JS = pathlib.Path(__file__).resolve().parent.parent / "js"


def run(name, seconds, **environment):
    done = subprocess.run(
        ["node", "--test", "--test-force-exit", "--test-reporter=spec", name],
        cwd=JS,
        env=dict(os.environ, **environment),
        timeout=seconds,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0, f"{name} failed"
    assert re.search(r"pass [1-9]", done.stdout), f"{name} ran no test"


def test_rtc_node(cluster):
    nodes = [{"number": n, "url": cluster.url(n)} for n in (1, 2, 3)]
    run("rtc_node.test.mjs", 180, FLOTILLA_NODES=json.dumps(nodes))


def test_demo_page(tmp_path):
    port = free_port()
    log = (tmp_path / "demo.txt").open("w+")
    started = time.monotonic()
    demo = subprocess.Popen(
        [binary(), "demo", "--port", str(port), "--data-dir", str(tmp_path / "data")],
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        url = None
        while url is None:
            assert demo.poll() is None and time.monotonic() < started + 15, (
                f"no URL within 15 s: {pathlib.Path(log.name).read_text()}"
            )
            found = re.search(r"https?://\S+/demo/?\S*", pathlib.Path(log.name).read_text())
            url = found and found.group(0)
            time.sleep(0.05)
        print(f"URL after {time.monotonic() - started:.1f} s")
        run(
            "demo_page.test.mjs",
            400,
            FLOTILLA_DEMO_URL=url,
            FLOTILLA_ARTEFACTS=str(ROOT / "artifacts"),
            FLOTILLA_PYTHON=sys.executable,
            FLOTILLA_GUEST=str(pathlib.Path(__file__).resolve().parent / "guest.py"),
        )
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(20)
