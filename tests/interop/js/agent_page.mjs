// The page of agent_chromium.mjs: a participant on livekit-client, as a module beside the SDK's bundle.

import { Room, RoomEvent, Track } from './livekit-client.esm.mjs';

import { Code, FPS, HEIGHT, RATE, Reporter, WIDTH, cycle, drawCounter, numberMessages, readCounter } from './agent_code.mjs';

const reporter = new Reporter(
  (line) => window.report(line),
  () => performance.now(),
);
const counter = { next: 0 };
const events = {
  participant_connected: RoomEvent.ParticipantConnected,
  participant_disconnected: RoomEvent.ParticipantDisconnected,
  track_published: RoomEvent.TrackPublished,
  track_unpublished: RoomEvent.TrackUnpublished,
  track_subscribed: RoomEvent.TrackSubscribed,
  track_unsubscribed: RoomEvent.TrackUnsubscribed,
  signal_reconnecting: RoomEvent.SignalReconnecting,
  reconnecting: RoomEvent.Reconnecting,
  reconnected: RoomEvent.Reconnected,
  disconnected: RoomEvent.Disconnected,
  connection_state_changed: RoomEvent.ConnectionStateChanged,
};
let session = null;

async function listen(track, sender) {
  const code = new Code();
  const reader = new MediaStreamTrackProcessor({ track }).readable.getReader();
  for (let next = await reader.read(); !next.done; next = await reader.read()) {
    const at = performance.now();
    const sound = next.value;
    const samples = new Float32Array(sound.numberOfFrames);
    sound.copyTo(samples, { planeIndex: 0, format: 'f32-planar' });
    sound.close();
    reporter.stamps('audio', sender, code.moves(samples, at));
  }
}

async function watch(track, sender) {
  let last = null;
  let buffer = new Uint8Array(0);
  const reader = new MediaStreamTrackProcessor({ track }).readable.getReader();
  for (let next = await reader.read(); !next.done; next = await reader.read()) {
    const at = reporter.now();
    const frame = next.value;
    if (buffer.length < frame.allocationSize()) buffer = new Uint8Array(frame.allocationSize());
    const [luma] = await frame.copyTo(buffer);
    const { width, height } = frame.visibleRect;
    const count = readCounter(buffer.subarray(luma.offset), width, height, luma.stride);
    frame.close();
    if (count !== null && count !== last) reporter.stamps('video', sender, [at]);
    if (count !== null) last = count;
  }
}

function makeSound() {
  const context = new AudioContext({ sampleRate: RATE });
  const turn = context.createBuffer(1, cycle().length, RATE);
  turn.copyToChannel(cycle(), 0);
  const source = new AudioBufferSourceNode(context, { buffer: turn, loop: true });
  const out = context.createMediaStreamDestination();
  source.connect(out);
  source.start();
  return { track: out.stream.getAudioTracks()[0], close: () => context.close() };
}

function makePicture(stop) {
  const generator = new MediaStreamTrackGenerator({ kind: 'video' });
  const writer = generator.writable.getWriter();
  let count = 0;
  const begun = performance.now();
  const paint = () => {
    if (stop.aborted) return;
    const data = new Uint8Array((WIDTH * HEIGHT * 3) / 2).fill(128);
    drawCounter(data, count++ % 65536);
    const timestamp = Math.round(performance.now() * 1000);
    const frame = new VideoFrame(data, { format: 'I420', codedWidth: WIDTH, codedHeight: HEIGHT, timestamp });
    writer.write(frame).catch(() => {});
    setTimeout(paint, Math.max(0, begun + (count * 1000) / FPS - performance.now()));
  };
  paint();
  return generator;
}

async function join({ url, token, hears, pause }) {
  const room = new Room({ adaptiveStream: false, dynacast: false });
  const abort = new AbortController();
  session = { room, abort, elements: new Set() };
  for (const [name, event] of Object.entries(events)) {
    room.on(event, (...args) => {
      const who = args.find((arg) => arg?.identity !== undefined && arg !== room.localParticipant)?.identity;
      const text = args.find((arg) => ['string', 'number'].includes(typeof arg));
      const sid = name === 'reconnected' ? room.localParticipant.sid : undefined;
      reporter.event(name, { who, text: text === undefined ? undefined : String(text), sid });
    });
  }
  room.on(RoomEvent.TrackSubscribed, (track, _publication, participant) => {
    // Chromium decodes remote sound only where an element plays it.
    if (track.kind === Track.Kind.Audio) track.attach();
    const follow = track.kind === Track.Kind.Audio ? listen : watch;
    follow(track.mediaStreamTrack, participant.identity).catch((failure) =>
      reporter.event('stream_failed', { who: participant.identity, text: String(failure) }),
    );
  });
  room.on(RoomEvent.TrackUnsubscribed, (track) => track.detach());
  const choose = (publication, participant) => {
    if (hears?.includes(participant.identity)) publication.setSubscribed(true);
  };
  room.on(RoomEvent.TrackPublished, choose);
  room.on(RoomEvent.DataReceived, (payload, participant, _kind, topic) => {
    if (topic === 'count' && participant) {
      reporter.data(participant.identity, Number(new TextDecoder().decode(payload)));
    }
  });
  try {
    await room.connect(url, token, { autoSubscribe: !hears });
    for (const participant of room.remoteParticipants.values()) {
      for (const publication of participant.trackPublications.values()) choose(publication, participant);
    }
    session.sound = makeSound();
    await room.localParticipant.publishTrack(session.sound.track, {
      name: 'code',
      source: Track.Source.Microphone,
      dtx: false,
      red: false,
    });
    await room.localParticipant.publishTrack(makePicture(abort.signal), {
      name: 'counter',
      source: Track.Source.Camera,
      simulcast: false,
      videoCodec: 'vp8',
      videoEncoding: { maxBitrate: 150_000, maxFramerate: FPS },
    });
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
    await session.sound?.close();
  }
  session = null;
  reporter.event('left');
}

window.addEventListener('unhandledrejection', ({ reason }) =>
  reporter.event('rejection', { text: String(reason) }),
);
window.agent = { join, leave, flush: () => reporter.flush(), now: () => performance.now() };
