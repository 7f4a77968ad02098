/** Plays a received video, full screen. @module */

import { find, write } from "./elements.js";

/** A video has been seen when it was played to its end, or for this long. */
const SEEN_S = 3;

/** Plays one video at a time. */
export class Player {
  #dialog;
  #video;

  /** @param {HTMLDialogElement} dialog */
  constructor(dialog) {
    this.#dialog = dialog;
    this.#video = find(dialog, "video", HTMLVideoElement);
    find(dialog, ".close", HTMLButtonElement).addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => this.#end());
  }

  /**
   * Play a video, with sound where the browser lets it.
   *
   * @param {Blob} blob
   * @param {string} title
   * @param {() => void} seen called once, when the user has seen it
   */
  async play(blob, title, seen) {
    const video = this.#video;
    let told = false;
    const tell = () => {
      if (!told) seen();
      told = true;
    };
    write(find(this.#dialog, "h2", HTMLElement), title);
    video.ontimeupdate = () => video.currentTime >= SEEN_S && tell();
    video.onended = () => {
      tell();
      this.#dialog.close();
    };
    video.muted = false;
    video.src = URL.createObjectURL(blob);
    this.#dialog.showModal();
    await video.play().catch(() => {
      video.muted = true; // who has touched nothing yet is not to be startled: browsers insist on it
      return video.play().catch(() => {});
    });
  }

  #end() {
    const video = this.#video;
    video.onended = video.ontimeupdate = null;
    video.pause();
    URL.revokeObjectURL(video.src);
    video.removeAttribute("src");
    video.load();
  }
}
