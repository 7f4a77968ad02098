/** The dialog in which a video is made: from the camera, or drawn as a sample. @module */

import { find, write } from "./elements.js";
import { record } from "./recording.js";
import { sampleStream } from "./sample.js";

const LONGEST_S = 10;
const SAMPLE_S = 2;

/** Says to the user why there is no video, in a sentence. */
export class NoCamera extends Error {
  name = "NoCamera";
}

/** Makes videos. */
export class Camera {
  #dialog;
  #video;
  #title;
  #progress;
  #stop;

  /** @param {HTMLDialogElement} dialog */
  constructor(dialog) {
    this.#dialog = dialog;
    this.#video = find(dialog, "video", HTMLVideoElement);
    this.#title = find(dialog, "h2", HTMLElement);
    this.#progress = find(dialog, "progress", HTMLProgressElement);
    this.#stop = find(dialog, ".stop", HTMLButtonElement);
    find(dialog, ".cancel", HTMLButtonElement).addEventListener("click", () => dialog.close());
  }

  /**
   * A video of at most 10 s, from the camera, once its user has looked at it; null where they changed their mind.
   * Throws NoCamera.
   */
  async film() {
    const stream = await cameraStream();
    return this.#during(async (closed) => {
      this.#stop.hidden = false;
      const video = await this.#record(stream, LONGEST_S, "Recording", closed);
      if (closed.aborted || !(await this.#accepted(video, closed))) return null;
      return video;
    }, stream);
  }

  /**
   * A sample of two seconds; null where its user changed their mind.
   *
   * @param {string} sender
   */
  async sample(sender) {
    const stream = sampleStream(sender);
    return this.#during(async (closed) => {
      this.#stop.hidden = true;
      const video = await this.#record(stream, SAMPLE_S, "Making a clip", closed);
      return closed.aborted ? null : video;
    }, stream);
  }

  /**
   * What comes of `work` while the dialog is open; whatever comes of it, stream and dialog end.
   *
   * @param {(closed: AbortSignal) => Promise<Blob | null>} work
   * @param {MediaStream} stream
   */
  async #during(work, stream) {
    const closed = new AbortController();
    this.#dialog.onclose = () => this.#dialog.open || closed.abort(); // it is told late: another may be open by then
    this.#dialog.showModal();
    try {
      return await work(closed.signal);
    } finally {
      for (const track of stream.getTracks()) track.stop();
      this.#video.srcObject = null;
      this.#dialog.close();
    }
  }

  /**
   * @param {MediaStream} stream
   * @param {number} seconds
   * @param {string} title
   * @param {AbortSignal} closed
   */
  async #record(stream, seconds, title, closed) {
    const stop = new AbortController();
    write(this.#title, title);
    write(this.#stop, "Stop");
    this.#stop.onclick = () => stop.abort();
    this.#progress.hidden = false;
    this.#video.srcObject = stream;
    void this.#video.play().catch(() => {}); // a picture that stands still is no reason not to record
    const over = AbortSignal.any([closed, stop.signal]);
    return record(stream, seconds, over, (part) => (this.#progress.value = part));
  }

  /**
   * Whether the user sends what they see.
   *
   * @param {Blob} video
   * @param {AbortSignal} closed
   */
  async #accepted(video, closed) {
    const url = URL.createObjectURL(video);
    write(this.#title, "Send it?");
    write(this.#stop, "Send");
    this.#progress.hidden = true;
    this.#video.srcObject = null;
    this.#video.src = url;
    this.#video.loop = true;
    void this.#video.play().catch(() => {});
    try {
      return await new Promise((resolve) => {
        this.#stop.onclick = () => resolve(true);
        closed.addEventListener("abort", () => resolve(false));
      });
    } finally {
      this.#video.removeAttribute("src");
      this.#video.loop = false;
      URL.revokeObjectURL(url);
    }
  }
}

/** @returns {Promise<MediaStream>} without sound where there is no microphone */
async function cameraStream() {
  if (!navigator.mediaDevices) throw new NoCamera("Browsers record only on localhost and over HTTPS. Choose a file.");
  const video = { facingMode: "user", width: { ideal: 640 } };
  try {
    return await navigator.mediaDevices.getUserMedia({ video, audio: true }).catch((error) => {
      if (error.name !== "NotFoundError") throw error;
      return navigator.mediaDevices.getUserMedia({ video });
    });
  } catch (error) {
    throw new NoCamera(reasonOf(error instanceof Error ? error.name : ""));
  }
}

/** @param {string} name of what getUserMedia threw */
function reasonOf(name) {
  switch (name) {
    case "NotAllowedError":
      return "This page may not use the camera. Allow it, choose a file, or send a sample.";
    case "NotFoundError":
      return "There is no camera. Choose a file, or send a sample.";
    default:
      return "The camera does not start. Choose a file, or send a sample.";
  }
}
