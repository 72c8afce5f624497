"""People who stay while nodes come and go: rebalancing, drain, restart of every node, a lost majority."""

import asyncio
import contextlib
import time

import pytest
from balancer import Balancer
from cluster import Cluster
from livekit import api
from media import KEY, SECRET, Client, until


@contextlib.contextmanager
def started(settings=None):
    running = Cluster(nodes=3, settings=settings)
    running.start()
    yield running
    running.stop()
    running.check_logs()


@pytest.fixture
def plain_cluster():
    with started() as running:
        yield running


@pytest.fixture
def even_cluster():
    with started({"rebalance": {"participants_per_second": 1, "after": "1s"}}) as running:
        yield running


class Call:
    """People in one room behind a balancer; the first one sends a tone."""

    def __init__(self, cluster, room, ports):
        self.cluster, self.room = cluster, room
        self.balancer = Balancer(ports)
        self.people = []
        self.sids = {}

    async def begin(self, count):
        await self.balancer.start()
        self.people = [Client(self.balancer.url, self.room, f"p{number}") for number in range(count)]
        for person in self.people:
            await person.connect()
        self.sids = {person.identity: person.room.local_participant.sid for person in self.people}
        await self.people[0].publish_tone(440)
        await self.is_heard("sound flows")

    async def is_heard(self, what):
        for person in self.people[1:]:
            person.pitches.clear()
        for person in self.people[1:]:
            await until(lambda person=person: person.hears("p0", 440), 20, f"{what}, at {person.identity}")

    def homes(self, node=None):
        listed = self.cluster.admin("--consistency", "stale", "participants", self.room, node=node)["participants"]
        return {entry["identity"]: entry["home"] for entry in listed}

    async def homes_become(self, condition, seconds, what):
        """The balancer runs beside this, so nothing may stand still while the cluster is asked."""
        deadline = time.monotonic() + seconds
        while not condition(list((await asyncio.to_thread(self.homes)).values())):
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}: {self.homes()}"
            await asyncio.sleep(0.1)

    def nobody_was_disturbed(self):
        for person in self.people:
            assert person.room.local_participant.sid == self.sids[person.identity]
            for name in ("participant_disconnected", "track_unpublished", "disconnected"):
                assert person.named(name) == [], (person.identity, name)

    async def end(self):
        await asyncio.gather(*(person.close() for person in self.people))


def test_people_move_to_nodes_with_fewer(even_cluster, room):
    async def scenario():
        call = Call(even_cluster, room, [even_cluster.node(1).port])
        await call.begin(6)
        assert set(call.homes().values()) == {1}
        for number in (2, 3):
            call.balancer.add(even_cluster.node(number).port)

        def is_even(homes):
            return [homes.count(number) for number in (1, 2, 3)] == [2, 2, 2]

        await call.homes_become(is_even, 40, "each node has its share")
        await call.is_heard("sound goes on")
        call.nobody_was_disturbed()
        await call.end()

    asyncio.run(scenario())


def test_every_node_can_be_drained_and_restarted(plain_cluster, room):
    cluster = plain_cluster

    async def scenario():
        call = Call(cluster, room, [node.port for node in cluster.nodes])
        await call.begin(4)
        drained = call.homes()["p0"]
        config = str(cluster.node(drained).config)
        await asyncio.to_thread(cluster.cli, "node", "drain", "--config", config)
        await call.homes_become(lambda homes: drained not in homes, 20, "the drained node is empty")
        await call.is_heard("sound goes on after a drain")
        await asyncio.to_thread(cluster.cli, "node", "resume", "--config", config)
        for node in cluster.nodes:
            await asyncio.to_thread(node.stop)
            node.start()
            await asyncio.to_thread(cluster.wait, node.healthy, 20, f"node {node.number} is back")
            await call.is_heard(f"sound goes on after node {node.number}")
        assert set(call.homes()) == set(call.sids)
        call.nobody_was_disturbed()
        await call.end()

    asyncio.run(scenario())


def test_a_minority_goes_on_with_its_calls(plain_cluster, room):
    cluster = plain_cluster

    async def scenario():
        call = Call(cluster, room, [cluster.node(1).port])
        await call.begin(2)
        for number in (2, 3):
            cluster.node(number).kill()
        async with api.LiveKitAPI(cluster.url(1), KEY, SECRET) as client:

            async def is_refused():
                try:
                    request = api.CreateRoomRequest(name=f"{room}-late")
                    await asyncio.wait_for(client.room.create_room(request), 10)
                except (api.TwirpError, asyncio.TimeoutError) as failure:
                    return failure
                return None

            refusal = await is_refused()
            assert refusal is not None, "a minority cannot change anything"
            assert "unavailable" in str(refusal).lower() or isinstance(refusal, asyncio.TimeoutError), refusal
        await call.is_heard("sound goes on without a majority")
        assert set(call.homes(node=1)) == {"p0", "p1"}, "what was known is still told"
        for number in (2, 3):
            cluster.node(number).start()
        for number in (2, 3):
            await asyncio.to_thread(cluster.wait, cluster.node(number).healthy, 20, f"node {number} is back")
        async with api.LiveKitAPI(cluster.url(1), KEY, SECRET) as client:
            await client.room.create_room(api.CreateRoomRequest(name=f"{room}-later"))
        await call.is_heard("sound goes on with a majority")
        call.nobody_was_disturbed()
        await call.end()

    asyncio.run(scenario())
