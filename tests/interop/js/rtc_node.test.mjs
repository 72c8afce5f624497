// @livekit/rtc-node on two nodes: sound, pictures, data and metadata, as published by LiveKit.

import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import {
  AudioFrame,
  AudioSource,
  AudioStream,
  LocalAudioTrack,
  LocalVideoTrack,
  Room,
  RoomEvent,
  TrackKind,
  TrackPublishOptions,
  TrackSource,
  VideoBufferType,
  VideoFrame,
  VideoSource,
  VideoStream,
  dispose,
} from '@livekit/rtc-node';
import { AccessToken, RoomServiceClient } from 'livekit-server-sdk';

const nodes = JSON.parse(process.env.FLOTILLA_NODES ?? '[]');
assert.equal(nodes.length, 3, 'FLOTILLA_NODES names the three nodes');
const [key, secret] = ['devkey', 'secret'];

after(async () => dispose());

async function token(room, identity) {
  const made = new AccessToken(key, secret, { identity });
  made.addGrant({ roomJoin: true, room, canUpdateOwnMetadata: true });
  return made.toJwt();
}

async function until(condition, seconds, what) {
  const deadline = Date.now() + seconds * 1000;
  while (Date.now() < deadline) {
    const value = condition();
    if (value) return value;
    await new Promise((wake) => setTimeout(wake, 20));
  }
  throw new Error(`not within ${seconds} s: ${what}`);
}

async function join(node, name, identity) {
  const seen = { loud: 0, pictures: 0, size: null, data: [] };
  const room = new Room();
  room.on(RoomEvent.TrackSubscribed, async (track) => {
    if (track.kind === TrackKind.KIND_AUDIO) {
      for await (const frame of new AudioStream(track, 48000, 1)) {
        if (frame.data.some((sample) => Math.abs(sample) > 2000)) seen.loud += 1;
      }
    } else {
      for await (const { frame } of new VideoStream(track)) {
        seen.pictures += 1;
        seen.size = [frame.width, frame.height];
      }
    }
  });
  room.on(RoomEvent.DataReceived, (payload, participant, _kind, topic) => {
    seen.data.push([new TextDecoder().decode(payload), participant?.identity, topic]);
  });
  await room.connect(node.url, await token(name, identity), { autoSubscribe: true, dynacast: true });
  return { room, seen };
}

async function publish(room, stop) {
  const sound = new AudioSource(48000, 1);
  const picture = new VideoSource(320, 180);
  const options = (source) => new TrackPublishOptions({ source, simulcast: false });
  const local = room.localParticipant;
  await local.publishTrack(
    LocalAudioTrack.createAudioTrack('tone', sound),
    options(TrackSource.SOURCE_MICROPHONE),
  );
  await local.publishTrack(
    LocalVideoTrack.createVideoTrack('grey', picture),
    options(TrackSource.SOURCE_CAMERA),
  );
  const samples = new Int16Array(480).map((_, n) => 12000 * Math.sin((2 * Math.PI * 500 * n) / 48000));
  // Not returned: whoever awaits the publication must not wait for the end of the tone.
  void (async () => {
    while (!stop.aborted) await sound.captureFrame(new AudioFrame(samples, 48000, 1, 480));
  })();
  let count = 0;
  const timer = setInterval(() => {
    const data = new Uint8Array((320 * 180 * 3) / 2).fill(128);
    data.fill((count += 7) % 256, 0, 320 * 90);
    picture.captureFrame(new VideoFrame(data, 320, 180, VideoBufferType.I420));
  }, 66);
  stop.addEventListener('abort', () => clearInterval(timer));
}

test('two rtc-node clients on two nodes', { timeout: 90_000 }, async () => {
  const name = `rtc-node-${Date.now()}`;
  const stop = new AbortController();
  const one = await join(nodes[0], name, 'one');
  const two = await join(nodes[2], name, 'two');
  try {
    await publish(one.room, stop.signal);
    await publish(two.room, stop.signal);
    for (const { seen } of [one, two]) {
      await until(() => seen.loud >= 20, 20, 'sound arrives');
      await until(() => seen.pictures >= 20, 20, 'pictures arrive');
      assert.deepEqual(seen.size, [320, 180]);
    }

    const bytes = new TextEncoder();
    for (let count = 0; count < 500; count += 1) {
      await one.room.localParticipant.publishData(bytes.encode(String(count)), {
        reliable: true,
        topic: 'count',
      });
    }
    await until(() => two.seen.data.length >= 500, 30, 'all data arrives');
    assert.deepEqual(
      two.seen.data,
      Array.from({ length: 500 }, (_, count) => [String(count), 'one', 'count']),
    );

    await one.room.localParticipant.updateMetadata('captain');
    await until(
      () => two.room.remoteParticipants.get('one')?.metadata === 'captain',
      5,
      'metadata arrives',
    );
  } finally {
    stop.abort();
    await one.room.disconnect();
    await two.room.disconnect();
  }
});

test('livekit-server-sdk sees and changes rooms through any node', { timeout: 30_000 }, async () => {
  const name = `server-sdk-${Date.now()}`;
  const first = new RoomServiceClient(nodes[0].url, key, secret);
  const third = new RoomServiceClient(nodes[2].url, key, secret);
  const made = await first.createRoom({ name, emptyTimeout: 60, metadata: 'a' });
  assert.match(made.sid, /^RM_/);
  assert.deepEqual((await third.listRooms([name])).map((room) => room.sid), [made.sid]);
  await third.updateRoomMetadata(name, 'b');
  assert.equal((await first.listRooms([name]))[0]?.metadata, 'b');
  await third.deleteRoom(name);
  assert.deepEqual(await first.listRooms([name]), []);
});
