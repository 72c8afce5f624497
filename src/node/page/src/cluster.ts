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

export interface ClusterView {
  node: number;
  mode: string;
  leader: number | null;
  term: number;
  nodes: ClusterNode[];
  room: RoomView | null;
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
