// One tile per participant: picture, name, the node that serves it and a level meter.

import { Track, type Participant, type TrackPublication } from 'livekit-client';

export class Tiles {
  private readonly tiles = new Map<string, HTMLElement>();

  /** `onPicture` hears of each new picture of somebody else's that is shown. */
  constructor(
    private readonly parent: HTMLElement,
    private readonly onPicture: (identity: string) => void,
  ) {}

  /** The tile of a participant, made if it is new. */
  of(identity: string): HTMLElement {
    const present = this.tiles.get(identity);
    if (present) return present;
    const tile = document.createElement('article');
    tile.className = 'tile';
    tile.dataset.identity = identity;
    const video = document.createElement('video');
    video.autoplay = true;
    video.muted = true;
    video.playsInline = true;
    const level = document.createElement('div');
    level.className = 'level';
    level.append(document.createElement('i'));
    const caption = document.createElement('div');
    caption.className = 'caption';
    const name = document.createElement('span');
    name.className = 'name';
    name.textContent = identity;
    const where = document.createElement('span');
    where.className = 'where';
    caption.append(name, where);
    tile.append(video, level, caption);
    this.parent.append(tile);
    this.tiles.set(identity, tile);
    return tile;
  }

  remove(identity: string): void {
    this.tiles.get(identity)?.remove();
    this.tiles.delete(identity);
  }

  clear(): void {
    for (const identity of [...this.tiles.keys()]) this.remove(identity);
  }

  attach(participant: Participant, publication: TrackPublication): void {
    const track = publication.track;
    if (!track) return;
    const tile = this.of(participant.identity);
    if (track.kind === Track.Kind.Video) {
      const video = tile.querySelector('video');
      if (video) {
        track.attach(video);
        if (!participant.isLocal) this.follow(video, participant.identity);
      }
    } else if (!participant.isLocal) {
      const audio = track.attach();
      audio.hidden = true;
      tile.append(audio);
    }
  }

  private follow(video: HTMLVideoElement, identity: string): void {
    if (video.dataset.followed) return;
    video.dataset.followed = 'yes';
    const next = () => {
      this.onPicture(identity);
      if (this.tiles.has(identity)) video.requestVideoFrameCallback(next);
    };
    video.requestVideoFrameCallback(next);
  }

  detach(participant: Participant, publication: TrackPublication): void {
    for (const element of publication.track?.detach() ?? []) {
      if (element instanceof HTMLAudioElement) element.remove();
    }
    if (participant.trackPublications.size === 0) this.setWhere(participant.identity, '');
  }

  setWhere(identity: string, where: string): void {
    const label = this.tiles.get(identity)?.querySelector('.where');
    if (label) label.textContent = where;
  }

  /** `level` from 0 to 1. */
  setLevel(identity: string, level: number): void {
    const tile = this.tiles.get(identity);
    tile?.classList.toggle('speaking', level > 0.02);
    const bar = tile?.querySelector<HTMLElement>('.level i');
    if (bar) bar.style.width = `${Math.min(100, Math.round(level * 300))}%`;
  }
}
