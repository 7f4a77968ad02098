/**
 * The process of the app on a phone: a frame of its own. Whoever removes it kills the app in whatever it does.
 *
 * @module
 */

import { listen, say } from "./bridge.js";
import { make } from "./elements.js";

/** An app that runs, from its start until it is killed. */
export class AppFrame {
  #frame;
  #begin;
  #hear;
  #end;
  /** Whether it has loaded, and takes messages. */
  #loaded = false;
  /** @type {import("./bridge.js").ToApp[]} */
  #waiting = [];

  /**
   * @param {Element} host where its screen is
   * @param {string} title
   * @param {object} phone
   * @param {() => import("./bridge.js").Begin} phone.begin what it is told first, each time it loads
   * @param {(message: import("./bridge.js").ToPhone) => void} phone.hear told of what it says
   */
  constructor(host, title, { begin, hear }) {
    this.#begin = begin;
    this.#hear = hear;
    this.#frame = make("iframe", "");
    this.#frame.title = title;
    this.#frame.allow = "camera; microphone; autoplay";
    this.#frame.src = "/web/demo/app.html";
    this.#end = listen(() => this.#frame.contentWindow, (/** @type {import("./bridge.js").ToPhone} */ message) => {
      if (message.type === "loaded") this.#start();
      this.#hear(message);
    });
    host.append(this.#frame);
  }

  /**
   * Tell it something, as soon as it has loaded.
   *
   * @param {import("./bridge.js").ToApp} message
   */
  tell(message) {
    const window = this.#frame.contentWindow;
    if (this.#loaded && window !== null) say(window, message);
    else this.#waiting.push(message);
  }

  /** End it, here and now. */
  kill() {
    this.#end();
    this.#frame.remove();
  }

  #start() {
    this.#loaded = true;
    this.tell(this.#begin());
    for (const message of this.#waiting.splice(0)) this.tell(message);
  }
}
