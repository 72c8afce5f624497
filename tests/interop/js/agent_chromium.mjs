// A long-running participant on livekit-client in Chromium, driven over JSON lines: see ../python/agent.py.
//
// Serves its page on loopback, so that the page is a secure context, and translates the page's clock.

import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';

import { launch } from './chromium.mjs';

const now = () => Number(process.hrtime.bigint() / 1000n) / 1000;
const here = (path) => new URL(path, import.meta.url);
const files = {
  '/agent_page.mjs': here('agent_page.mjs'),
  '/agent_code.mjs': here('agent_code.mjs'),
  '/livekit-client.esm.mjs': here('node_modules/livekit-client/dist/livekit-client.esm.mjs'),
};
const html = '<!doctype html><title>agent</title><script type="module" src="/agent_page.mjs"></script>';
const server = createServer(async (request, response) => {
  const file = files[request.url];
  if (file) {
    response.setHeader('content-type', 'text/javascript');
    response.end(await readFile(file));
  } else {
    response.statusCode = request.url === '/' ? 200 : 404;
    response.setHeader('content-type', 'text/html');
    response.end(request.url === '/' ? html : '');
  }
});
await new Promise((wake) => server.listen(0, '127.0.0.1', wake));

/** Monotonic milliseconds minus the page's clock. */
let offset = 0;
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const translate = (at) => Math.round((at + offset) * 10) / 10;
// Nobody looks at the page: its timers and its share of the processor are those of one in front.
const browser = await launch([
  '--disable-background-timer-throttling',
  '--disable-renderer-backgrounding',
  '--disable-backgrounding-occluded-windows',
]);
const page = await browser.newPage();
page.on('pageerror', (error) => say({ kind: 'event', at: now(), name: 'page_error', text: String(error) }));
await page.exposeFunction('report', (line) => {
  say({ ...line, at: Array.isArray(line.at) ? line.at.map(translate) : translate(line.at) });
});

/** The shortest of a few round trips tells the page's clock best. */
async function synchronise(rounds) {
  let best = Infinity;
  for (let round = 0; round < rounds; round += 1) {
    const before = now();
    const inside = await page.evaluate(() => performance.now());
    const trip = now() - before;
    if (trip < best) [best, offset] = [trip, before + trip / 2 - inside];
  }
  return best;
}

await page.goto(`http://127.0.0.1:${server.address().port}/`);
await page.waitForFunction(() => window.agent);
let trust = await synchronise(10);
setInterval(async () => {
  // Both are the machine's monotonic clock, so only a better reading replaces an earlier one.
  const before = offset;
  const trip = await synchronise(1).catch(() => Infinity);
  if (trip > trust) offset = before;
  else trust = trip;
}, 1000).unref();

say({ kind: 'event', at: now(), name: 'ready' });
for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line);
  if (order.do === 'join') await page.evaluate((asked) => window.agent.join(asked), order);
  else if (order.do === 'leave') await page.evaluate(() => window.agent.leave());
  else break;
}
await page.evaluate(() => window.agent.leave());
await page.evaluate(() => window.agent.flush());
await browser.close();
process.exit(0);
