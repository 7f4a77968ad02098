/** The videos that this phone sends: each with the steps that it has come, as they happen. @module */

import { copyOf, find, write } from "./elements.js";
import { titleOf } from "./people.js";

/** @typedef {Pick<import("../client.js").Change, "key" | "peer_id" | "status" | "at" | "reason">} Video */

const MOST = 6;

const STEPS = ["uploaded", "notified", "downloaded", "viewed"];

/** Those that ended otherwise than they should. */
const BAD = ["failed", "expired"];

/** @type {{ [reason: string]: string }} */
const REFUSALS = {
  too_large: "it is too large for this gateway",
  invalid: "it takes no files of this type",
  forbidden: "nobody in the demo has that name",
  too_many_in_transit: "too many videos are on their way",
};

/** A list of them, newest first. */
export class SentList {
  #list;
  #forget;
  /** @type {Map<string, HTMLElement>} */
  #items = new Map();

  /**
   * @param {HTMLUListElement} list
   * @param {(key: string) => void} forget the user deletes a video
   */
  constructor(list, forget) {
    this.#list = list;
    this.#forget = forget;
  }

  /**
   * How far a video has come.
   *
   * @param {Video} video
   */
  show(video) {
    const item = this.#items.get(video.key) ?? this.#add(video);
    const reached = STEPS.indexOf(video.status);
    item.dataset.status = video.status;
    if (BAD.includes(video.status)) item.dataset.end = "bad";
    for (const [index, step] of item.querySelectorAll(".steps li").entries()) {
      step.classList.toggle("reached", index <= reached);
      step.classList.toggle("newest", index === reached);
    }
    write(find(item, ".state", HTMLElement), described(video));
    find(item, "progress", HTMLElement).hidden = video.status !== "queued";
    find(item, ".steps", HTMLElement).hidden = reached < 0 && video.status !== "queued";
  }

  /**
   * So much of a video is uploaded.
   *
   * @param {string} key
   * @param {number} part from 0 to 1
   */
  progress(key, part) {
    const item = this.#items.get(key);
    if (item) find(item, "progress", HTMLProgressElement).value = part;
  }

  /** @param {Video} video */
  #add({ key, peer_id }) {
    const item = copyOf("sent-item");
    const who = `To ${titleOf(peer_id)}`;
    find(item, ".who", HTMLElement).textContent = who;
    find(item, ".delete .unseen", HTMLElement).textContent = `Delete the video ${who.toLowerCase()}`;
    find(item, ".delete", HTMLButtonElement).addEventListener("click", () => {
      this.#remove(key);
      this.#forget(key);
    });
    this.#items.set(key, item);
    this.#list.prepend(item);
    if (this.#items.size > MOST) this.#remove([...this.#items.keys()][0]);
    return item;
  }

  /** @param {string} key */
  #remove(key) {
    this.#items.get(key)?.remove();
    this.#items.delete(key);
  }
}

/** @param {Video} video */
function described({ peer_id, status, at, reason }) {
  const to = titleOf(peer_id);
  const time = at ? ` · ${new Date(at).toLocaleTimeString([], { hour12: false })}` : "";
  switch (status) {
    case "queued":
      return "On its way to the gateway";
    case "uploaded":
      return `The gateway has it${time}`;
    case "notified":
      return `${to} was told${time}`;
    case "downloaded":
      return `It is on ${to}'s phone${time}`;
    case "viewed":
      return `${to} has watched it${time}`;
    case "expired":
      return `It expired: nobody watched it${time}`;
    case "complete":
      return "Replaced by a newer one";
    default:
      return `The gateway refused it: ${REFUSALS[reason ?? ""] ?? reason ?? "no reason was given"}`;
  }
}
