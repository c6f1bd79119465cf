// Requests one after the other, with or without an agent that keeps its connection: HABIT URL.
const http = require('http');

const [habit, url] = process.argv.slice(2);
const agent = new http.Agent({ keepAlive: habit === 'keeps' });

function get() {
  return new Promise((resolve, reject) => {
    http.get(url, { agent }, (response) => {
      response.resume();
      response.on('end', resolve);
    }).on('error', reject);
  });
}

async function main() {
  for (let made = 0; made < 60; made += 1) await get();
  process.exit(0);
}

main();
