package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	spec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/memory"
)

const samples = "spec:\n  cacheSpec:\n    - images:\n        - docker.io/library/nginx:1.27\n      # - quay.io/no/comment:1\n"

func testPrograms(t *testing.T) programs {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("a program"), 0o755); err != nil {
		t.Fatal(err)
	}
	return programs{busybox: path, pause: path}
}

func setOf(t *testing.T, set string) map[string]image {
	t.Helper()
	images, err := testPrograms(t).images(set, samples)
	if err != nil {
		t.Fatal(err)
	}
	return images
}

// pushed pushes an image under the tag "1" and returns its manifest.
func pushed(t *testing.T, target oras.Target, image image) spec.Manifest {
	t.Helper()
	if err := image.push(t.Context(), target, "1"); err != nil {
		t.Fatal(err)
	}
	root, err := target.Resolve(t.Context(), "1")
	if err != nil {
		t.Fatal(err)
	}
	var manifest spec.Manifest
	decode(t, target, root, &manifest)
	return manifest
}

func decode(t *testing.T, target oras.Target, descriptor spec.Descriptor, value any) {
	t.Helper()
	data, err := content.FetchAll(t.Context(), target, descriptor)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, value); err != nil {
		t.Fatal(err)
	}
}

// unpacked returns a layer's entries by name, and the digest of its archive.
func unpacked(t *testing.T, target oras.Target, descriptor spec.Descriptor) (map[string]tar.Header, map[string]string, digest.Digest) {
	t.Helper()
	blob, err := target.Fetch(t.Context(), descriptor)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	plain, err := gzip.NewReader(blob)
	if err != nil {
		t.Fatal(err)
	}
	digester := digest.Canonical.Digester()
	read := io.TeeReader(plain, digester.Hash())
	archive := tar.NewReader(read)
	headers, contents := map[string]tar.Header{}, map[string]string{}
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		headers[header.Name], contents[header.Name] = *header, string(data)
	}
	if _, err := io.Copy(io.Discard, read); err != nil {
		t.Fatal(err)
	}
	return headers, contents, digester.Digest()
}

func TestADemoImageServesItsOwnName(t *testing.T) {
	const name = "registry.test:5000/demo/web:1.0"
	target := memory.New()
	manifest := pushed(t, target, setOf(t, "test")[name])
	var config spec.Image
	decode(t, target, manifest.Config, &config)
	if len(manifest.Layers) != 2 || len(config.RootFS.DiffIDs) != 2 {
		t.Fatalf("%d layers, %d in the configuration", len(manifest.Layers), len(config.RootFS.DiffIDs))
	}
	for i, layer := range manifest.Layers {
		headers, contents, archive := unpacked(t, target, layer)
		if archive != config.RootFS.DiffIDs[i] {
			t.Errorf("layer %d is %s, in the configuration %s", i, archive, config.RootFS.DiffIDs[i])
		}
		if i == 0 && (contents["bin/busybox"] != "a program" || headers["bin/busybox"].Mode != 0o755 || headers["bin/sh"].Linkname != "busybox") {
			t.Errorf("layer 0: %v", headers)
		}
		if i == 1 && (contents["www/index.html"] != name+"\n" || len(contents["www/data"]) != 200<<10) {
			t.Errorf("layer 1: %v", headers)
		}
	}
	if config.Config.Cmd[0] != "/bin/sh" || config.OS != "linux" || config.Architecture == "" {
		t.Errorf("%+v", config)
	}
}

func TestImagesAreTheSameOnEveryRunAndDifferFromEachOther(t *testing.T) {
	images := setOf(t, "test")
	seen := map[digest.Digest]string{}
	for name, image := range images {
		_, first, err := image.blobs()
		if err != nil {
			t.Fatal(err)
		}
		_, second, _ := image.blobs()
		if first.Digest != second.Digest {
			t.Errorf("%s: %s, then %s", name, first.Digest, second.Digest)
		}
		if other, found := seen[first.Digest]; found {
			t.Errorf("%s and %s are the same", name, other)
		}
		seen[first.Digest] = name
	}
}

func TestDemoImagesShareTheLayerOfBusybox(t *testing.T) {
	images, target := setOf(t, "test"), memory.New()
	web := pushed(t, target, images["registry.test:5000/demo/web:1.0"])
	api := pushed(t, target, images["registry.test:5000/demo/api:1.0"])
	if web.Layers[0].Digest != api.Layers[0].Digest || web.Layers[1].Digest == api.Layers[1].Digest {
		t.Errorf("web %v, api %v", web.Layers, api.Layers)
	}
}

func TestAnArtifactIsOneFileWithItsName(t *testing.T) {
	target := memory.New()
	manifest := pushed(t, target, setOf(t, "test")["registry.test:5000/demo/model:1.0"])
	file := manifest.Layers[0]
	if manifest.ArtifactType == "" || manifest.Config.MediaType != spec.MediaTypeEmptyJSON || len(manifest.Layers) != 1 {
		t.Errorf("%+v", manifest)
	}
	if file.MediaType != "application/octet-stream" || file.Size != 200<<10 || file.Annotations[spec.AnnotationTitle] != "data" {
		t.Errorf("%+v", file)
	}
}

func TestTheLastLayerHasTheProgram(t *testing.T) {
	target := memory.New()
	manifest := pushed(t, target, testPrograms(t).layers("registry.test:5000/peers/x:1.0", 3, 1))
	for i, layer := range manifest.Layers {
		headers, _, _ := unpacked(t, target, layer)
		if _, found := headers["pause"]; found != (i == 2) {
			t.Errorf("layer %d: %v", i, headers)
		}
		if layer.Size < 1<<20 {
			t.Errorf("layer %d has %d bytes: its data can be compressed", i, layer.Size)
		}
	}
}

// spy counts what is pushed.
type spy struct {
	oras.Target
	pushes int
}

func (s *spy) Push(ctx context.Context, descriptor spec.Descriptor, content io.Reader) error {
	s.pushes++
	return s.Target.Push(ctx, descriptor, content)
}

func TestWhatARegistryHasIsNotPushedAgain(t *testing.T) {
	images, target := setOf(t, "test"), &spy{Target: memory.New()}
	pushed(t, target, images["registry.test:5000/demo/web:1.0"])
	if target.pushes != 4 {
		t.Errorf("%d pushes of two layers, a configuration and a manifest", target.pushes)
	}
	pushed(t, target, images["registry.test:5000/demo/web:1.0"])
	if target.pushes != 4 {
		t.Errorf("%d pushes after the second time", target.pushes)
	}
	pushed(t, target, images["registry.test:5000/demo/api:1.0"])
	if target.pushes != 7 {
		t.Errorf("%d pushes after another image with the same first layer", target.pushes)
	}
}

func TestASetHasItsImages(t *testing.T) {
	for set, want := range map[string][]string{
		"test": {
			"docker.io/library/nginx:1.27", "private.test:5001/demo/secret:1.0", "registry.test:5000/pause:3.10",
			"registry.test:5000/demo/web:1.0", "registry.test:5000/demo/extra:1.0", "registry.test:5000/demo/prompt:1.0",
		},
		"bench": {"registry.test:5000/bench/app1:1.0", "registry.test:5000/bench/app24:1.0", "registry.test:5000/bench/big:1.0"},
		"big":   {"registry.test:5000/bench/big:1.0"},
		"peers": {"registry.test:5000/peers/large:1.0", "registry.test:5000/peers/medium:1.0", "private.test:5001/peers/secret:1.0"},
	} {
		images := setOf(t, set)
		for _, name := range want {
			if _, found := images[name]; !found {
				t.Errorf("%s: no %s", set, name)
			}
		}
	}
	if _, err := (programs{}).images("other", ""); err == nil {
		t.Error("a set that does not exist is accepted")
	}
}

func TestACommentInTheSampleIsNoImage(t *testing.T) {
	if names := sampleNames(samples); !slices.Equal(names, []string{"docker.io/library/nginx:1.27"}) {
		t.Error(names)
	}
}
