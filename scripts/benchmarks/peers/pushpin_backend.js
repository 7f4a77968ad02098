// What stands behind Pushpin: it answers WebSocket events that come as HTTP requests. Whoever opens a connection is
// subscribed to a channel of its own; Pushpin holds the connection and sends what is published there.
//
//   node pushpin_backend.js PORT
'use strict';

const http = require('node:http');

const event = (type, content) =>
  content === undefined ? `${type}\r\n` : `${type} ${Buffer.byteLength(content).toString(16)}\r\n${content}\r\n`;

const server = http.createServer((request, response) => {
  const channel = 'user-' + new URL(request.url, 'http://backend').searchParams.get('c');
  const chunks = [];
  request.on('data', (chunk) => chunks.push(chunk));
  request.on('end', () => {
    const opens = Buffer.concat(chunks).toString().startsWith('OPEN\r\n');
    const body = opens ? event('OPEN') + event('TEXT', 'c:' + JSON.stringify({ type: 'subscribe', channel })) : '';
    response.writeHead(200, {
      'Content-Type': 'application/websocket-events',
      'Sec-WebSocket-Extensions': 'grip; message-prefix=""',
      'Content-Length': Buffer.byteLength(body),
    });
    response.end(body);
  });
});
server.keepAliveTimeout = 60_000;
server.listen({ port: Number(process.argv[2]), host: '127.0.0.1', backlog: 4096 });
process.on('SIGTERM', () => process.exit(0));
