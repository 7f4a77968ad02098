// The peer of the benchmark: what one would build in Node. `ws` for the WebSockets, `ioredis` for Redis, a channel for
// each user, one send for each message.
//
//   node ws.js PORT REDIS_PORT
//
// A client connects to /?c=<index> and gets what is published to user:<index>. Like
// most such servers it shakes hands first and subscribes then: wait for the subscriptions before you publish.
'use strict';

const http = require('node:http');
const Redis = require('ioredis');
const { WebSocketServer } = require('ws');

const [port, redisPort] = process.argv.slice(2);
const redis = new Redis({ host: '127.0.0.1', port: Number(redisPort) });
const server = http.createServer((request, response) => response.writeHead(404).end());
const sockets = new WebSocketServer({ server, perMessageDeflate: false });

// The sockets of every channel: the first one subscribes, the last one unsubscribes.
const followers = new Map();

function follow(channel, socket) {
  const others = followers.get(channel);
  if (others) {
    others.add(socket);
    return;
  }
  followers.set(channel, new Set([socket]));
  redis.subscribe(channel).catch(fail);
}

function leave(channel, socket) {
  const others = followers.get(channel);
  others.delete(socket);
  if (others.size > 0) return;
  followers.delete(channel);
  redis.unsubscribe(channel).catch(fail);
}

// A message stays the Buffer that Redis sent; as text, since that is what clients get.
function deliver(channel, message) {
  const interested = followers.get(channel.toString('latin1'));
  if (!interested) return;
  for (const socket of interested) socket.send(message, { binary: false });
}

function fail(error) {
  console.error(error);
  process.exit(1);
}

sockets.on('connection', (socket, request) => {
  const channel = 'user:' + new URL(request.url, 'http://peer').searchParams.get('c');
  follow(channel, socket);
  socket.on('close', () => leave(channel, socket));
  socket.on('error', () => socket.terminate());
});
redis.on('messageBuffer', deliver);
redis.on('error', fail);
redis.once('ready', () => {
  server.listen({ port: Number(port), host: '127.0.0.1', backlog: 4096 });
});
process.on('SIGTERM', () => process.exit(0));
