"""Who is in the room and what is known of them, on every node."""

import asyncio

import pytest
from livekit import api, rtc
from media import KEY, SECRET, Client, together, until


def test_joins_and_leaves_are_seen_everywhere(cluster, room):
    async def scenario():
        names = ["one", "two", "three"]
        clients = [Client(cluster.url(n + 1), room, name) for n, name in enumerate(names)]
        async with together(*clients):
            for client in clients:
                others = set(names) - {client.identity}
                await until(lambda: set(client.room.remote_participants) == others, 5, "everybody is known")
            await clients[2].room.disconnect()
            for client in clients[:2]:
                await until(lambda: "three" not in client.room.remote_participants, 5, "three is gone")

    asyncio.run(scenario())


def test_metadata_name_and_attributes(cluster, room):
    async def scenario():
        one = Client(cluster.url(1), room, "one", can_update_own_metadata=True)
        two = Client(cluster.url(2), room, "two")
        async with together(one, two):
            await until(lambda: "one" in two.room.remote_participants, 5, "one is known")
            seen = two.room.remote_participants["one"]
            await one.room.local_participant.set_metadata("captain")
            await until(lambda: seen.metadata == "captain", 5, "metadata")
            await one.room.local_participant.set_name("Ahab")
            await until(lambda: seen.name == "Ahab", 5, "name")
            await one.room.local_participant.set_attributes({"ship": "Pequod", "leg": "ivory"})
            await until(lambda: seen.attributes == {"ship": "Pequod", "leg": "ivory"}, 5, "attributes")
            await one.room.local_participant.set_attributes({"leg": ""})
            await until(lambda: seen.attributes == {"ship": "Pequod"}, 5, "an empty value removes the key")

    asyncio.run(scenario())


def test_own_metadata_needs_the_grant(cluster, room):
    async def scenario():
        one = Client(cluster.url(1), room, "one", can_update_own_metadata=False)
        two = Client(cluster.url(2), room, "two")
        async with together(one, two):
            await until(lambda: "one" in two.room.remote_participants, 5, "one is known")
            # This SDK does not tell the application of the refusal; what others see tells.
            await one.room.local_participant.set_metadata("captain")
            publication = await one.publish_tone(440)
            seen = two.room.remote_participants["one"]
            await until(lambda: publication.sid in seen.track_publications, 10, "a later change")
            assert seen.metadata == "" and one.room.local_participant.metadata == ""

    asyncio.run(scenario())


def test_who_may_not_publish_cannot(cluster, room):
    async def scenario():
        one = Client(cluster.url(1), room, "one", can_publish=False)
        two = Client(cluster.url(2), room, "two")
        async with together(one, two):
            with pytest.raises(Exception):
                await asyncio.wait_for(one.publish_tone(440), 15)
            await until(lambda: "one" in two.room.remote_participants, 5, "one is known")
            assert not two.room.remote_participants["one"].track_publications

    asyncio.run(scenario())


def test_who_may_not_subscribe_gets_nothing(cluster, room):
    async def scenario():
        one = Client(cluster.url(1), room, "one")
        deaf = Client(cluster.url(2), room, "deaf", can_subscribe=False)
        three = Client(cluster.url(3), room, "three")
        async with together(one, deaf, three):
            await one.publish_tone(440)
            await until(lambda: three.hears("one", 440), 15, "three hears one")
            assert not deaf.pitches

    asyncio.run(scenario())


def test_publisher_chooses_its_subscribers(cluster, room):
    async def scenario():
        one = Client(cluster.url(1), room, "one")
        friend = Client(cluster.url(2), room, "friend")
        stranger = Client(cluster.url(3), room, "stranger")
        async with together(one, friend, stranger):
            one.room.local_participant.set_track_subscription_permissions(
                allow_all_participants=False,
                participant_permissions=[
                    rtc.ParticipantTrackPermission(participant_identity="friend", allow_all=True)
                ],
            )
            await one.publish_tone(440)
            await until(lambda: friend.hears("one", 440), 15, "the friend hears one")
            assert not stranger.pitches

    asyncio.run(scenario())


def test_hidden_participants_are_not_shown(cluster, room):
    async def scenario():
        one = Client(cluster.url(1), room, "one")
        ghost = Client(cluster.url(2), room, "ghost", hidden=True)
        three = Client(cluster.url(3), room, "three")
        async with together(one, ghost):
            await three.connect()
            try:
                await until(lambda: "three" in one.room.remote_participants, 5, "three is known")
                assert "ghost" not in one.room.remote_participants
                assert "ghost" not in three.room.remote_participants
                assert "one" in ghost.room.remote_participants
            finally:
                await three.close()

    asyncio.run(scenario())


def test_a_second_session_of_an_identity_replaces_the_first(cluster, room):
    async def scenario():
        first = Client(cluster.url(1), room, "one")
        watcher = Client(cluster.url(3), room, "watcher")
        async with together(first, watcher):
            second = Client(cluster.url(2), room, "one")
            async with together(second):
                await until(lambda: first.named("disconnected"), 10, "the first is sent away")
                ((reason,),) = first.named("disconnected")
                assert reason == rtc.DisconnectReason.DUPLICATE_IDENTITY
                await second.publish_tone(440)
                await until(lambda: watcher.hears("one", 440), 15, "the second is heard")
                assert set(watcher.room.remote_participants) == {"one"}

    asyncio.run(scenario())


def test_bad_tokens_are_refused(cluster, room):
    def jwt(secret=SECRET, key=KEY, ttl=None, grant_room=None, **grants):
        made = api.AccessToken(key, secret).with_identity("one")
        grants.setdefault("room_join", True)
        made = made.with_grants(api.VideoGrants(room=grant_room or room, **grants))
        if ttl is not None:
            made = made.with_ttl(ttl)
        return made.to_jwt()

    import datetime

    good = jwt()
    bad = {
        "wrong secret": jwt(secret="not the secret, but long enough to be one"),
        "unknown key": jwt(key="nokey"),
        "expired": jwt(ttl=datetime.timedelta(seconds=-3600)),
        "may not join": jwt(room_join=False),
        "tampered": good[:-6] + "AAAAAA",
        "not a token": "ahoy",
    }

    async def scenario():
        for what, text in bad.items():
            client = Client(cluster.url(1), room, "one", jwt=text)
            with pytest.raises(rtc.ConnectError):
                await client.connect()
            status, headers, body = await cluster.get(1, f"/rtc/validate?access_token={text}")
            assert status == 401, what
            assert headers.get("access-control-allow-origin") == "*", what
            assert body and len(body) < 200 and "<" not in body, what
        status, _, body = await cluster.get(1, f"/rtc/validate?access_token={good}")
        assert (status, body) == (200, "success")
        status, _, _ = await cluster.get(1, f"/rtc/v1/validate?access_token={good}")
        assert status in (200, 400)

    asyncio.run(scenario())
