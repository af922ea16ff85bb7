#!/usr/bin/env bash
# A layer of several zstd frames, as zstd:chunked writes them (one frame or more for each file), read with PyPI's zstandard 0.25.0.
#
# Guess: `stream_reader`, whose option read_across_frames is False unless set, stops after the first frame; the other ways to read a stream
#        (`copy_stream`, `read_to_iter`) go on to the end, as the zstd program does.
# Seen:  `stream_reader` and `copy_stream` give the whole layer. `read_to_iter` stops after the first frame without an error,
#        and so does `decompress`: of a tar file with three members, one is left, and a valid beginning of a tar file at that.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --no-cache-dir zstandard==0.25.0

cat >frames.py <<'EOF'
import io, tarfile, zstandard

plain = io.BytesIO()
with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as layer:
    for name in ("bin", "etc", "usr"):
        member = tarfile.TarInfo(name)
        member.size = 600
        layer.addfile(member, io.BytesIO(bytes(600)))
plain = plain.getvalue()
member = 512 + 1024  # a header, and 600 bytes in two blocks
parts = plain[:member], plain[member : 2 * member], plain[2 * member :]
compress = zstandard.ZstdCompressor().compress
layer = b"".join(compress(part) for part in parts)


def copy(source):
    target = io.BytesIO()
    zstandard.ZstdDecompressor().copy_stream(source, target)
    return target.getvalue()


readers = {
    "stream_reader": lambda source: zstandard.ZstdDecompressor().stream_reader(source).read(),
    "copy_stream": copy,
    "read_to_iter": lambda source: b"".join(zstandard.ZstdDecompressor().read_to_iter(source)),
    "decompress": lambda source: zstandard.ZstdDecompressor().decompress(source.read()),
}
for name, read in readers.items():
    print(f"{name:<13} {len(read(io.BytesIO(layer)))} of {len(plain)} bytes")
EOF

venv/bin/pip list --disable-pip-version-check 2>/dev/null | grep zstandard
./venv/bin/python frames.py | tee seen
diff - seen <<'EOF' || { echo "the behaviour has changed"; exit 1; }
stream_reader 10240 of 10240 bytes
copy_stream   10240 of 10240 bytes
read_to_iter  1536 of 10240 bytes
decompress    1536 of 10240 bytes
EOF
