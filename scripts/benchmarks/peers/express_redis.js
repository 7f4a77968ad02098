// The plainest backend in Node that does the whole job: a status change in, kept in Redis, both users' packets out.
//
//   node express_redis.js PORT REDIS_PORT SECRET ws|socketio
//
// in:<user> and out:<user> are hashes of what is in transit to and from that user, by video. Redis answers the write when
// it is as durable as its appendfsync says, and the call is answered after that. Packets are published to the peer: on
// user:<user> for ws, or by @socket.io/redis-emitter. Two statuses of one video at the same moment may overtake each other
// here: a script in Redis would end that, and cost more.
'use strict';

const express = require('express');
const Redis = require('ioredis');
const jwt = require('jsonwebtoken');
const { Emitter } = require('@socket.io/redis-emitter');

const [port, redisPort, secret, peer] = process.argv.slice(2);
const redis = new Redis({ host: '127.0.0.1', port: Number(redisPort) });
const emitter = new Emitter(redis);
const ranks = { uploaded: 0, notified: 1, downloaded: 2, viewed: 3 };

function authorized(request, response, next) {
  const token = (request.get('authorization') || '').replace(/^Bearer /, '');
  try {
    request.user = jwt.verify(token, secret, { algorithms: ['HS256'] }).sub;
  } catch {
    return response.status(401).json({ error: 'unauthorized' });
  }
  next();
}

function publish(user, packet) {
  if (peer === 'socketio') emitter.to(`user:${user}`).emit('info', packet);
  else redis.publish(`user:${user}`, JSON.stringify(packet));
}

// Writes both users' sides in one transaction, and answers everything that is in transit for both.
async function advance(video) {
  const text = JSON.stringify(video);
  const [version, , , toRecipient, fromRecipient, toSender, fromSender] = await redis
    .multi()
    .incr('version')
    .hset(`in:${video.recipient_id}`, video.video_id, text)
    .hset(`out:${video.sender_id}`, video.video_id, text)
    .hvals(`in:${video.recipient_id}`)
    .hvals(`out:${video.recipient_id}`)
    .hvals(`in:${video.sender_id}`)
    .hvals(`out:${video.sender_id}`)
    .exec();
  const packet = (user, incoming, outgoing) => ({
    type: 'info',
    client_id: user,
    version: version[1],
    outgoing: outgoing[1].map(JSON.parse),
    incoming: incoming[1].map(JSON.parse),
  });
  publish(video.recipient_id, packet(video.recipient_id, toRecipient, fromRecipient));
  publish(video.sender_id, packet(video.sender_id, toSender, fromSender));
}

const app = express();
app.disable('x-powered-by');
app.post('/v1/videos/:video/status', authorized, express.json(), async (request, response) => {
  const { status } = request.body;
  if (!(status in ranks)) return response.status(422).json({ error: 'no such status' });
  const stored = await redis.hget(`in:${request.user}`, request.params.video);
  if (!stored) return response.status(404).json({ error: 'no such video' });
  const video = JSON.parse(stored);
  if (ranks[status] > ranks[video.status]) await advance({ ...video, status });
  response.json({ result: 'ok' });
});
const server = app.listen({ port: Number(port), host: '127.0.0.1', backlog: 4096 });
server.keepAliveTimeout = 75_000;
process.on('SIGTERM', () => process.exit(0));
