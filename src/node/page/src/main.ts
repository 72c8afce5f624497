// The demo page: join a room from a node of your choice, see and hear everybody, watch the cluster,
// and (in demo mode) kill a node.

import { Room, RoomEvent, Track } from 'livekit-client';

import { askCluster, askTakeovers, askToken, killNode, type ClusterView } from './cluster';
import { generatedAudio, generatedVideo } from './generated';
import './style.css';
import { Tiles } from './tiles';
import { Timeline } from './timeline';

declare global {
  interface Window {
    /** For tests and the curious: the room that the page is in. */
    flotilla: { room: Room | null; cluster: ClusterView | null };
  }
}
window.flotilla = { room: null, cluster: null };

function element<T extends HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found as T;
}

const home = location.origin;
const form = element<HTMLFormElement>('join');
const roomInput = element<HTMLInputElement>('room');
const identityInput = element<HTMLInputElement>('identity');
const nodeSelect = element<HTMLSelectElement>('node');
const sourceSelect = element<HTMLSelectElement>('source');
const goButton = element<HTMLButtonElement>('go');
const leaveButton = element<HTMLButtonElement>('leave');
const status = element('status');
const timeline = new Timeline(element<HTMLCanvasElement>('timeline'), element('takeovers'));
const tiles = new Tiles(element('tiles'), (identity) => timeline.picture(identity));

const query = new URLSearchParams(location.search);
roomInput.value = query.get('room') ?? 'harbour';
identityInput.value = query.get('identity') ?? `guest-${Math.random().toString(36).slice(2, 6)}`;
sourceSelect.value = query.get('source') ?? 'generated';

function log(text: string): void {
  const line = document.createElement('li');
  line.textContent = `${new Date().toLocaleTimeString()} ${text}`;
  const list = element('log');
  list.prepend(line);
  while (list.children.length > 200) list.lastElementChild?.remove();
}

function seedOf(text: string): number {
  let seed = 7;
  for (const char of text) seed = (seed * 31 + (char.codePointAt(0) ?? 0)) % 9973;
  return seed;
}

/** Every URL worth asking: the one the page came from first, then the nodes'. */
function bases(): string[] {
  const nodes = window.flotilla.cluster?.nodes ?? [];
  return [home, ...nodes.map((node) => node.client_url).filter((url) => url !== home)];
}

async function join(): Promise<void> {
  goButton.disabled = true;
  status.textContent = 'joining …';
  const room = new Room({ adaptiveStream: false, dynacast: true });
  window.flotilla.room = room;
  wire(room);
  try {
    const base = nodeSelect.value || home;
    const identity = identityInput.value;
    const token = await askToken(base, roomInput.value, identity);
    await room.connect(base.replace(/^http/, 'ws'), token);
    status.textContent = `in “${room.name}” as ${identity} through ${base}`;
    leaveButton.disabled = false;
    tiles.of(identity);
    await publish(room, identity);
    await room.startAudio();
  } catch (error) {
    status.textContent = `could not join: ${error instanceof Error ? error.message : String(error)}`;
    await room.disconnect();
  }
}

async function publish(room: Room, identity: string): Promise<void> {
  const local = room.localParticipant;
  if (sourceSelect.value === 'devices') {
    await local.enableCameraAndMicrophone();
  } else if (sourceSelect.value === 'generated') {
    const seed = seedOf(identity);
    await local.publishTrack(generatedVideo(identity, seed), {
      source: Track.Source.Camera,
      simulcast: true,
      videoCodec: 'vp8',
    });
    await local.publishTrack(generatedAudio(seed), { source: Track.Source.Microphone, dtx: false });
  }
}

function wire(room: Room): void {
  room
    .on(RoomEvent.ParticipantConnected, (participant) => {
      tiles.of(participant.identity);
      log(`${participant.identity} joined`);
    })
    .on(RoomEvent.ParticipantDisconnected, (participant) => {
      tiles.remove(participant.identity);
      timeline.remove(participant.identity);
      log(`${participant.identity} left`);
    })
    .on(RoomEvent.TrackSubscribed, (_track, publication, participant) => {
      tiles.attach(participant, publication);
    })
    .on(RoomEvent.TrackUnsubscribed, (_track, publication, participant) => {
      tiles.detach(participant, publication);
    })
    .on(RoomEvent.LocalTrackPublished, (publication, participant) => {
      tiles.attach(participant, publication);
    })
    .on(RoomEvent.Reconnecting, () => log('reconnecting'))
    .on(RoomEvent.SignalReconnecting, () => log('signal connection lost, resuming'))
    .on(RoomEvent.Reconnected, () => log('reconnected'))
    .on(RoomEvent.Disconnected, (reason) => {
      log(`disconnected (${reason ?? 'no reason given'})`);
      status.textContent = 'not connected';
      tiles.clear();
      timeline.clear();
      goButton.disabled = false;
      leaveButton.disabled = true;
      window.flotilla.room = null;
    });
  room.on(RoomEvent.Connected, () => {
    for (const participant of room.remoteParticipants.values()) tiles.of(participant.identity);
  });
}

function show(view: ClusterView): void {
  const kill = view.mode === 'demo';
  element('leader').textContent =
    view.leader === null ? 'no leader' : `leader: node ${view.leader}, term ${view.term}`;
  const rows = view.nodes.map((node) => {
    const row = document.createElement('tr');
    row.classList.toggle('dead', !node.alive);
    for (const text of [`node ${node.id}`, node.role, String(node.participants)]) {
      row.insertCell().textContent = text;
    }
    const cell = row.insertCell();
    if (kill) {
      const button = document.createElement('button');
      button.className = 'kill';
      button.textContent = 'kill';
      button.disabled = !node.alive;
      button.addEventListener('click', () => {
        log(`killing node ${node.id}`);
        timeline.mark(`node ${node.id} killed`);
        killNode(home, node.id).catch((error: unknown) => log(String(error)));
      });
      cell.append(button);
    }
    return row;
  });
  element('nodes').replaceChildren(...rows);

  const routes = (view.room?.routes ?? []).map((route) => {
    const row = document.createElement('tr');
    for (const text of [route.track, `node ${route.from}`, `node ${route.to}`]) {
      row.insertCell().textContent = text;
    }
    return row;
  });
  element('routes').replaceChildren(...routes);
  for (const participant of view.room?.participants ?? []) {
    tiles.setWhere(participant.identity, `node ${participant.node}`);
  }

  const wanted = nodeSelect.value || query.get('node') || '';
  const options = [new Option('nearest (this URL)', '')];
  for (const node of view.nodes) {
    options.push(new Option(`node ${node.id}`, node.client_url));
  }
  const before = [...nodeSelect.options].map((option) => option.value).join();
  if (before !== options.map((option) => option.value).join()) {
    nodeSelect.replaceChildren(...options);
    const choice = options.find((option) => option.value === wanted || option.text === `node ${wanted}`);
    nodeSelect.value = choice?.value ?? '';
  }
}

async function refresh(): Promise<void> {
  try {
    const view = await askCluster(bases(), roomInput.value);
    window.flotilla.cluster = view;
    show(view);
    if (window.flotilla.room) {
      timeline.show(await askTakeovers(bases(), roomInput.value), view.room?.participants ?? []);
    }
  } catch {
    element('leader').textContent = 'no node answers';
  }
}

form.addEventListener('submit', (event) => {
  event.preventDefault();
  void join();
});
leaveButton.addEventListener('click', () => void window.flotilla.room?.disconnect());

setInterval(() => {
  const room = window.flotilla.room;
  if (!room) return;
  for (const participant of [room.localParticipant, ...room.remoteParticipants.values()]) {
    tiles.setLevel(participant.identity, participant.audioLevel);
  }
}, 150);

await refresh();
setInterval(() => void refresh(), 1000);
if (query.has('join')) await join();
