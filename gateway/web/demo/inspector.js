/** The table under a phone: every packet that came in, so that one sees that they are the same. @module */

import { find, make } from "./elements.js";

const MOST = 50;

/**
 * A packet that came in. `channel`: by which way. `hash`: of its text, null where it cannot be computed. `fate`: what
 * became of it. A push without a packet has 0 bytes.
 *
 * @typedef {{
 *   channel: string,
 *   version: number,
 *   bytes: number,
 *   hash: string | null,
 *   fate: "applied" | "dropped" | "shown",
 * }} Line
 */

/** The newest of them, newest first. */
export class Inspector {
  #rows;
  #none;

  /** @param {Element} root */
  constructor(root) {
    this.#rows = find(root, "tbody", HTMLTableSectionElement);
    this.#none = find(root, ".none", HTMLElement);
  }

  /** @param {Line} line */
  add({ channel, version, bytes, hash, fate }) {
    const row = make(
      "tr",
      "",
      make("td", "channel", channel),
      make("td", "version", String(version)),
      make("td", "bytes", bytes === 0 ? "–" : String(bytes)),
      make("td", "hash", ...(hash === null ? ["–"] : [chip(hash), hash])),
      make("td", "fate", fate),
    );
    this.#rows.prepend(row);
    this.#rows.rows[MOST]?.remove();
    this.#none.hidden = true;
  }
}

/**
 * A spot in a colour that equal texts share.
 *
 * @param {string} hash
 */
function chip(hash) {
  const spot = make("span", "chip");
  spot.style.setProperty("--hue", String(Math.round((parseInt(hash.slice(0, 4), 16) / 0xffff) * 360)));
  return spot;
}
