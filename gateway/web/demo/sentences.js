/** What the page says of what happens, in one sentence each. @module */

import { titleOf } from "./people.js";

/** @param {string} who */
export const background = (who) => `${who}'s app goes to the background and closes its socket.`;

/** @param {string} who */
export const killed = (who) => `${who}'s app is killed, in the middle of whatever it did.`;

/** @param {string} who */
export const tapped = (who) => `${who} taps the push: the app applies its packet, and syncs.`;

/** @param {string} who */
export const reinstalled = (who) =>
  `${who}'s app is new: nothing stored, another device id. Its first packet brings everything that is in transit.`;

/** @param {string} who */
export const pushKept = (who) =>
  `The gateway heard nothing from ${who}'s phone and sends a push. The push service keeps it.`;

/** @param {string} who */
export const pushedToApp = (who) => `A push arrives at ${who}'s app, which syncs.`;

/**
 * @param {string} who
 * @param {boolean} alive
 */
export const pushed = (who, alive) =>
  `${who}'s app is ${alive ? "in the background" : "dead"}: the gateway sends a push.`;

/** @param {string} who */
export const started = (who) => `${who}'s app starts, goes on where it was, and syncs.`;

/** @param {string} who */
export const opened = (who) => `${who}'s app is in the foreground and opens a socket.`;

/**
 * @param {string} who
 * @param {boolean} online
 */
export const network = (who, online) =>
  online
    ? `${who}'s phone has a network again: one packet says all that it missed.`
    : `${who}'s phone has no network. The gateway cannot know: the socket just falls silent.`;

/**
 * What a lock screen says of the app, and of the button that opens it.
 *
 * @param {boolean} dead
 * @param {boolean} installing
 */
export function lockScreen(dead, installing) {
  if (installing) return { state: "The app is being installed.", launch: "Open the app" };
  return dead
    ? { state: "The app is dead. Pushes still arrive.", launch: "Start the app" }
    : { state: "The app is in the background. A push wakes it.", launch: "Open the app" };
}

/**
 * A video that `who` sends has come further.
 *
 * @param {string} who
 * @param {{ status: string, peer: string }} video
 * @param {boolean} online
 */
export function moved(who, { status, peer }, online) {
  const to = titleOf(peer);
  switch (status) {
    case "queued":
      return online ? `${who} sends ${to} a video.` : `${who} sends ${to} a video: it waits for the network.`;
    case "uploaded":
      return `The gateway has ${who}'s video.`;
    case "notified":
      return `${who} hears: ${to} was told.`;
    case "downloaded":
      return `${who} hears: it is on ${to}'s phone.`;
    case "viewed":
      return `${who} hears: ${to} has watched it.`;
    case "complete":
      return `${who}'s earlier video is replaced by the newer one.`;
    case "expired":
      return `${who} hears: the video has expired.`;
    default:
      return `${who}'s video is not sent.`;
  }
}
