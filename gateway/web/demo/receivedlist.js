/** The videos that wait for this phone's user. @module */

import { copyOf, find, write } from "./elements.js";
import { titleOf } from "./people.js";

/** A list of them, oldest first. */
export class ReceivedList {
  #list;
  #open;
  /** @type {Map<string, HTMLElement>} */
  #items = new Map();

  /**
   * @param {HTMLUListElement} list
   * @param {(videoId: string, title: string) => void} open the user wants to see a video
   */
  constructor(list, open) {
    this.#list = list;
    this.#open = open;
  }

  /** How many there are. */
  get size() {
    return this.#items.size;
  }

  /**
   * A video is known, and its bytes are being fetched.
   *
   * @param {string} videoId
   * @param {string} senderId
   */
  arrive(videoId, senderId) {
    const item = this.#items.get(videoId) ?? this.#add(videoId, senderId);
    write(find(item, ".state", HTMLElement), "Downloading…");
  }

  /**
   * A video is on this phone.
   *
   * @param {string} videoId
   * @param {string} senderId
   * @param {Blob | null} blob
   */
  ready(videoId, senderId, blob) {
    const item = this.#items.get(videoId) ?? this.#add(videoId, senderId);
    const picture = find(item, "video", HTMLVideoElement);
    if (blob !== null && !picture.src) picture.src = `${URL.createObjectURL(blob)}#t=0.1`;
    find(item, "progress", HTMLElement).hidden = true;
    find(item, ".tile", HTMLButtonElement).disabled = false;
    write(find(item, ".state", HTMLElement), "Tap to play");
  }

  /**
   * So much of a video is here.
   *
   * @param {string} videoId
   * @param {number} part from 0 to 1
   */
  progress(videoId, part) {
    const item = this.#items.get(videoId);
    if (item) find(item, "progress", HTMLProgressElement).value = part;
  }

  /**
   * A video is seen, or ended otherwise.
   *
   * @param {string} videoId
   */
  remove(videoId) {
    const item = this.#items.get(videoId);
    if (item === undefined) return;
    URL.revokeObjectURL(find(item, "video", HTMLVideoElement).src);
    item.remove();
    this.#items.delete(videoId);
  }

  /**
   * @param {string} videoId
   * @param {string} senderId
   */
  #add(videoId, senderId) {
    const item = copyOf("received-item");
    const title = `From ${titleOf(senderId)}`;
    find(item, ".who", HTMLElement).textContent = title;
    find(item, ".tile", HTMLButtonElement).addEventListener("click", () => this.#open(videoId, title));
    this.#items.set(videoId, item);
    this.#list.append(item);
    return item;
  }
}
