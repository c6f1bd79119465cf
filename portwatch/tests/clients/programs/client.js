// Requests without keepAlive to a server and to a port where nobody listens; then says what it saw.
const fs = require('fs');
const http = require('http');

const [server, closed, count, told] = process.argv.slice(2);
const agent = new http.Agent({ keepAlive: false });

function get(url) {
  return new Promise((resolve) => {
    const request = http.get(url, { agent }, (response) => {
      response.resume();
      response.on('end', () => resolve('ok'));
    });
    request.on('error', (error) => resolve(error.code));
  });
}

function expect(answer, wanted) {
  if (answer !== wanted) throw new Error(`${answer} instead of ${wanted}`);
}

async function main() {
  let refused = 0;
  for (let made = 0; made < Number(count); made += 8) {
    const answers = await Promise.all(Array.from({ length: 8 }, () => get(server)));
    answers.forEach((answer) => expect(answer, 'ok'));
    expect(await get(closed), 'ECONNREFUSED');
    refused += 1;
  }
  const comm = fs.readFileSync('/proc/thread-self/comm', 'utf8').trim();
  fs.writeFileSync(told, JSON.stringify({ pid: process.pid, comm, refused }));
  process.exit(4);
}

main();
