"""RoomService through LiveKit's own server SDK, asked of a node that does not serve the participants."""

import asyncio

import pytest
from livekit import api, rtc
from media import KEY, SECRET, Client, together, until


def with_api(cluster, node, scenario):
    async def run():
        client = api.LiveKitAPI(cluster.url(node), KEY, SECRET)
        try:
            await scenario(client)
        finally:
            await client.aclose()

    asyncio.run(run())


def test_rooms_are_created_listed_changed_and_deleted(cluster, room):
    async def scenario(client):
        made = await client.room.create_room(
            api.CreateRoomRequest(name=room, empty_timeout=77, max_participants=9, metadata="deck")
        )
        assert made.sid.startswith("RM_")
        assert (made.name, made.empty_timeout, made.max_participants, made.metadata) == (room, 77, 9, "deck")
        again = await client.room.create_room(api.CreateRoomRequest(name=room))
        assert again.sid == made.sid
        listed = await client.room.list_rooms(api.ListRoomsRequest(names=[room]))
        assert [found.sid for found in listed.rooms] == [made.sid]
        changed = await client.room.update_room_metadata(
            api.UpdateRoomMetadataRequest(room=room, metadata="hold")
        )
        assert changed.metadata == "hold"
        await client.room.delete_room(api.DeleteRoomRequest(room=room))
        listed = await client.room.list_rooms(api.ListRoomsRequest(names=[room]))
        assert not listed.rooms

    with_api(cluster, 3, scenario)


def test_participants_are_listed_changed_muted_and_removed(cluster, room):
    async def scenario(client):
        one = Client(cluster.url(1), room, "one")
        two = Client(cluster.url(2), room, "two")
        async with together(one, two):
            publication = await one.publish_tone(440)
            await until(lambda: two.hears("one", 440), 15, "two hears one")
            listed = await client.room.list_participants(api.ListParticipantsRequest(room=room))
            assert {found.identity for found in listed.participants} == {"one", "two"}
            found = await client.room.get_participant(
                api.RoomParticipantIdentity(room=room, identity="one")
            )
            assert [track.sid for track in found.tracks] == [publication.sid]

            await client.room.update_participant(
                api.UpdateParticipantRequest(
                    room=room, identity="one", metadata="mate", name="Starbuck", attributes={"a": "b"}
                )
            )
            seen = two.room.remote_participants["one"]
            await until(
                lambda: (seen.metadata, seen.name, seen.attributes) == ("mate", "Starbuck", {"a": "b"}),
                5,
                "the change reaches two",
            )

            muted = await client.room.mute_published_track(
                api.MuteRoomTrackRequest(room=room, identity="one", track_sid=publication.sid, muted=True)
            )
            assert muted.track.muted
            await until(lambda: two.named("track_muted"), 5, "two is told of the mute")

            await client.room.send_data(
                api.SendDataRequest(room=room, data=b"ahoy", kind=0, topic="bridge")
            )
            for who in (one, two):
                await until(lambda: [p.data for p in who.data] == [b"ahoy"], 5, "data of the server")
                assert who.data[0].topic == "bridge" and who.data[0].participant is None

            await client.room.remove_participant(
                api.RoomParticipantIdentity(room=room, identity="one")
            )
            await until(lambda: one.named("disconnected"), 10, "one is sent away")
            ((reason,),) = one.named("disconnected")
            assert reason == rtc.DisconnectReason.PARTICIPANT_REMOVED
            await until(lambda: "one" not in two.room.remote_participants, 5, "two sees one leave")

    with_api(cluster, 3, scenario)


def test_permission_withdrawn_unpublishes(cluster, room):
    async def scenario(client):
        one = Client(cluster.url(1), room, "one")
        two = Client(cluster.url(2), room, "two")
        async with together(one, two):
            await one.publish_tone(440)
            await until(lambda: two.hears("one", 440), 15, "two hears one")
            await client.room.update_participant(
                api.UpdateParticipantRequest(
                    room=room,
                    identity="one",
                    permission=api.ParticipantPermission(can_subscribe=True, can_publish=False),
                )
            )
            await until(lambda: two.named("track_unpublished"), 10, "the track is gone")
            await until(lambda: not one.room.local_participant.permissions.can_publish, 5, "one is told")

    with_api(cluster, 2, scenario)


def test_subscriptions_can_be_changed_by_the_server(cluster, room):
    async def scenario(client):
        one = await Client(cluster.url(1), room, "one").connect()
        two = await Client(cluster.url(2), room, "two").connect(auto_subscribe=False)
        try:
            publication = await one.publish_tone(440)
            await until(lambda: "one" in two.room.remote_participants, 5, "one is known")
            await client.room.update_subscriptions(
                api.UpdateSubscriptionsRequest(
                    room=room, identity="two", track_sids=[publication.sid], subscribe=True
                )
            )
            await until(lambda: two.hears("one", 440), 15, "two hears one")
        finally:
            await asyncio.gather(one.close(), two.close())

    with_api(cluster, 3, scenario)


def test_deleting_a_room_sends_everybody_away(cluster, room):
    async def scenario(client):
        one = Client(cluster.url(1), room, "one")
        two = Client(cluster.url(2), room, "two")
        async with together(one, two):
            await client.room.delete_room(api.DeleteRoomRequest(room=room))
            for who in (one, two):
                await until(lambda: who.named("disconnected"), 10, "sent away")
                ((reason,),) = who.named("disconnected")
                assert reason == rtc.DisconnectReason.ROOM_DELETED

    with_api(cluster, 3, scenario)


def test_calls_without_the_grant_are_refused(cluster, room):
    async def scenario(client):
        await client.room.create_room(api.CreateRoomRequest(name=room))
        jwt = api.AccessToken(KEY, SECRET).with_identity("x").with_grants(api.VideoGrants()).to_jwt()
        for method in ("CreateRoom", "ListRooms", "DeleteRoom", "ListParticipants", "UpdateRoomMetadata"):
            status, body = await cluster.post(
                1, f"/twirp/livekit.RoomService/{method}", {"name": room, "room": room}, jwt
            )
            assert status in (401, 403), method
            assert body["code"] in ("unauthenticated", "permission_denied"), method
        listed = await client.room.list_rooms(api.ListRoomsRequest(names=[room]))
        assert len(listed.rooms) == 1
        with pytest.raises(api.TwirpError) as failure:
            await client.room.get_participant(api.RoomParticipantIdentity(room=room, identity="nobody"))
        assert failure.value.code == "not_found"

    with_api(cluster, 1, scenario)


def test_a_full_room_takes_nobody_more(cluster, room):
    async def scenario(client):
        await client.room.create_room(api.CreateRoomRequest(name=room, max_participants=1))
        one = Client(cluster.url(1), room, "one")
        async with together(one):
            two = Client(cluster.url(2), room, "two")
            with pytest.raises(rtc.ConnectError):
                await two.connect()
            listed = await client.room.list_participants(api.ListParticipantsRequest(room=room))
            assert [found.identity for found in listed.participants] == ["one"]

    with_api(cluster, 3, scenario)
