// What a failover looks like: a row per participant with every picture that was shown, marks for what
// happened, and a table of who moved where and how fast.

import type { RoomView, Takeover } from './cluster';

/** Time that is shown. */
const SPAN_MS = 30_000;
/** Pictures come every 33 ms; a pause from here on is one that people see. */
const GAP_MS = 150;
const ROW_PX = 22;
const LABEL_PX = 110;
const AXIS_PX = 22;
/** Rows and takeovers shown. */
const ROWS_MAX = 24;
const TAKEOVERS_MAX = 12;
/** A takeover's pause is looked for from so long before the decision to so long after it. */
const BEFORE_MS = 3_000;
const AFTER_MS = 10_000;

type Participants = RoomView['participants'];

const hue = (node: number) => `hsl(${(node * 137 + 75) % 360} 60% 45%)`;
const since = (from: number | null, to: number | null) =>
  from === null || to === null ? '' : `${Math.max(0, Math.round(to - from))} ms`;

export class Timeline {
  /** When pictures were shown, and by which node they were served then. */
  private readonly pictures = new Map<string, { at: number; node: number }[]>();
  /** Pauses that are over, kept as long as their takeovers are shown. */
  private readonly pauses = new Map<string, { from: number; to: number }[]>();
  private readonly nodes = new Map<string, number>();
  private marks: { at: number; text: string }[] = [];

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly table: HTMLElement,
  ) {
    setInterval(() => this.draw(), 200);
  }

  /** A picture of `identity` is shown now. */
  picture(identity: string): void {
    const at = Date.now();
    const row = this.pictures.get(identity) ?? [];
    const last = row.at(-1);
    if (last && at - last.at > GAP_MS) {
      const pauses = this.pauses.get(identity) ?? [];
      pauses.push({ from: last.at, to: at });
      if (pauses.length > 100) pauses.shift();
      this.pauses.set(identity, pauses);
    }
    row.push({ at, node: this.nodes.get(identity) ?? 0 });
    const first = row.findIndex((shown) => shown.at > at - SPAN_MS);
    if (first > 0) row.splice(0, first);
    this.pictures.set(identity, row);
  }

  /** Something happened now. */
  mark(text: string): void {
    this.marks.push({ at: Date.now(), text });
    this.marks = this.marks.slice(-20);
  }

  remove(identity: string): void {
    this.pictures.delete(identity);
    this.pauses.delete(identity);
  }

  clear(): void {
    this.pictures.clear();
    this.pauses.clear();
    this.marks = [];
  }

  /** What the cluster says now. */
  show(takeovers: Takeover[], participants: Participants): void {
    for (const { identity, node } of participants) this.nodes.set(identity, node);
    // A crash is decided at once for everybody, and followed by the clients' own choice of node.
    const rows = takeovers
      .slice(-TAKEOVERS_MAX)
      .reverse()
      .map((takeover) => {
        const row = document.createElement('tr');
        row.dataset.identity = takeover.identity;
        const pause = this.pauseOf(takeover);
        for (const text of [
          takeover.identity,
          `node ${takeover.from}`,
          `node ${takeover.to}`,
          takeover.cause,
          since(takeover.heard_at, takeover.detected_at),
          since(takeover.detected_at, takeover.decided_at),
          since(takeover.decided_at, takeover.adopted_at),
          since(takeover.adopted_at, takeover.first_packet_at),
          pause === null ? '' : `${pause} ms`,
        ]) {
          row.insertCell().textContent = text;
        }
        return row;
      });
    this.table.replaceChildren(...rows);
  }

  /** The longest pause of the participant's picture here around its takeover; `null` if none. */
  private pauseOf({ identity, decided_at }: Takeover): number | null {
    const near = (this.pauses.get(identity) ?? []).filter(
      ({ from, to }) => to > decided_at - BEFORE_MS && from < decided_at + AFTER_MS,
    );
    return near.length ? Math.max(...near.map(({ from, to }) => to - from)) : null;
  }

  private draw(): void {
    const rows = [...this.pictures].slice(0, ROWS_MAX);
    const width = this.canvas.clientWidth;
    const height = AXIS_PX + rows.length * ROW_PX;
    const scale = window.devicePixelRatio;
    this.canvas.style.height = `${height}px`;
    this.canvas.width = width * scale;
    this.canvas.height = height * scale;
    const context = this.canvas.getContext('2d');
    if (!context) return;
    context.scale(scale, scale);
    context.font = '12px system-ui, sans-serif';
    context.textBaseline = 'middle';
    const ink = getComputedStyle(this.canvas).color;
    const now = Date.now();
    const x = (at: number) => LABEL_PX + ((at - now + SPAN_MS) / SPAN_MS) * (width - LABEL_PX);
    rows.forEach(([identity, shown], index) => {
      const y = AXIS_PX + index * ROW_PX;
      context.fillStyle = ink;
      context.fillText(identity, 0, y + ROW_PX / 2, LABEL_PX - 8);
      shown.forEach((picture, at) => {
        const next = shown[at + 1]?.at ?? now;
        const paused = next - picture.at > GAP_MS;
        context.fillStyle = hue(picture.node);
        const end = paused ? picture.at + 33 : next;
        context.fillRect(x(picture.at), y + 3, x(end) - x(picture.at) + 0.5, ROW_PX - 6);
        if (paused) {
          context.fillStyle = '#c8372d';
          context.fillRect(x(end), y + ROW_PX / 2 - 2, x(next) - x(end), 4);
        }
      });
    });
    context.fillStyle = ink;
    for (const { at, text } of this.marks) {
      if (at < now - SPAN_MS) continue;
      context.fillRect(x(at), 0, 1, height);
      context.fillText(text, x(at) + 4, AXIS_PX / 2);
    }
  }
}
