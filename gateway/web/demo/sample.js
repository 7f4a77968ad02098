/**
 * A clip for whoever has no camera at hand: drawn here, each one of its own, so that one sees which video it is.
 *
 * @module
 */

const [WIDTH, HEIGHT, RATE] = [360, 640, 30];
const TURN_S = 2;

/**
 * A stream of moving pictures that name their sender and the time. Stop its track to end it.
 *
 * @param {string} sender
 */
export function sampleStream(sender) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [WIDTH, HEIGHT];
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const time = new Date().toLocaleTimeString([], { hour12: false });
  const hue = Math.floor(Math.random() * 360);
  const began = performance.now();
  const stream = canvas.captureStream(RATE);
  const [track] = stream.getVideoTracks();
  const frame = () => {
    draw(context, { sender, time, hue, turn: (performance.now() - began) / 1000 / TURN_S });
    if (track.readyState === "ended") clearInterval(drawing);
  };
  const drawing = setInterval(frame, 1000 / RATE);
  frame();
  return stream;
}

/**
 * One picture: a ball that bounces before a sky of that hue.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {{ sender: string, time: string, hue: number, turn: number }} scene
 */
function draw(context, { sender, time, hue, turn }) {
  const sky = context.createLinearGradient(0, 0, WIDTH * 0.4, HEIGHT);
  sky.addColorStop(0, `hsl(${hue} 55% 28%)`);
  sky.addColorStop(1, `hsl(${(hue + 50) % 360} 75% 62%)`);
  context.fillStyle = sky;
  context.fillRect(0, 0, WIDTH, HEIGHT);
  const x = WIDTH * (0.5 + 0.32 * Math.sin(Math.PI * turn));
  const y = HEIGHT * (0.86 - 0.4 * Math.abs(Math.sin(2 * Math.PI * turn)));
  context.fillStyle = "#fff";
  context.beginPath();
  context.arc(x, y, 46, 0, 2 * Math.PI);
  context.fill();
  context.textAlign = "center";
  context.font = "700 44px system-ui, sans-serif";
  context.fillText(`from ${sender}`, WIDTH / 2, 120, WIDTH - 40);
  context.font = "400 36px system-ui, sans-serif";
  context.fillText(time, WIDTH / 2, 176);
}
