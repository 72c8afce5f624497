// The demo as a newcomer sees it: two browser pages and a Python SDK client, each on its own node,
// see each other move and hear each other.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdir } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { after, before, test } from 'node:test';

import { launch, until } from './chromium.mjs';

const url = process.env.FLOTILLA_DEMO_URL;
assert.ok(url, 'FLOTILLA_DEMO_URL is the URL that `flotilla demo` printed');
const artefacts = process.env.FLOTILLA_ARTEFACTS ?? 'artifacts';
const python = process.env.FLOTILLA_PYTHON ?? 'python3';
const guest = process.env.FLOTILLA_GUEST;
assert.ok(guest, 'FLOTILLA_GUEST is the path of guest.py');

let browser;
before(async () => {
  browser = await launch();
});
after(async () => browser?.close());

/**
 * The cluster as a page sees it. A kept-alive connection leads to the node that it was opened to, and
 * ends with it: as a browser does, this asks again over a new one.
 */
async function cluster(room) {
  const address = new URL(`/demo/api/cluster?room=${room}`, url);
  const answer = await fetch(address).catch(() => fetch(address));
  assert.equal(answer.status, 200);
  return answer.json();
}

async function open(room, identity, node, extra = '') {
  const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });
  page.on('pageerror', (error) => console.log(`${identity}: ${error}`));
  const query = `room=${room}&identity=${identity}&node=${node}&join=1${extra}`;
  await page.goto(new URL(`/demo/?${query}`, url).href);
  await until(page, () => window.flotilla?.room?.state === 'connected', null, 20, `${identity} is in`);
  return page;
}

/** Whether the tile of `identity` shows pictures that change. */
const moving = async (page, identity) => {
  await until(
    page,
    (who) => {
      const video = document.querySelector(`[data-identity="${who}"] video`);
      return video && video.videoWidth > 0 && video.getVideoPlaybackQuality().totalVideoFrames > 30;
    },
    identity,
    30,
    `moving pictures of ${identity}`,
  );
};

/** Whether audio of `identity` arrives with energy in it, from the receiver's statistics. */
const audible = async (page, identity) => {
  await until(
    page,
    async (who) => {
      const participant = window.flotilla.room.remoteParticipants.get(who);
      for (const publication of participant?.audioTrackPublications.values() ?? []) {
        const report = await publication.track?.receiver?.getStats();
        for (const entry of report?.values() ?? []) {
          if (entry.type === 'inbound-rtp' && entry.totalAudioEnergy > 0.01) return true;
        }
      }
      return false;
    },
    identity,
    30,
    `sound of ${identity}`,
  );
};

test('two pages and a Python client on three nodes', { timeout: 150_000 }, async () => {
  const room = `harbour-${Date.now()}`;
  const view = await cluster(room);
  assert.equal(view.nodes.length, 3);
  assert.ok(view.leader, 'the page is told of the leader');
  const [one, two, three] = view.nodes;

  const anna = await open(room, 'anna', one.id);
  const ben = await open(room, 'ben', two.id);
  const child = spawn(python, [guest, three.client_url, room, 'guest', 'anna', 'ben'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const lines = createInterface({ input: child.stdout });
  const report = new Promise((resolve, reject) => {
    lines.on('line', (line) => resolve(JSON.parse(line)));
    child.on('exit', (code) => reject(new Error(`the guest ended with ${code}`)));
  });
  try {
    for (const [page, others] of [
      [anna, ['ben', 'guest']],
      [ben, ['anna', 'guest']],
    ]) {
      for (const other of others) {
        await moving(page, other);
        await audible(page, other);
      }
    }
    assert.deepEqual(await report, { sees: ['anna', 'ben'], hears: ['anna', 'ben'] });

    const served = Object.fromEntries(
      (await cluster(room)).room.participants.map(({ identity, node }) => [identity, node]),
    );
    assert.deepEqual(served, { anna: one.id, ben: two.id, guest: three.id });
    await until(
      anna,
      () => document.querySelectorAll('#routes tr').length >= 6,
      null,
      5,
      'the routes are shown',
    );
    await mkdir(artefacts, { recursive: true });
    await anna.screenshot({ path: `${artefacts}/demo.png` });
  } finally {
    child.kill();
    await anna.close();
    await ben.close();
  }
});

test('the pictures go on when a node is killed', { timeout: 120_000 }, async () => {
  const room = `storm-${Date.now()}`;
  const { nodes } = await cluster(room);
  const [one, two] = nodes;
  const anna = await open(room, 'anna', one.id);
  const ben = await open(room, 'ben', two.id);
  const frames = (page, identity) =>
    page.evaluate(
      (who) => document.querySelector(`[data-identity="${who}"] video`).getVideoPlaybackQuality().totalVideoFrames,
      identity,
    );
  const lines = (page) => page.locator('#log li').allTextContents();
  const sid = () => ben.evaluate(() => window.flotilla.room.localParticipant.sid);
  const home = async () =>
    (await cluster(room)).room.participants.find(({ identity }) => identity === 'ben')?.node;
  try {
    await moving(anna, 'ben');
    await moving(ben, 'anna');
    const before = await sid();
    assert.equal(await home(), two.id);
    const quiet = new Map([anna, ben].map((page) => [page, 0]));
    for (const page of quiet.keys()) quiet.set(page, (await lines(page)).length);
    await anna.click(`#nodes tr:nth-child(${nodes.indexOf(two) + 1}) button.kill`);
    const deadline = Date.now() + 20_000;
    while ((await home()) === two.id) assert.ok(Date.now() < deadline, 'ben has another home');
    for (const [page, other] of [
      [anna, 'ben'],
      [ben, 'anna'],
    ]) {
      const seen = await frames(page, other);
      await until(
        page,
        ([who, count]) => {
          const video = document.querySelector(`[data-identity="${who}"] video`);
          return video?.getVideoPlaybackQuality().totalVideoFrames > count + 30;
        },
        [other, seen],
        20,
        `pictures of ${other} after the kill`,
      );
      // The latest come first.
      const log = await lines(page);
      const since = log.slice(0, log.length - quiet.get(page)).join();
      assert.doesNotMatch(since, /left|joined|disconnected/);
    }
    assert.equal(await sid(), before, 'the same participant');
    await until(
      anna,
      () => document.querySelector('#takeovers tr[data-identity="ben"]'),
      null,
      10,
      'the takeover is shown',
    );
    await mkdir(artefacts, { recursive: true });
    await anna.screenshot({ path: `${artefacts}/failover.png`, fullPage: true });
  } finally {
    await anna.close();
    await ben.close();
  }
});

test('a page asks for a smaller layer and gets a smaller picture', { timeout: 120_000 }, async () => {
  const room = `layers-${Date.now()}`;
  const { nodes } = await cluster(room);
  const anna = await open(room, 'anna', nodes[0].id);
  const ben = await open(room, 'ben', nodes[1].id, '&source=none');
  const width = (wanted, what) =>
    until(
      ben,
      ([low, high]) => {
        const video = document.querySelector('[data-identity="anna"] video');
        return video && video.videoWidth >= low && video.videoWidth <= high;
      },
      wanted,
      30,
      what,
    );
  const ask = (quality) =>
    ben.evaluate((asked) => {
      const participant = window.flotilla.room.remoteParticipants.get('anna');
      for (const publication of participant.videoTrackPublications.values()) {
        publication.setVideoQuality(asked);
      }
    }, quality);
  try {
    await moving(ben, 'anna');
    await ask(0);
    await width([1, 400], 'the small picture');
    await ask(1);
    await width([500, 700], 'the middle picture');
    await ask(2);
    await width([1000, 1300], 'the large picture');
  } finally {
    await anna.close();
    await ben.close();
  }
});
