/**
 * An installation of the app on a phone: what outlives the app's own life, and ends when it is installed afresh.
 *
 * @module
 */

import { hex } from "./fingerprint.js";

/**
 * `deviceId`: who the app is to the gateway. `pushToken`: where the phone's push service finds it; it is the phone's,
 * so that the gateway moves it to the new device where the app is installed afresh. `registered`: whether the gateway
 * has heard of it.
 *
 * @typedef {Readonly<{ deviceId: string, pushToken: string, registered: boolean }>} Installation
 */

/**
 * The installation of that client on this phone, which is made where there is none.
 *
 * @param {string} clientId
 * @returns {Installation}
 */
export function installed(clientId) {
  const kept = localStorage.getItem(placeOf(clientId));
  return kept === null ? keep(clientId, fresh(random(32))) : JSON.parse(kept);
}

/**
 * The gateway knows of it.
 *
 * @param {string} clientId
 */
export function markRegistered(clientId) {
  return keep(clientId, { ...installed(clientId), registered: true });
}

/**
 * The gateway does not know it any more: the push service gives it another token, so that it is registered anew.
 *
 * @param {string} clientId
 */
export function forget(clientId) {
  return keep(clientId, { ...installed(clientId), pushToken: random(32), registered: false });
}

/**
 * Install the app afresh: everything that it had stored is gone, its device id too. The app must not run.
 *
 * @param {string} clientId
 */
export async function reinstall(clientId) {
  const names = (await indexedDB.databases()).map(({ name = "" }) => name);
  await Promise.all(names.filter((name) => name.endsWith(` ${clientId}`)).map(removed));
  return keep(clientId, fresh(installed(clientId).pushToken));
}

/** @param {string} name */
function removed(name) {
  return new Promise((resolve, reject) => {
    const request = indexedDB.deleteDatabase(name);
    request.onsuccess = resolve;
    request.onerror = () => reject(request.error);
  });
}

/**
 * @param {string} pushToken
 * @returns {Installation}
 */
function fresh(pushToken) {
  return { deviceId: `phone-${random(4)}`, pushToken, registered: false };
}

/**
 * @param {string} clientId
 * @param {Installation} installation
 */
function keep(clientId, installation) {
  localStorage.setItem(placeOf(clientId), JSON.stringify(installation));
  return installation;
}

/** @param {string} clientId */
const placeOf = (clientId) => `demo.phone.${clientId}`;

/** @param {number} bytes */
const random = (bytes) => hex(crypto.getRandomValues(new Uint8Array(bytes)));
