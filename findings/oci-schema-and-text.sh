#!/usr/bin/env bash
# The JSON schema of image manifests that OCI publishes in its own module (github.com/opencontainers/image-spec v1.1.1), run by PyPI's jsonschema 4.26.0,
# against the text of the specification in the same module.
#
# Guess: the schema says what the text says: "layers SHOULD have at least one entry" allows none, and mediaType MUST be that of a manifest.
# Seen:  the opposite for both. The schema refuses a manifest with no layers, and accepts a manifest that calls itself an index; it also accepts a
#        layer of -1 bytes and a sha256 digest of three digits.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export GOMODCACHE="$work/mod" GOFLAGS="-modcacherw"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --no-cache-dir jsonschema==4.26.0
go mod download github.com/opencontainers/image-spec@v1.1.1

cat >check.py <<'EOF'
import json, pathlib, sys
from jsonschema import Draft4Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4

files = {path.name: json.loads(path.read_text()) for path in pathlib.Path(sys.argv[1]).glob("*.json")}
# The schemas name each other by file; their own ids lie in two folders.
registry = Registry().with_resources(
    ("https://opencontainers.org/schema/" + folder + name, Resource.from_contents(schema, default_specification=DRAFT4))
    for name, schema in files.items() for folder in ("", "image/")
)
manifest_schema = Draft4Validator(files["image-manifest-schema.json"], registry=registry)


def blob(**changes):
    return {"mediaType": "application/vnd.oci.image.layer.v1.tar", "size": 1, "digest": "sha256:" + "a" * 64, **changes}


def check(title, **changes):
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": blob(), "layers": [blob()], **changes}
    print(f"{title:<22}", "valid" if manifest_schema.is_valid(manifest) else "refused")


check("one layer")
check("no mediaType of a blob", layers=[{"size": 1, "digest": blob()["digest"]}])
check("no layers", layers=[])
check("mediaType of an index", mediaType="application/vnd.oci.image.index.v1+json")
check("size -1", layers=[blob(size=-1)])
check("digest sha256:abc", layers=[blob(digest="sha256:abc")])
EOF

spec="$GOMODCACHE/github.com/opencontainers/image-spec@v1.1.1"
echo "image-spec v1.1.1; $(venv/bin/pip list --disable-pip-version-check 2>/dev/null | grep '^jsonschema ')"
grep -n 'SHOULD have at least one entry' "$spec/manifest.md"
grep -n 'this field MUST contain the media type `application/vnd.oci.image.manifest' "$spec/manifest.md"
echo "expected: valid, refused, valid, refused, refused, refused"
venv/bin/python check.py "$spec/schema" | tee seen
diff - seen <<'EOF' || { echo "the behaviour has changed"; exit 1; }
one layer              valid
no mediaType of a blob refused
no layers              refused
mediaType of an index  valid
size -1                valid
digest sha256:abc      valid
EOF
