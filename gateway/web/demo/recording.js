/** Turns what a stream shows into a video. @module */

/** What browsers record, and most of them play: the first that this one can. */
const TYPES = ["video/mp4;codecs=avc1.42E01E,mp4a.40.2", "video/webm;codecs=vp8,opus", "video/webm", "video/mp4"];

const TICK_MS = 100;

/**
 * Record a stream, until the signal aborts or so many seconds are over. The video has a bare type.
 *
 * @param {MediaStream} stream
 * @param {number} seconds
 * @param {AbortSignal} stop
 * @param {(part: number) => void} progress from 0 to 1
 * @returns {Promise<Blob>}
 */
export async function record(stream, seconds, stop, progress) {
  const mimeType = TYPES.find((type) => MediaRecorder.isTypeSupported(type));
  const recorder = new MediaRecorder(stream, { mimeType, videoBitsPerSecond: 1_200_000 });
  /** @type {Blob[]} */
  const pieces = [];
  recorder.ondataavailable = ({ data }) => pieces.push(data);
  const began = performance.now();
  const ticking = setInterval(() => progress(Math.min((performance.now() - began) / 1000 / seconds, 1)), TICK_MS);
  const over = AbortSignal.any([stop, AbortSignal.timeout(seconds * 1000)]);
  try {
    await new Promise((resolve, reject) => {
      recorder.onstop = resolve;
      recorder.onerror = reject;
      over.addEventListener("abort", () => recorder.state !== "inactive" && recorder.stop());
      recorder.start();
    });
  } finally {
    clearInterval(ticking);
  }
  return new Blob(pieces, { type: recorder.mimeType.split(";")[0] });
}
