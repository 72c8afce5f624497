"""Pictures and sounds that can be recognised after lossy codecs, and clients that send and check them.

A picture carries a frame counter in coarse black and white blocks, a sound is one pure tone: what arrives
tells who sent it and what is missing.
"""

import asyncio
import contextlib
import time

import numpy
from livekit import api, rtc
from livekit.rtc import _ffi_client as ffi_client

KEY, SECRET = "devkey", "secret"
SAMPLE_RATE = 48_000
COUNTER_BITS = 16


def token(room, identity, **grants):
    """A join token as any LiveKit server SDK makes it."""
    video = api.VideoGrants(room_join=True, room=room, **grants)
    return api.AccessToken(KEY, SECRET).with_identity(identity).with_grants(video).to_jwt()


async def until(condition, seconds, what):
    """Waits for a condition with a deadline; `what` names it when it never comes true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        await asyncio.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


def draw_counter(count, width, height):
    """An I420 frame whose left to right blocks are the bits of `count`, high bit first, on grey."""
    luma = numpy.full((height, width), 128, dtype=numpy.uint8)
    block = width // COUNTER_BITS
    top, bottom = height // 4, height * 3 // 4
    for bit in range(COUNTER_BITS):
        value = 235 if count >> (COUNTER_BITS - 1 - bit) & 1 else 16
        luma[top:bottom, bit * block : (bit + 1) * block] = value
    chroma = numpy.full(width * height // 2, 128, dtype=numpy.uint8)
    data = numpy.concatenate([luma.reshape(-1), chroma]).tobytes()
    return rtc.VideoFrame(width, height, rtc.VideoBufferType.I420, data)


def read_counter(frame):
    """The counter of a received frame, at whatever size it arrived; None if it cannot be read."""
    i420 = frame.convert(rtc.VideoBufferType.I420)
    width, height = i420.width, i420.height
    luma = numpy.frombuffer(i420.data, dtype=numpy.uint8)[: width * height].reshape(height, width)
    block = width / COUNTER_BITS
    count = 0
    for bit in range(COUNTER_BITS):
        centre = int((bit + 0.5) * block)
        patch = luma[height * 2 // 5 : height * 3 // 5, centre - 1 : centre + 2].mean()
        if 90 < patch < 160:
            return None
        count = count << 1 | (patch > 128)
    return count


class PatientVideoStream(rtc.VideoStream):
    """Pictures wait for the test instead of being dropped by the SDK when the machine is busy."""

    def _create_owned_stream(self):
        client = ffi_client.FfiClient.instance
        request_now = client.request

        def request(req):
            req.new_video_stream.queue_size_frames = 256
            return request_now(req)

        client.request = request
        try:
            return super()._create_owned_stream()
        finally:
            del client.request


class Client:
    """A participant of a room through one node, built on the Python SDK as it is published."""

    def __init__(self, url, room_name, identity, **grants):
        self.url, self.room_name, self.identity = url, room_name, identity
        self.grants = grants
        self.room = rtc.Room()
        self.tasks = []
        self.events = []
        self.pitches = {}
        self.counters = {}
        self.sizes = {}
        self.data = []
        self.room.on("track_subscribed", self._subscribed)
        self.room.on("data_received", lambda packet: self.data.append(packet))
        for name in (
            "participant_connected",
            "participant_disconnected",
            "track_published",
            "track_unpublished",
            "track_muted",
            "track_unmuted",
            "participant_metadata_changed",
            "participant_name_changed",
            "participant_attributes_changed",
            "room_metadata_changed",
            "active_speakers_changed",
            "reconnecting",
            "reconnected",
            "disconnected",
            "participant_permissions_changed",
        ):
            self.room.on(name, lambda *args, name=name: self.events.append((name, args)))

    async def connect(self, auto_subscribe=True, single=None):
        options = rtc.RoomOptions(auto_subscribe=auto_subscribe, single_peer_connection=single)
        jwt = self.grants.pop("jwt", None) or token(self.room_name, self.identity, **self.grants)
        await self.room.connect(self.url, jwt, options)
        return self

    async def close(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        with contextlib.suppress(Exception):
            await self.room.disconnect()

    def named(self, name):
        """All events of one name so far."""
        return [args for event, args in self.events if event == name]

    async def publish_tone(self, hertz):
        """Publishes a pure tone as microphone."""
        source = rtc.AudioSource(SAMPLE_RATE, 1)
        track = rtc.LocalAudioTrack.create_audio_track("tone", source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        publication = await self.room.local_participant.publish_track(track, options)
        self.tasks.append(asyncio.create_task(self._tone(source, hertz)))
        return publication

    async def _tone(self, source, hertz):
        samples = SAMPLE_RATE // 100
        position = 0
        while True:
            phase = (numpy.arange(samples) + position) * (2 * numpy.pi * hertz / SAMPLE_RATE)
            wave = (numpy.sin(phase) * 12_000).astype(numpy.int16)
            await source.capture_frame(rtc.AudioFrame(wave.tobytes(), SAMPLE_RATE, 1, samples))
            position += samples

    async def publish_counter(self, width=320, height=180, fps=15, simulcast=False, codec=None, **more):
        """Publishes numbered pictures as camera; `self.sent` counts them."""
        source = rtc.VideoSource(width, height)
        track = rtc.LocalVideoTrack.create_video_track("counter", source)
        options = rtc.TrackPublishOptions(
            source=rtc.TrackSource.SOURCE_CAMERA,
            simulcast=simulcast,
            video_codec=codec if codec is not None else rtc.VideoCodec.VP8,
            **more,
        )
        publication = await self.room.local_participant.publish_track(track, options)
        self.sent = 0
        self.tasks.append(asyncio.create_task(self._count(source, width, height, fps)))
        return publication

    async def _count(self, source, width, height, fps):
        start = time.monotonic()
        while True:
            source.capture_frame(draw_counter(self.sent % (1 << COUNTER_BITS), width, height))
            self.sent += 1
            await asyncio.sleep(max(0.0, start + self.sent / fps - time.monotonic()))

    def _subscribed(self, track, publication, participant):
        if track.kind == rtc.TrackKind.KIND_AUDIO:
            self.tasks.append(asyncio.create_task(self._listen(track, participant.identity)))
        else:
            self.tasks.append(asyncio.create_task(self._watch(track, participant.identity)))

    async def _listen(self, track, identity):
        window = []
        async for event in rtc.AudioStream(track, sample_rate=SAMPLE_RATE, num_channels=1):
            window.append(numpy.frombuffer(event.frame.data, dtype=numpy.int16))
            if sum(map(len, window)) < SAMPLE_RATE // 5:
                continue
            sound = numpy.concatenate(window).astype(float)
            window = []
            if numpy.sqrt((sound**2).mean()) < 200:
                self.pitches.setdefault(identity, []).append(0.0)
                continue
            spectrum = numpy.abs(numpy.fft.rfft(sound * numpy.hanning(len(sound))))
            pitch = float(spectrum.argmax() * SAMPLE_RATE / len(sound))
            self.pitches.setdefault(identity, []).append(pitch)

    async def _watch(self, track, identity):
        async for event in PatientVideoStream(track):
            self.sizes[identity] = (event.frame.width, event.frame.height)
            count = read_counter(event.frame)
            if count is not None:
                self.counters.setdefault(identity, []).append(count)

    def hears(self, identity, hertz):
        """Whether the newest sound of a participant is the tone it sends."""
        heard = self.pitches.get(identity, [])
        return bool(heard) and abs(heard[-1] - hertz) < 12

    def sees_motion(self, identity, frames=5):
        """Whether at least so many different pictures of a participant have arrived."""
        return len(set(self.counters.get(identity, []))) >= frames


@contextlib.asynccontextmanager
async def together(*clients, **options):
    """Connects clients at once, and disconnects them whatever happens."""
    try:
        await asyncio.gather(*(client.connect(**options) for client in clients))
        yield clients
    finally:
        await asyncio.gather(*(client.close() for client in clients))
