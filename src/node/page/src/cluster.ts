// What the cluster says about itself, asked of whichever node answers.

export interface ClusterNode {
  id: number;
  client_url: string;
  role: string;
  alive: boolean;
  participants: number;
}

export interface RoomView {
  name: string;
  version: number;
  participants: { identity: string; node: number; epoch: number }[];
  routes: { track: string; from: number; to: number }[];
}

/** One participant's move to another node. Times are milliseconds since 1970, `null` where unknown. */
export interface Takeover {
  identity: string;
  epoch: number;
  cause: string;
  from: number;
  to: number;
  heard_at: number | null;
  detected_at: number | null;
  decided_at: number;
  adopted_at: number | null;
  first_packet_at: number | null;
}

export interface ClusterView {
  node: number;
  mode: string;
  leader: number | null;
  term: number;
  nodes: ClusterNode[];
  room: RoomView | null;
  takeovers: Takeover[];
}

/**
 * What all nodes together know of the room's takeovers: who detected the loss knows when, and the new
 * home when media came.
 */
export async function askTakeovers(bases: string[], room: string): Promise<Takeover[]> {
  const views = await Promise.allSettled(bases.map((base) => askCluster([base], room)));
  const known = new Map<string, Takeover>();
  for (const view of views) {
    if (view.status === 'rejected') continue;
    for (const takeover of view.value.takeovers) {
      const key = `${takeover.identity} ${takeover.epoch}`;
      const before = known.get(key);
      known.set(key, {
        ...takeover,
        decided_at: Math.min(takeover.decided_at, before?.decided_at ?? Infinity),
        heard_at: takeover.heard_at ?? before?.heard_at ?? null,
        detected_at: takeover.detected_at ?? before?.detected_at ?? null,
        adopted_at: takeover.adopted_at ?? before?.adopted_at ?? null,
        first_packet_at: takeover.first_packet_at ?? before?.first_packet_at ?? null,
      });
    }
  }
  return [...known.values()].sort((one, other) => one.decided_at - other.decided_at);
}

/** Asks each base URL in turn and returns the first answer; throws if none answers. */
export async function askCluster(bases: string[], room: string): Promise<ClusterView> {
  let last: unknown = new Error('no node to ask');
  for (const base of bases) {
    try {
      const answer = await fetch(`${base}/demo/api/cluster?room=${encodeURIComponent(room)}`, {
        signal: AbortSignal.timeout(1500),
      });
      if (answer.ok) return (await answer.json()) as ClusterView;
      last = new Error(`${base} answered ${answer.status}`);
    } catch (error) {
      last = error;
    }
  }
  throw last;
}

/** Fetches a token to join `room` as `identity`. */
export async function askToken(base: string, room: string, identity: string): Promise<string> {
  const query = new URLSearchParams({ room, identity });
  const answer = await fetch(`${base}/demo/api/session?${query}`);
  if (!answer.ok) throw new Error(`no token: ${answer.status} ${await answer.text()}`);
  return ((await answer.json()) as { token: string }).token;
}

/** Kills a node's process (demo mode only). */
export async function killNode(base: string, node: number): Promise<void> {
  const answer = await fetch(`${base}/demo/api/kill?node=${node}`, { method: 'POST' });
  if (!answer.ok) throw new Error(`node ${node} was not killed: ${answer.status}`);
}
