// The peer written for Node: answers every request with what it understood. `node server.js PORT`
const http = require("http");
http.createServer((request, response) => {
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    const body = Buffer.concat(parts).toString("base64");
    response.setHeader("Content-Type", "application/json");
    response.end(JSON.stringify({ method: request.method, target: request.url, body }));
  });
}).listen(Number(process.argv[2]), "127.0.0.1");
