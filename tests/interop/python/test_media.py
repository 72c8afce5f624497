"""Sound and pictures between nodes, with the Python SDK."""

import asyncio

import pytest
from livekit import rtc
from media import Client, together, until

pytestmark = pytest.mark.usefixtures("cluster")


def test_two_nodes_hear_each_other(cluster, room):
    async def scenario():
        one = Client(cluster.url(1), room, "one")
        two = Client(cluster.url(2), room, "two")
        async with together(one, two):
            await one.publish_tone(440)
            await two.publish_tone(880)
            await until(lambda: two.hears("one", 440), 15, "two hears one's 440 Hz")
            await until(lambda: one.hears("two", 880), 15, "one hears two's 880 Hz")

    asyncio.run(scenario())


@pytest.mark.parametrize("single", [True, False], ids=["v1", "v0"])
def test_three_nodes_see_and_hear_everybody(cluster, room, single):
    async def scenario():
        tones = {"one": 440, "two": 660, "three": 990}
        clients = [Client(cluster.url(n + 1), room, name) for n, name in enumerate(tones)]
        async with together(*clients, single=single):
            for client in clients:
                await client.publish_tone(tones[client.identity])
                await client.publish_counter()
            for client in clients:
                for name, hertz in tones.items():
                    if name == client.identity:
                        continue
                    label = f"{client.identity} and {name}"
                    await until(lambda: client.hears(name, hertz), 20, f"sound between {label}")
                    await until(lambda: client.sees_motion(name), 20, f"pictures between {label}")

    asyncio.run(scenario())


def test_v0_and_v1_clients_share_a_room(cluster, room):
    async def scenario():
        old = await Client(cluster.url(1), room, "old").connect(single=False)
        new = await Client(cluster.url(2), room, "new").connect(single=True)
        try:
            await old.publish_tone(500)
            await old.publish_counter()
            await new.publish_tone(700)
            await new.publish_counter()
            await until(lambda: new.hears("old", 500) and new.sees_motion("old"), 20, "new gets old")
            await until(lambda: old.hears("new", 700) and old.sees_motion("new"), 20, "old gets new")
        finally:
            await asyncio.gather(old.close(), new.close())

    asyncio.run(scenario())


def test_late_joiner_gets_tracks_at_once(cluster, room):
    async def scenario():
        early = Client(cluster.url(1), room, "early")
        async with together(early):
            await early.publish_tone(600)
            await early.publish_counter()
            late = Client(cluster.url(3), room, "late")
            async with together(late):
                await until(lambda: late.hears("early", 600), 10, "late hears early")
                await until(lambda: late.sees_motion("early"), 10, "late sees early")

    asyncio.run(scenario())


def test_h264_crosses_nodes(cluster, room):
    async def scenario():
        one = Client(cluster.url(1), room, "one")
        two = Client(cluster.url(2), room, "two")
        async with together(one, two):
            publication = await one.publish_counter(codec=rtc.VideoCodec.H264)
            await until(lambda: two.sees_motion("one"), 20, "two sees one's H.264 pictures")
            seen = two.room.remote_participants["one"].track_publications[publication.sid]
            assert seen.mime_type.lower() == "video/h264"

    asyncio.run(scenario())


def test_layer_change_changes_the_picture(cluster, room):
    async def scenario():
        one = Client(cluster.url(1), room, "one")
        two = Client(cluster.url(2), room, "two")
        async with together(one, two):
            await one.publish_counter(960, 540, simulcast=True)
            await until(lambda: two.sizes.get("one") == (960, 540), 20, "the full picture arrives")
            (publication,) = two.room.remote_participants["one"].track_publications.values()
            publication.set_video_quality(rtc.VideoQuality.VIDEO_QUALITY_LOW)
            await until(lambda: two.sizes["one"][0] <= 320, 15, "the small picture arrives")
            publication.set_video_quality(rtc.VideoQuality.VIDEO_QUALITY_HIGH)
            await until(lambda: two.sizes["one"] == (960, 540), 20, "the full picture is back")

    asyncio.run(scenario())


def test_selective_subscription(cluster, room):
    async def scenario():
        one = Client(cluster.url(1), room, "one")
        two = Client(cluster.url(2), room, "two")
        await one.connect()
        await two.connect(auto_subscribe=False)
        try:
            publication = await one.publish_tone(440)
            await until(lambda: "one" in two.room.remote_participants, 5, "two knows of one")
            others = two.room.remote_participants["one"].track_publications
            await until(lambda: publication.sid in others, 5, "two knows of the track")
            assert not others[publication.sid].subscribed
            others[publication.sid].set_subscribed(True)
            await until(lambda: two.hears("one", 440), 10, "two hears one once it asks for it")
            assert cluster.admin("routes", room)["routes"], "the track's route stands in the log"
            others[publication.sid].set_subscribed(False)

            def no_route():
                return not cluster.admin("routes", room)["routes"]

            await until(no_route, 10, "the relay that nobody needs is gone")
        finally:
            await asyncio.gather(one.close(), two.close())

    asyncio.run(scenario())


def test_mute_reaches_the_other_node(cluster, room):
    async def scenario():
        one = Client(cluster.url(1), room, "one")
        two = Client(cluster.url(2), room, "two")
        async with together(one, two):
            publication = await one.publish_tone(440)
            await until(lambda: two.hears("one", 440), 15, "two hears one")
            publication.track.mute()
            await until(lambda: two.named("track_muted"), 5, "two is told of the mute")
            publication.track.unmute()
            await until(lambda: two.named("track_unmuted"), 5, "two is told of the unmute")
            heard = len(two.pitches["one"])
            await until(
                lambda: len(two.pitches["one"]) > heard + 2 and two.hears("one", 440), 10, "sound is back"
            )

    asyncio.run(scenario())


def test_unpublish_reaches_the_other_node(cluster, room):
    async def scenario():
        one = Client(cluster.url(1), room, "one")
        two = Client(cluster.url(2), room, "two")
        async with together(one, two):
            publication = await one.publish_tone(440)
            await until(lambda: two.hears("one", 440), 15, "two hears one")
            await one.room.local_participant.unpublish_track(publication.sid)
            await until(lambda: two.named("track_unpublished"), 5, "two is told of it")
            again = await one.publish_tone(550)
            assert again.sid != publication.sid
            await until(lambda: two.hears("one", 550), 15, "two hears the new track")

    asyncio.run(scenario())


def test_speakers_are_named_on_every_node(cluster, room):
    async def scenario():
        one = Client(cluster.url(1), room, "one")
        two = Client(cluster.url(2), room, "two")
        async with together(one, two):
            await one.publish_tone(440)

            def named():
                return any(
                    any(speaker.identity == "one" for speaker in speakers)
                    for (speakers,) in two.named("active_speakers_changed")
                )

            await until(named, 15, "two is told that one speaks")

    asyncio.run(scenario())
