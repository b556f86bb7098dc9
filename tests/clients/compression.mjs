// A web server that passes everything on to another, and compresses by Express's `compression` what it may.
//
//   node compression.mjs HOST PORT
//
// Its first line says where it listens.

import compression from "compression";
import http from "node:http";

const [host, port] = process.argv.slice(2);
const compress = compression();
const server = http.createServer((request, response) => {
  compress(request, response, () => {
    http.get({ host, port, path: request.url, headers: { accept: "text/event-stream" } }, (answer) => {
      const { "transfer-encoding": _, connection: __, ...headers } = answer.headers;
      response.writeHead(answer.statusCode, headers);
      answer.pipe(response);
    }).on("error", () => response.destroy());
  });
});
server.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ port: server.address().port })));
