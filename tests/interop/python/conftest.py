"""Fixtures: one three-node cluster for the whole run, a fresh room name for each test."""

import itertools
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))

from cluster import Cluster  # noqa: E402

_rooms = itertools.count(1)


@pytest.fixture(scope="session")
def cluster():
    running = Cluster(nodes=3)
    running.start()
    yield running
    running.stop()
    running.check_logs()


@pytest.fixture
def room(request):
    return f"{request.node.name[:40]}-{next(_rooms)}"
