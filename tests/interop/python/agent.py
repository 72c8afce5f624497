"""A long-running participant on the Python SDK, driven over JSON lines; `jepsen` starts and judges it.

usage: agent.py
stdin   {"do": "join", "url": …, "token": …, "hears": null or [IDENTITY, …], "pause": MS} | {"do": "leave"} | {"do": "quit"}
stdout  what it sees, each with the time of CLOCK_MONOTONIC in milliseconds; batches four times a second

The sound it sends is a code: eight tones of 20 ms in a fixed order. A receiver notes the time whenever the
code moves on. What a jitter buffer invents to bridge a hole repeats the last tone, so it is not taken for
sound. Pictures carry a counter and are noted when it changes.
"""

import asyncio
import contextlib
import json
import sys
import time

import numpy
from livekit import rtc
from media import COUNTER_BITS, SAMPLE_RATE, draw_counter

TONES = [400 + 200 * index for index in range(8)]
SLOT_MS = 20
WINDOW = SAMPLE_RATE // 100
LOUD = 300
FRAME_MS = 100
WIDTH, HEIGHT, FPS = 160, 120, 10
FLUSH_INTERVAL = 0.25
EVENTS = [
    "participant_connected",
    "participant_disconnected",
    "track_published",
    "track_unpublished",
    "track_subscribed",
    "track_unsubscribed",
    "local_track_republished",
    "reconnecting",
    "reconnected",
    "disconnected",
    "connection_state_changed",
]

_time = numpy.arange(WINDOW) / SAMPLE_RATE
BASIS = numpy.stack([numpy.exp(-2j * numpy.pi * tone * _time) for tone in TONES], axis=1).astype(numpy.complex64)


def now_ms():
    return time.monotonic() * 1000


class Code:
    """Follows the order of tones in what arrives from one publisher."""

    def __init__(self):
        self.last = None

    def moves(self, samples, at):
        """The times at which the code moved on, in samples that were complete at `at`."""
        windows = samples.reshape(-1, WINDOW)
        loud = numpy.sqrt((windows**2).mean(axis=1)) >= LOUD
        tones = numpy.abs(windows @ BASIS).argmax(axis=1)
        moved = []
        for index, (is_loud, tone) in enumerate(zip(loud.tolist(), tones.tolist(), strict=True)):
            before, self.last = self.last, tone if is_loud else None
            if is_loud and before is not None and (tone - before) % len(TONES) in (1, 2):
                moved.append(round(at - 10 * (len(windows) - 1 - index), 1))
        return moved


def read_counter(frame):
    """As in `media`, with fewer steps: an agent reads hundreds of pictures a second."""
    i420 = frame if frame.type == rtc.VideoBufferType.I420 else frame.convert(rtc.VideoBufferType.I420)
    width, height = i420.width, i420.height
    luma = numpy.frombuffer(i420.data, dtype=numpy.uint8)[: width * height].reshape(height, width)
    columns = luma[height * 2 // 5 : height * 3 // 5 : 4].mean(axis=0)
    centres = ((numpy.arange(COUNTER_BITS) + 0.5) * (width / COUNTER_BITS)).astype(int)
    levels = (columns[centres - 1] + columns[centres] + columns[centres + 1]) / 3
    if ((levels > 90) & (levels < 160)).any():
        return None
    return int("".join("1" if level > 128 else "0" for level in levels.tolist()), 2)


class Agent:
    """One participant, for as long as the process lives."""

    def __init__(self):
        self.room = None
        self.tasks = []
        self.stamps = {}
        self.data = {}
        self.sent, self.unsent = ([], []), []
        self.count = 0

    def say(self, **line):
        sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
        sys.stdout.flush()

    def event(self, name, **more):
        self.say(kind="event", at=round(now_ms(), 2), name=name, **more)

    async def join(self, url, token, hears, pause):
        room = self.room = rtc.Room()
        for name in EVENTS:
            room.on(name, lambda *args, name=name: self.seen(name, args))
        room.on("track_subscribed", self.subscribed)
        if hears is not None:
            room.on("track_published", lambda publication, who: self.choose(publication, who, hears))
            room.on("reconnected", lambda: self.choose_all(room, hears))
        room.on("data_received", self.received)
        try:
            await room.connect(url, token, rtc.RoomOptions(auto_subscribe=hears is None))
            if hears is not None:
                self.choose_all(room, hears)
            local = room.local_participant
            sound = rtc.AudioSource(SAMPLE_RATE, 1)
            await local.publish_track(
                rtc.LocalAudioTrack.create_audio_track("code", sound),
                rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE, dtx=False, red=False),
            )
            picture = rtc.VideoSource(WIDTH, HEIGHT)
            await local.publish_track(
                rtc.LocalVideoTrack.create_video_track("counter", picture),
                rtc.TrackPublishOptions(
                    source=rtc.TrackSource.SOURCE_CAMERA, simulcast=False, video_codec=rtc.VideoCodec.VP8
                ),
            )
        except Exception as failure:
            self.event("join_failed", text=repr(failure))
            return
        self.tasks += [
            asyncio.create_task(self.speak(sound)),
            asyncio.create_task(self.paint(picture)),
            asyncio.create_task(self.number_messages(room, pause / 1000)),
        ]
        self.event("joined", sid=local.sid)

    async def leave(self):
        tasks, self.tasks = self.tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.room:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self.room.disconnect(), 5)
        self.room = None
        self.event("left")

    def choose_all(self, room, hears):
        for who in room.remote_participants.values():
            for publication in who.track_publications.values():
                self.choose(publication, who, hears)

    @staticmethod
    def choose(publication, who, hears):
        # As it stands, not as it is remembered: a session that begins anew has forgotten it.
        if who.identity in hears and publication.track is None:
            publication.set_subscribed(True)

    def seen(self, name, args):
        who = next((a.identity for a in args if isinstance(a, rtc.RemoteParticipant)), None)
        text = next((str(a) for a in args if isinstance(a, (int, str))), None)
        sid = self.room.local_participant.sid if name == "reconnected" else None
        self.event(name, who=who, text=text, sid=sid)

    async def speak(self, source):
        cycle = numpy.concatenate(
            [
                numpy.sin(2 * numpy.pi * tone * numpy.arange(SLOT_MS * SAMPLE_RATE // 1000) / SAMPLE_RATE)
                for tone in TONES
            ]
        )
        # A whole turn at a time: each frame is a call across the SDK, which costs more than the sound.
        turn = (cycle * 12_000).astype(numpy.int16)
        while True:
            await source.capture_frame(rtc.AudioFrame(turn.tobytes(), SAMPLE_RATE, 1, len(turn)))

    async def paint(self, source):
        begun, count = time.monotonic(), 0
        while True:
            source.capture_frame(draw_counter(count % (1 << COUNTER_BITS), WIDTH, HEIGHT))
            count += 1
            await asyncio.sleep(max(0.0, begun + count / FPS - time.monotonic()))

    async def number_messages(self, room, pause):
        while True:
            number, self.count = self.count, self.count + 1
            at = now_ms()
            try:
                await room.local_participant.publish_data(str(number), reliable=True, topic="count")
                self.sent[0].append(number)
                self.sent[1].append(round(at, 1))
            except Exception:
                self.unsent.append(number)
            await asyncio.sleep(pause)

    def subscribed(self, track, _publication, participant):
        follow = self.listen if track.kind == rtc.TrackKind.KIND_AUDIO else self.watch
        self.tasks.append(asyncio.create_task(follow(track, participant.identity)))

    async def listen(self, track, identity):
        code = Code()
        stamps = self.stamps.setdefault(("audio", identity), [])
        # Sound comes out of the jitter buffer at a steady pace, so long frames cost no precision.
        stream = rtc.AudioStream(track, sample_rate=SAMPLE_RATE, num_channels=1, frame_size_ms=FRAME_MS)
        try:
            async for event in stream:
                samples = numpy.frombuffer(event.frame.data, dtype=numpy.int16).astype(numpy.float32)
                stamps.extend(code.moves(samples, now_ms()))
        finally:
            await stream.aclose()

    async def watch(self, track, identity):
        stamps = self.stamps.setdefault(("video", identity), [])
        last = None
        stream = rtc.VideoStream(track)
        try:
            async for event in stream:
                count = read_counter(event.frame)
                if count is not None and count != last:
                    last = count
                    stamps.append(round(now_ms(), 1))
        finally:
            await stream.aclose()

    def received(self, packet):
        if packet.topic == "count" and packet.participant:
            numbers, times = self.data.setdefault(packet.participant.identity, ([], []))
            numbers.append(int(packet.data))
            times.append(round(now_ms(), 1))

    def flush(self):
        for (media, identity), stamps in self.stamps.items():
            if stamps:
                self.say(kind="stamps", media=media, sender=identity, at=stamps)
                stamps.clear()
        for identity, (numbers, times) in self.data.items():
            if numbers:
                self.say(kind="data", sender=identity, n=numbers, at=times)
                numbers.clear()
                times.clear()
        if self.sent[0] or self.unsent:
            self.say(kind="sent", n=self.sent[0], at=self.sent[1], failed=self.unsent)
            self.sent, self.unsent = ([], []), []


async def main():
    agent = Agent()

    async def flushing():
        while True:
            await asyncio.sleep(FLUSH_INTERVAL)
            agent.flush()

    flusher = asyncio.create_task(flushing())
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    agent.event("ready")
    async for line in reader:
        order = json.loads(line)
        if order["do"] == "join":
            await agent.join(order["url"], order["token"], order["hears"], order["pause"])
        elif order["do"] == "leave":
            await agent.leave()
        else:
            break
    flusher.cancel()
    await agent.leave()
    agent.flush()


if __name__ == "__main__":
    asyncio.run(main())
