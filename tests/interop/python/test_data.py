"""Data packets between nodes, with the Python SDK."""

import asyncio
import struct

from media import Client, together, until

COUNT = 10_000


def test_ten_thousand_reliable_messages_in_order_once_each(cluster, room):
    async def scenario():
        one = Client(cluster.url(1), room, "one")
        two = Client(cluster.url(2), room, "two")
        three = Client(cluster.url(3), room, "three")
        async with together(one, two, three):
            for client in (two, three):
                await until(lambda: "one" in client.room.remote_participants, 5, "one is known")
            for count in range(COUNT):
                payload = struct.pack(">I", count) + b"x" * 60
                await one.room.local_participant.publish_data(payload, reliable=True, topic="count")
            for client in (two, three):
                await until(lambda: len(client.data) >= COUNT, 60, f"{client.identity} has them all")
                got = [struct.unpack(">I", packet.data[:4])[0] for packet in client.data]
                assert got == list(range(COUNT)), "in order, once each"
                assert {packet.participant.identity for packet in client.data} == {"one"}
                assert {packet.topic for packet in client.data} == {"count"}
            assert not one.data, "the sender does not hear itself"

    asyncio.run(scenario())


def test_data_for_one_reaches_only_that_one(cluster, room):
    async def scenario():
        names = ["one", "two", "three"]
        clients = [Client(cluster.url(n + 1), room, name) for n, name in enumerate(names)]
        one, two, three = clients
        async with together(*clients):
            await until(lambda: len(one.room.remote_participants) == 2, 5, "all are known")
            local = one.room.local_participant
            await local.publish_data(b"secret", destination_identities=["three"])
            await local.publish_data(b"public")
            await until(lambda: len(three.data) == 2, 10, "three got both")
            await until(lambda: len(two.data) == 1, 10, "two got one")
            assert [packet.data for packet in three.data] == [b"secret", b"public"]
            assert [packet.data for packet in two.data] == [b"public"]

    asyncio.run(scenario())


def test_lossy_data_arrives(cluster, room):
    async def scenario():
        one = Client(cluster.url(1), room, "one")
        two = Client(cluster.url(3), room, "two")
        async with together(one, two):
            await until(lambda: "two" in one.room.remote_participants, 5, "two is known")

            async def send():
                for count in range(2000):
                    await one.room.local_participant.publish_data(str(count).encode(), reliable=False)
                    await asyncio.sleep(0.005)

            sending = asyncio.create_task(send())
            await until(lambda: len(two.data) >= 100, 20, "lossy packets arrive")
            sending.cancel()
            got = [int(packet.data) for packet in two.data]
            assert len(got) == len(set(got)), "none twice"

    asyncio.run(scenario())


def test_text_streams_and_rpc_cross_nodes(cluster, room):
    async def scenario():
        one = Client(cluster.url(1), room, "one")
        two = Client(cluster.url(2), room, "two")
        async with together(one, two):
            texts = []

            def handler(reader, identity):
                async def read():
                    texts.append((identity, await reader.read_all()))

                two.tasks.append(asyncio.create_task(read()))

            two.room.register_text_stream_handler("greeting", handler)
            await until(lambda: "two" in one.room.remote_participants, 5, "two is known")
            await one.room.local_participant.send_text("ahoy " * 10_000, topic="greeting")
            await until(lambda: texts == [("one", "ahoy " * 10_000)], 15, "the text arrives whole")

            @two.room.local_participant.register_rpc_method("double")
            async def double(data):
                return str(int(data.payload) * 2)

            answer = await one.room.local_participant.perform_rpc(
                destination_identity="two", method="double", payload="21"
            )
            assert answer == "42"

    asyncio.run(scenario())
