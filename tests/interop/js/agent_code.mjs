// What a sound or picture of an agent means, for Node and for the page alike: see ../python/agent.py.

export const TONES = Array.from({ length: 8 }, (_, index) => 400 + 200 * index);
export const RATE = 48000;
export const [WIDTH, HEIGHT, FPS] = [160, 120, 10];
const WINDOW = RATE / 100;
const SLOT = RATE / 50;
const LOUD = 300 / 32768;
const BITS = 16;

/** One turn of the code, as numbers between -1 and 1: eight tones of 20 ms. */
export function cycle() {
  const samples = new Float32Array(TONES.length * SLOT);
  TONES.forEach((tone, slot) => {
    for (let n = 0; n < SLOT; n += 1) {
      samples[slot * SLOT + n] = 0.37 * Math.sin((2 * Math.PI * tone * n) / RATE);
    }
  });
  return samples;
}

const table = TONES.map((tone) => 2 * Math.cos((2 * Math.PI * tone) / RATE));

/** Follows the order of tones in what arrives from one publisher. */
export class Code {
  #rest = new Float32Array(0);
  #last = null;

  /** Feeds samples that were complete at `at`; gives the times at which the code moved on. */
  moves(samples, at) {
    const all = new Float32Array(this.#rest.length + samples.length);
    all.set(this.#rest);
    all.set(samples, this.#rest.length);
    const moved = [];
    let from = 0;
    for (; from + WINDOW <= all.length; from += WINDOW) {
      const end = at - ((all.length - from - WINDOW) / RATE) * 1000;
      if (this.#window(all.subarray(from, from + WINDOW))) moved.push(Math.round(end * 10) / 10);
    }
    this.#rest = all.slice(from);
    return moved;
  }

  #window(samples) {
    let energy = 0;
    for (const sample of samples) energy += sample * sample;
    if (Math.sqrt(energy / WINDOW) < LOUD) {
      this.#last = null;
      return false;
    }
    let [best, tone] = [-1, 0];
    table.forEach((coefficient, index) => {
      // Goertzel's filter: the power at one frequency.
      let [one, two] = [0, 0];
      for (const sample of samples) [one, two] = [sample + coefficient * one - two, one];
      const power = one * one + two * two - coefficient * one * two;
      if (power > best) [best, tone] = [power, index];
    });
    const before = this.#last;
    this.#last = tone;
    const step = before === null ? 0 : (tone - before + TONES.length) % TONES.length;
    return step === 1 || step === 2;
  }
}

/** Writes `count` into the luma plane: sixteen blocks, high bit first, on grey. */
export function drawCounter(luma, count) {
  luma.fill(128, 0, WIDTH * HEIGHT);
  const block = WIDTH / BITS;
  for (let y = HEIGHT / 4; y < (HEIGHT * 3) / 4; y += 1) {
    for (let bit = 0; bit < BITS; bit += 1) {
      const value = (count >> (BITS - 1 - bit)) & 1 ? 235 : 16;
      luma.fill(value, y * WIDTH + bit * block, y * WIDTH + (bit + 1) * block);
    }
  }
}

/** The counter in a luma plane of any size; null if it cannot be read. */
export function readCounter(luma, width, height, stride = width) {
  let count = 0;
  // Every fourth line is enough, and an agent reads hundreds of pictures a second.
  const [top, bottom] = [Math.floor((height * 2) / 5), Math.floor((height * 3) / 5)];
  for (let bit = 0; bit < BITS; bit += 1) {
    const centre = Math.floor(((bit + 0.5) * width) / BITS);
    let sum = 0;
    for (let y = top; y < bottom; y += 4) {
      sum += luma[y * stride + centre - 1] + luma[y * stride + centre] + luma[y * stride + centre + 1];
    }
    const mean = sum / (3 * Math.ceil((bottom - top) / 4));
    if (mean > 90 && mean < 160) return null;
    count = (count << 1) | (mean > 128 ? 1 : 0);
  }
  return count;
}

/** Gathers what is seen and hands it on four times a second: see ../python/agent.py for the lines. */
export class Reporter {
  #stamps = new Map();
  #data = new Map();
  #sent = { n: [], at: [], failed: [] };

  constructor(say, now) {
    this.say = say;
    this.now = () => Math.round(now() * 10) / 10;
    setInterval(() => this.flush(), 250);
  }

  event(name, more = {}) {
    this.say({ kind: 'event', at: this.now(), name, ...more });
  }

  stamps(media, sender, at) {
    const key = `${media} ${sender}`;
    if (!this.#stamps.has(key)) this.#stamps.set(key, { kind: 'stamps', media, sender, at: [] });
    this.#stamps.get(key).at.push(...at);
  }

  data(sender, number) {
    if (!this.#data.has(sender)) this.#data.set(sender, { kind: 'data', sender, n: [], at: [] });
    const found = this.#data.get(sender);
    found.n.push(number);
    found.at.push(this.now());
  }

  sent(number, at, ok) {
    if (ok) {
      this.#sent.n.push(number);
      this.#sent.at.push(at);
    } else {
      this.#sent.failed.push(number);
    }
  }

  flush() {
    for (const batch of [...this.#stamps.values(), ...this.#data.values()]) {
      if (batch.at.length) this.say(batch);
    }
    this.#stamps.clear();
    this.#data.clear();
    if (this.#sent.n.length || this.#sent.failed.length) this.say({ kind: 'sent', ...this.#sent });
    this.#sent = { n: [], at: [], failed: [] };
  }
}

/** Sends numbered reliable messages, one each `pause` milliseconds, until `stop` is aborted. */
export async function numberMessages(send, counter, pause, reporter, stop) {
  const bytes = new TextEncoder();
  while (!stop.aborted) {
    const number = counter.next++;
    const at = reporter.now();
    try {
      await send(bytes.encode(String(number)));
      reporter.sent(number, at, true);
    } catch {
      reporter.sent(number, at, false);
    }
    await new Promise((wake) => setTimeout(wake, pause));
  }
}
