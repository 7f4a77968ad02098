/** The story beside the phones: what to try, and what happens. @module */

import { copyOf, find, icon, make } from "./elements.js";

/** @typedef {"sent" | "viewed" | "tapped" | "reconnected" | "started" | "reinstalled"} Event */

const MOST = 12;

/** @type {readonly (readonly [Event, string])[]} */
const TRIES = [
  ["sent", "Send a sample from Alice."],
  ["viewed", "Play it on Bob's phone, and watch Alice's."],
  ["tapped", "Put Bob in the background and send again. Tap what appears on his lock screen."],
  ["reconnected", "Cut Bob's network, send, and bring it back."],
  ["started", "Kill an app, even while it sends. Start it again: nothing is missing."],
  ["reinstalled", "Reinstall an app: what is in transit comes back."],
];

/** What is told. */
export class Story {
  element = copyOf("story");
  #told;
  /** @type {Map<Event, HTMLElement>} */
  #tries = new Map();

  /** @param {{ tries: boolean }} options whether there is something to try: with two phones there is */
  constructor({ tries }) {
    this.#told = find(this.element, ".told ol", HTMLOListElement);
    find(this.element, ".tries", HTMLElement).hidden = !tries;
    const list = find(this.element, ".tries ol", HTMLOListElement);
    for (const [number, [event, text]] of TRIES.entries()) {
      const item = make("li", "", make("span", "tick", String(number + 1)), make("span", "", text));
      this.#tries.set(event, item);
      list.append(item);
    }
    this.#markNext();
  }

  /**
   * Tell what happened on somebody's phone.
   *
   * @param {string} name of the person
   * @param {Event | null} event what it is among the things to try, if it is one
   * @param {string} sentence
   */
  tell(name, event, sentence) {
    const item = make("li", "", sentence);
    item.dataset.person = name;
    this.#told.prepend(item);
    this.#told.children[MOST]?.remove();
    if (event !== null) this.#tick(event);
  }

  /** @param {Event} event */
  #tick(event) {
    const item = this.#tries.get(event);
    if (item === undefined || item.classList.contains("done")) return;
    item.classList.add("done");
    find(item, ".tick", HTMLElement).replaceChildren(icon("check"), make("span", "unseen", "done"));
    this.#markNext();
  }

  #markNext() {
    const items = [...this.#tries.values()];
    const next = items.find((item) => !item.classList.contains("done"));
    for (const item of items) item.classList.toggle("next", item === next);
  }
}
