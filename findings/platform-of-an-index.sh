#!/usr/bin/env bash
# Which manifest of an OCI index belongs to a platform: containerd/platforms v1.0.0-rc.5 (containerd 2.4), go-containerregistry v0.22.1 (crane)
# and oras-go v2.7.0.
#
# Guess: all three choose the same manifest of a valid index, because the image specification defines the fields of a platform.
# Seen:  asked for linux/arm64/v8, crane's library and ORAS do not find a manifest of linux/arm64, though v8 is the only base variant of arm64;
#        containerd treats both as one. And containerd falls back: to linux/386 on amd64, to linux/arm on arm64, where the others find nothing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export GOMODCACHE="$work/mod" GOFLAGS="-mod=mod -modcacherw -trimpath"
cd "$work"

cat >go.mod <<'EOF'
module finding
go 1.26.0
require (
	github.com/containerd/platforms v1.0.0-rc.5
	github.com/google/go-containerregistry v0.22.1
	oras.land/oras-go/v2 v2.7.0
)
EOF
cat >main.go <<'EOF'
package main

import (
	"bytes"
	"context"
	"fmt"

	"github.com/containerd/platforms"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	oci "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/memory"
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// orasFinds asks ORAS to resolve a tag of an index with one manifest of the platform `has`.
func orasFinds(wants, has oci.Platform) bool {
	ctx, store := context.Background(), memory.New()
	push := func(mediaType, text string) oci.Descriptor {
		desc := content.NewDescriptorFromBytes(mediaType, []byte(text))
		if err := store.Push(ctx, desc, bytes.NewReader([]byte(text))); err != nil {
			panic(err)
		}
		return desc
	}
	image := push(oci.MediaTypeImageManifest, `{"schemaVersion":2,"mediaType":"`+oci.MediaTypeImageManifest+`"}`)
	variant := ""
	if has.Variant != "" {
		variant = `,"variant":"` + has.Variant + `"`
	}
	index := push(oci.MediaTypeImageIndex, fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":%q,"architecture":%q%s}}]}`,
		image.MediaType, image.Digest, image.Size, has.OS, has.Architecture, variant))
	if err := store.Tag(ctx, index, "latest"); err != nil {
		panic(err)
	}
	_, err := oras.Resolve(ctx, store, "latest", oras.ResolveOptions{TargetPlatform: &wants})
	return err == nil
}

func main() {
	for _, pair := range [][2]string{
		{"linux/amd64", "linux/amd64"}, {"linux/amd64", "linux/386"}, {"linux/arm64", "linux/arm/v7"},
		{"linux/arm64", "linux/arm64/v8"}, {"linux/arm64/v8", "linux/arm64"}, {"linux/arm/v7", "linux/arm/v6"}, {"linux/amd64/v3", "linux/amd64"},
	} {
		parts := [2]oci.Platform{}
		for i, text := range pair {
			p := must(v1.ParsePlatform(text)) // Taken apart without containerd's normalization.
			parts[i] = oci.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}
		}
		fmt.Printf("node %-14s manifest %-14s containerd %-5v crane %-5v oras %v\n", pair[0], pair[1],
			platforms.Only(parts[0]).Match(parts[1]), must(v1.ParsePlatform(pair[1])).Satisfies(*must(v1.ParsePlatform(pair[0]))), orasFinds(parts[0], parts[1]))
	}
}
EOF

go build -o finding .
go list -m github.com/containerd/platforms github.com/google/go-containerregistry oras.land/oras-go/v2
echo "expected: the same answer from all three"
./finding | tee seen
diff - seen <<'EOF' || { echo "the behaviour has changed"; exit 1; }
node linux/amd64    manifest linux/amd64    containerd true  crane true  oras true
node linux/amd64    manifest linux/386      containerd true  crane false oras false
node linux/arm64    manifest linux/arm/v7   containerd true  crane false oras false
node linux/arm64    manifest linux/arm64/v8 containerd true  crane true  oras true
node linux/arm64/v8 manifest linux/arm64    containerd true  crane false oras false
node linux/arm/v7   manifest linux/arm/v6   containerd true  crane false oras false
node linux/amd64/v3 manifest linux/amd64    containerd true  crane false oras false
EOF
