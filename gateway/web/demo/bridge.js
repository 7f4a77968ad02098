/**
 * What a phone and the app on it say to one another, across the border of the app's frame.
 *
 * @module
 */

/**
 * From the phone: who the app is for, which is in the background at first; that it is in the foreground, or no more;
 * that there is a network, or none; that its user opened a push; the token by which the push service finds it, where
 * that is a new one.
 *
 * @typedef {{
 *   type: "begin",
 *   name: string,
 *   room: string,
 *   deviceId: string,
 *   pushToken: string,
 *   recipient: string,
 *   chooses: boolean,
 *   online: boolean,
 * }} Begin
 * @typedef {{ type: "foreground", active: boolean }} Foreground
 * @typedef {{ type: "network", online: boolean }} NetworkChanged
 * @typedef {{ type: "push", payload: { [member: string]: unknown } }} Pushed
 * @typedef {{ type: "register", pushToken: string }} Register
 * @typedef {Begin | Foreground | NetworkChanged | Pushed | Register} ToApp
 */

/**
 * From the app: it has loaded; its store is in use by another tab; the gateway knows how to wake it; a packet came in;
 * a video that it sends has a new status; so many videos wait for its user.
 *
 * @typedef {{ type: "loaded" } | { type: "elsewhere" } | { type: "registered" }} Said
 * @typedef {{ type: "heard" } & import("./inspector.js").Line} Heard
 * @typedef {{ type: "moved", status: string, peer: string }} Moved
 * @typedef {{ type: "waiting", videos: number }} Waiting
 * @typedef {Said | Heard | Moved | Waiting} ToPhone
 */

/**
 * Have every message from that window, of our own origin, handled. Returns what ends that.
 *
 * @template {ToApp | ToPhone} Message
 * @param {() => Window | null} from
 * @param {(message: Message) => void} handle
 * @returns {() => void}
 */
export function listen(from, handle) {
  /** @param {MessageEvent} event */
  const listener = ({ origin, source, data }) => {
    if (origin === location.origin && source !== null && source === from() && typeof data?.type === "string") {
      handle(data);
    }
  };
  addEventListener("message", listener);
  return () => removeEventListener("message", listener);
}

/**
 * Say something to a window of our own origin.
 *
 * @param {Window} to
 * @param {ToApp | ToPhone} message
 */
export function say(to, message) {
  to.postMessage(message, location.origin);
}
