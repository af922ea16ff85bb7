#!/usr/bin/env bash
# A layer in the manner of eStargz (one gzip member for each file; the last member, the footer, is empty), read in Node.js 20 with its own zlib and with
# the npm packages pako 3.0.3 and fflate 0.8.3.
#
# Guess: a library either reads all members, as RFC 1952 (2.2) says, or gives only the first one.
# Seen:  fflate's gunzipSync gives nothing at all, without an error. It takes the size of the whole result from the end of the last member, and the
#        footer says 0; without a footer it gives as many bytes as the last file has. Its streaming class Gunzip reads everything, as zlib and pako do.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-audit --no-fund --cache "$work/cache" fflate@0.8.3 pako@3.0.3

cat >read.mjs <<'EOF'
import zlib from 'node:zlib';
import * as fflate from 'fflate';
import * as pako from 'pako';

const members = [Buffer.alloc(1536, 'a'), Buffer.alloc(1536, 'b'), Buffer.alloc(1024)].map(part => zlib.gzipSync(part));
const footer = zlib.gzipSync(Buffer.alloc(0));
const stream = layer => {
  let size = 0;
  new fflate.Gunzip(chunk => { size += chunk.length; }).push(layer, true);
  return { length: size };
};
const readers = { zlib: zlib.gunzipSync, pako: pako.ungzip, 'fflate.Gunzip': stream, 'fflate.gunzipSync': fflate.gunzipSync };

for (const [title, layer] of [['one member', members[0]], ['three members', Buffer.concat(members)], ['and a footer', Buffer.concat([...members, footer])]]) {
  for (const [name, read] of Object.entries(readers)) {
    console.log(`${title.padEnd(13)} ${name.padEnd(17)} ${read(layer).length}`);
  }
}
EOF

echo "Node.js $(node --version)"
npm ls --depth 0 | grep '── '
echo "expected: 1536 for one member; 4096, or 1536 of the first, for three, with and without a footer"
node read.mjs | tee seen
diff - seen <<'EOF' || { echo "the behaviour has changed"; exit 1; }
one member    zlib              1536
one member    pako              1536
one member    fflate.Gunzip     1536
one member    fflate.gunzipSync 1536
three members zlib              4096
three members pako              4096
three members fflate.Gunzip     4096
three members fflate.gunzipSync 1024
and a footer  zlib              4096
and a footer  pako              4096
and a footer  fflate.Gunzip     4096
and a footer  fflate.gunzipSync 0
EOF
