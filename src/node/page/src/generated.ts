// A picture that visibly moves and a tone that can be told apart: no camera or microphone needed.

/** Draws a clock hand and a frame counter in the colour of `seed`, 30 times a second. */
export function generatedVideo(label: string, seed: number): MediaStreamTrack {
  const canvas = document.createElement('canvas');
  canvas.width = 1280;
  canvas.height = 720;
  const context = canvas.getContext('2d');
  if (!context) throw new Error('this browser offers no 2D canvas');
  const hue = (seed * 137) % 360;
  let frame = 0;
  const draw = () => {
    frame += 1;
    context.fillStyle = `hsl(${hue} 55% 30%)`;
    context.fillRect(0, 0, canvas.width, canvas.height);
    for (let bar = 0; bar < 16; bar += 1) {
      context.fillStyle = `hsl(${(hue + bar * 11 + frame) % 360} 70% 55%)`;
      const height = 120 + 100 * Math.sin((frame + bar * 9) / 15);
      context.fillRect(bar * 80 + 8, canvas.height - height, 64, height);
    }
    context.save();
    context.translate(1060, 220);
    context.rotate((frame / 30) * Math.PI);
    context.fillStyle = '#fff';
    context.fillRect(-8, -160, 16, 180);
    context.restore();
    context.fillStyle = '#fff';
    context.font = '600 96px system-ui, sans-serif';
    context.fillText(label, 60, 180, 800);
    context.font = '48px ui-monospace, monospace';
    context.fillText(String(frame), 60, 260);
  };
  draw();
  const timer = setInterval(draw, 1000 / 30);
  const [track] = canvas.captureStream(30).getVideoTracks();
  if (!track) throw new Error('the canvas gave no video track');
  track.addEventListener('ended', () => clearInterval(timer));
  return track;
}

/** A quiet tone whose pitch depends on `seed`, swelling twice a second. */
export function generatedAudio(seed: number): MediaStreamTrack {
  const audio = new AudioContext();
  const tone = new OscillatorNode(audio, { frequency: 220 * 2 ** ((seed % 12) / 12) });
  const gain = new GainNode(audio, { gain: 0.25 });
  const swell = new OscillatorNode(audio, { frequency: 2 });
  const depth = new GainNode(audio, { gain: 0.15 });
  const out = new MediaStreamAudioDestinationNode(audio);
  swell.connect(depth).connect(gain.gain);
  tone.connect(gain).connect(out);
  tone.start();
  swell.start();
  const [track] = out.stream.getAudioTracks();
  if (!track) throw new Error('the audio graph gave no track');
  return track;
}
