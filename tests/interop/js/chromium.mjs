// Debian's Chromium, driven by playwright-core.

import { chromium } from 'playwright-core';

export async function launch(more = []) {
  return chromium.launch({
    executablePath: process.env.FLOTILLA_CHROMIUM ?? '/usr/bin/chromium',
    headless: true,
    args: [
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
      '--use-fake-device-for-media-stream',
      '--use-fake-ui-for-media-stream',
      '--autoplay-policy=no-user-gesture-required',
      ...more,
    ],
  });
}

/** Polls in the page until `probe(argument)` is truthy; says `what` if it never is. */
export async function until(page, probe, argument, seconds, what) {
  try {
    const handle = await page.waitForFunction(probe, argument, {
      timeout: seconds * 1000,
      polling: 50,
    });
    return await handle.jsonValue();
  } catch (error) {
    const log = await page.evaluate(() => document.getElementById('log')?.innerText ?? '');
    throw new Error(`not within ${seconds} s: ${what}\npage log:\n${log}`, { cause: error });
  }
}
