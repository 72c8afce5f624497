// A long-running participant on @livekit/rtc-node, driven over JSON lines: see ../python/agent.py.

import { createInterface } from 'node:readline';

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

import { Code, FPS, HEIGHT, RATE, Reporter, WIDTH, cycle, drawCounter, numberMessages, readCounter } from './agent_code.mjs';

const now = () => Number(process.hrtime.bigint() / 1000n) / 1000;
const reporter = new Reporter((line) => process.stdout.write(`${JSON.stringify(line)}\n`), now);
const counter = { next: 0 };
const events = {
  participant_connected: RoomEvent.ParticipantConnected,
  participant_disconnected: RoomEvent.ParticipantDisconnected,
  track_published: RoomEvent.TrackPublished,
  track_unpublished: RoomEvent.TrackUnpublished,
  track_subscribed: RoomEvent.TrackSubscribed,
  track_unsubscribed: RoomEvent.TrackUnsubscribed,
  local_track_republished: RoomEvent.LocalTrackRepublished,
  reconnecting: RoomEvent.Reconnecting,
  reconnected: RoomEvent.Reconnected,
  disconnected: RoomEvent.Disconnected,
  connection_state_changed: RoomEvent.ConnectionStateChanged,
};
let session = null;

async function listen(track, sender) {
  const code = new Code();
  // Sound comes out of the jitter buffer at a steady pace, so long frames cost no precision.
  const options = { sampleRate: RATE, numChannels: 1, frameSizeMs: 100 };
  for await (const frame of new AudioStream(track, options)) {
    const at = now();
    const samples = Float32Array.from(frame.data, (sample) => sample / 32768);
    reporter.stamps('audio', sender, code.moves(samples, at));
  }
}

async function watch(track, sender) {
  let last = null;
  for await (const { frame } of new VideoStream(track)) {
    const i420 = frame.type === VideoBufferType.I420 ? frame : frame.convert(VideoBufferType.I420);
    const count = readCounter(i420.data, i420.width, i420.height);
    if (count !== null && count !== last) reporter.stamps('video', sender, [reporter.now()]);
    if (count !== null) last = count;
  }
}

async function publish(room, stop) {
  const sound = new AudioSource(RATE, 1);
  const picture = new VideoSource(WIDTH, HEIGHT);
  const local = room.localParticipant;
  await local.publishTrack(
    LocalAudioTrack.createAudioTrack('code', sound),
    new TrackPublishOptions({ source: TrackSource.SOURCE_MICROPHONE, dtx: false, red: false }),
  );
  await local.publishTrack(
    LocalVideoTrack.createVideoTrack('counter', picture),
    new TrackPublishOptions({ source: TrackSource.SOURCE_CAMERA, simulcast: false }),
  );
  const turn = Int16Array.from(cycle(), (sample) => sample * 32767);
  // Not returned: whoever awaits the publication must not wait for the end of the sound.
  void (async () => {
    // A whole turn at a time: each frame is a call across the SDK, which costs more than the sound.
    while (!stop.aborted) await sound.captureFrame(new AudioFrame(turn, RATE, 1, turn.length));
  })().catch((failure) => stop.aborted || reporter.event('send_failed', { text: String(failure) }));
  let count = 0;
  const begun = now();
  const paint = () => {
    if (stop.aborted) return;
    const data = new Uint8Array((WIDTH * HEIGHT * 3) / 2).fill(128);
    drawCounter(data, count++ % 65536);
    picture.captureFrame(new VideoFrame(data, WIDTH, HEIGHT, VideoBufferType.I420));
    setTimeout(paint, Math.max(0, begun + (count * 1000) / FPS - now()));
  };
  paint();
}

async function join({ url, token, hears, pause }) {
  const room = new Room();
  const abort = new AbortController();
  session = { room, abort };
  for (const [name, event] of Object.entries(events)) {
    room.on(event, (...args) => {
      const who = args.find((arg) => arg?.identity !== undefined && arg !== room.localParticipant)?.identity;
      const text = args.find((arg) => ['string', 'number'].includes(typeof arg));
      const sid = name === 'reconnected' ? room.localParticipant?.sid : undefined;
      reporter.event(name, { who, text: text === undefined ? undefined : String(text), sid });
    });
  }
  room.on(RoomEvent.TrackSubscribed, (track, _publication, participant) => {
    const follow = track.kind === TrackKind.KIND_AUDIO ? listen : watch;
    follow(track, participant.identity).catch((failure) =>
      reporter.event('stream_failed', { who: participant.identity, text: String(failure) }),
    );
  });
  const choose = (publication, participant) => {
    if (hears?.includes(participant.identity) && !publication.track) publication.setSubscribed(true);
  };
  const chooseAll = () => {
    for (const participant of room.remoteParticipants.values()) {
      for (const publication of participant.trackPublications.values()) choose(publication, participant);
    }
  };
  room.on(RoomEvent.TrackPublished, choose);
  room.on(RoomEvent.Reconnected, chooseAll);
  room.on(RoomEvent.DataReceived, (payload, participant, _kind, topic) => {
    if (topic === 'count' && participant) {
      reporter.data(participant.identity, Number(new TextDecoder().decode(payload)));
    }
  });
  try {
    await room.connect(url, token, { autoSubscribe: !hears, dynacast: false });
    chooseAll();
    await publish(room, abort.signal);
  } catch (failure) {
    reporter.event('join_failed', { text: String(failure) });
    return;
  }
  const send = (bytes) => room.localParticipant.publishData(bytes, { reliable: true, topic: 'count' });
  void numberMessages(send, counter, pause, reporter, abort.signal);
  reporter.event('joined', { sid: room.localParticipant.sid });
}

async function leave() {
  if (session) {
    session.abort.abort();
    const limit = new Promise((wake) => setTimeout(wake, 5000));
    await Promise.race([session.room.disconnect().catch(() => {}), limit]);
  }
  session = null;
  reporter.event('left');
}

process.on('unhandledRejection', (failure) => reporter.event('rejection', { text: String(failure) }));
reporter.event('ready');
for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line);
  if (order.do === 'join') await join(order);
  else if (order.do === 'leave') await leave();
  else break;
}
await leave();
reporter.flush();
await dispose();
process.exit(0);
