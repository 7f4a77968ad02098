// socket.io with its adapter for Redis, as its documentation has it: a room for each user, which whoever publishes
// reaches by what @socket.io/redis-emitter sends. WebSockets only, since long polling is not measured.
//
//   node socketio.js PORT REDIS_PORT
'use strict';

const http = require('node:http');
const Redis = require('ioredis');
const { Server } = require('socket.io');
const { createAdapter } = require('@socket.io/redis-adapter');

const [port, redisPort] = process.argv.slice(2);
const publisher = new Redis({ host: '127.0.0.1', port: Number(redisPort) });
const subscriber = publisher.duplicate();
const server = http.createServer();
const io = new Server(server, { adapter: createAdapter(publisher, subscriber), transports: ['websocket'] });

io.on('connection', (socket) => socket.join(`user:${socket.handshake.query.c}`));
server.listen({ port: Number(port), host: '127.0.0.1', backlog: 4096 });
process.on('SIGTERM', () => process.exit(0));
