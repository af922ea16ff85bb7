#!/usr/bin/env bash
# A sparse file in a layer: GNU tar writes it in the pax format ("GNU sparse 1.0"), read by Python's tarfile and by the npm packages
# tar 7.5.23 and tar-stream 3.2.2.
#
# Guess: a library that reads pax headers either gives the file as it was, or says that it does not know sparse files.
# Seen:  Python gives the file. Both npm packages give another file without an error: its name is GNUSparseFile.<pid>/hole, and its
#        content is the map of the holes followed by the blocks with data.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-audit --no-fund --cache "$work/cache" tar@7.5.23 tar-stream@3.2.2

truncate --size 1M hole
printf hello | dd of=hole bs=1 seek=524288 conv=notrunc status=none
tar --format=posix --sparse -cf layer.tar hole

cat >read.py <<'EOF'
import tarfile
with tarfile.open("layer.tar") as layer:
    for member in layer:
        print("tarfile    ", member.name, len(layer.extractfile(member).read()))
EOF
cat >read.js <<'EOF'
const fs = require('fs'), tar = require('tar'), stream = require('tar-stream');
const show = (library, name, size) => console.log(library.padEnd(11), name.replace(/^\.\//, '').replace(/File\.\d+/, 'File.<pid>'), size);

fs.mkdirSync('out');
tar.extract({ file: 'layer.tar', cwd: 'out', sync: true });
for (const name of fs.readdirSync('out', { recursive: true })) {
  const found = fs.statSync('out/' + name);
  if (found.isFile()) show('tar', name, found.size);
}
const extract = stream.extract();
extract.on('entry', (header, content, next) => {
  let size = 0;
  content.on('data', chunk => { size += chunk.length; });
  content.on('end', () => { show('tar-stream', header.name, size); next(); });
});
extract.end(fs.readFileSync('layer.tar'));
EOF

tar --version | sed -n 1p
python3 --version
npm ls --depth 0 | grep '── '
echo "expected: hole 1048576 from each, or an error"
{ python3 read.py; node read.js; } | tee seen
diff - seen <<'EOF' || { echo "the behaviour has changed"; exit 1; }
tarfile     hole 1048576
tar         GNUSparseFile.<pid>/hole 4608
tar-stream  GNUSparseFile.<pid>/hole 4608
EOF
