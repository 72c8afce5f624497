"""SIGKILL of the Raft leader while people join, publish and change metadata."""

import asyncio
import itertools
import time

import pytest
from cluster import Cluster
from livekit import api
from media import KEY, SECRET, Client, until


@pytest.fixture
def own_cluster():
    running = Cluster(nodes=3)
    running.start()
    yield running
    running.stop()
    running.check_logs()


class Prober:
    """Two clients on two nodes that stay; one sends a steady stream, the other notes each gap."""

    def __init__(self, sender, receiver):
        self.sender, self.receiver = sender, receiver
        self.arrivals = []

    async def run(self):
        count = 0
        local = self.sender.room.local_participant
        while True:
            await local.publish_data(str(count).encode(), reliable=False, topic="probe")
            count += 1
            await asyncio.sleep(0.005)


def test_nothing_acknowledged_is_lost_when_the_leader_dies(own_cluster, room):
    cluster = own_cluster

    async def scenario():
        leader = cluster.leader()
        others = [number for number in (1, 2, 3) if number != leader]
        sender = await Client(cluster.url(others[0]), room, "sender").connect()
        receiver = await Client(cluster.url(others[1]), room, "receiver").connect()
        arrivals = []
        receiver.room.on("data_received", lambda _packet: arrivals.append(time.monotonic()))
        await sender.publish_tone(440)
        await until(lambda: receiver.hears("sender", 440), 15, "sound flows between the others")
        prober = asyncio.create_task(Prober(sender, receiver).run())
        joined, written = {}, {}
        failures = []
        stop = asyncio.Event()
        clients = []

        async def joiner(number):
            for count in itertools.count():
                if stop.is_set():
                    return
                client = Client(cluster.url(number), room, f"joiner-{number}-{count}")
                try:
                    await client.connect()
                    joined[client.identity] = time.monotonic()
                    clients.append(client)
                except Exception as failure:
                    failures.append((time.monotonic(), repr(failure)))
                await asyncio.sleep(0.1)

        async def writer(number):
            async with api.LiveKitAPI(cluster.url(number), KEY, SECRET) as client:
                for count in itertools.count():
                    if stop.is_set():
                        return
                    name = f"{room}-w{number}-{count}"
                    try:
                        await client.room.create_room(
                            api.CreateRoomRequest(name=name, metadata=name, empty_timeout=600)
                        )
                        written[name] = time.monotonic()
                    except Exception as failure:
                        failures.append((time.monotonic(), repr(failure)))
                    await asyncio.sleep(0.02)

        tasks = [asyncio.create_task(f(n)) for f in (joiner, writer) for n in others]
        await until(lambda: len(joined) >= 6 and len(written) >= 20, 30, "joins and writes flow")
        killed_at = time.monotonic()
        cluster.node(leader).kill()

        def again():
            late = [at for at in list(joined.values()) if at > killed_at + 0.05]
            return min(late, default=None)

        first_join = await until(again, 10, "joins go on")
        await asyncio.sleep(3)
        stop.set()
        await asyncio.gather(*tasks)
        prober.cancel()

        gaps = [b - a for a, b in zip(arrivals, arrivals[1:]) if b > killed_at - 0.5]
        print(
            f"joins went on after {first_join - killed_at:.2f} s, longest gap of data between the others "
            f"{max(gaps) * 1000:.0f} ms, {len(joined)} joins, {len(written)} writes, {len(failures)} failed"
        )
        async with api.LiveKitAPI(cluster.url(others[0]), KEY, SECRET) as client:
            listed = await client.room.list_participants(api.ListParticipantsRequest(room=room))
            present = {found.identity for found in listed.participants}
            lost = set(joined) - present
            assert not lost, f"acknowledged joins lost: {sorted(lost)}"
            rooms = await client.room.list_rooms(api.ListRoomsRequest())
            lost = set(written) - {found.name for found in rooms.rooms if found.metadata == found.name}
            assert not lost, f"acknowledged writes lost: {sorted(lost)[:5]} of {len(lost)}"
        assert first_join - killed_at < 2.0, "joins go on within 2 s"
        await asyncio.gather(*(client.close() for client in clients + [sender, receiver]))
        cluster.node(leader).start()
        cluster.wait(cluster.node(leader).healthy, 20, "the killed node is back")

        def same():
            hashes = {
                (answer["applied"], answer["state_hash"])
                for answer in (cluster.admin("hash", node=number) for number in (1, 2, 3))
            }
            return len(hashes) == 1

        cluster.wait(same, 20, "all three have the same state")

    asyncio.run(scenario())
