package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	spec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
)

// image is what an image consists of. With a file it is an artifact, and has nothing else.
type image struct {
	layers     []layer
	env        []string
	ports      map[string]struct{}
	entrypoint []string
	command    []string

	file entry
}

// blob is content that can be written as often as it is needed, so that large ones are never kept.
type blob struct {
	spec.Descriptor
	write func(io.Writer) error
}

// push sends the blobs that the target lacks, then the manifest, then the tag.
func (i image) push(ctx context.Context, target oras.Target, tag string) error {
	blobs, manifest, err := i.blobs()
	if err != nil {
		return err
	}
	if present, err := target.Resolve(ctx, tag); err == nil && present.Digest == manifest.Digest {
		return nil
	}
	for _, blob := range append(blobs, manifest) {
		if err := blob.push(ctx, target); err != nil {
			return err
		}
	}
	return target.Tag(ctx, manifest.Descriptor, tag)
}

func (b blob) push(ctx context.Context, target oras.Target) error {
	if present, err := target.Exists(ctx, b.Descriptor); present || err != nil {
		return err
	}
	reader, writer := io.Pipe()
	defer reader.Close() // ends the writer if the target did not read to the end
	go func() { writer.CloseWithError(b.write(writer)) }()
	return target.Push(ctx, b.Descriptor, reader)
}

// blobs are the configuration and the layers, and the manifest.
func (i image) blobs() ([]blob, blob, error) {
	manifest := spec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: spec.MediaTypeImageManifest}
	var blobs []blob
	var config blob
	var err error
	if i.file.name != "" {
		manifest.ArtifactType = "application/vnd.kubefledged.test"
		config = bytesBlob(spec.MediaTypeEmptyJSON, []byte("{}"))
		blobs, err = i.fileBlob()
	} else {
		config, blobs, err = i.layerBlobs()
	}
	if err != nil {
		return nil, blob{}, err
	}
	manifest.Config = config.Descriptor
	for _, layer := range blobs {
		manifest.Layers = append(manifest.Layers, layer.Descriptor)
	}
	encoded, err := jsonBlob(manifest.MediaType, manifest)
	return append(blobs, config), encoded, err
}

func (i image) fileBlob() ([]blob, error) {
	file, err := measured("application/octet-stream", i.file.write)
	file.Annotations = map[string]string{spec.AnnotationTitle: i.file.name}
	return []blob{file}, err
}

func (i image) layerBlobs() (blob, []blob, error) {
	created := time.Unix(0, 0).UTC()
	config := spec.Image{
		Created:  &created,
		Platform: spec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   spec.ImageConfig{Env: i.env, ExposedPorts: i.ports, Entrypoint: i.entrypoint, Cmd: i.command},
		RootFS:   spec.RootFS{Type: "layers"},
	}
	var blobs []blob
	for _, layer := range i.layers {
		tar := digest.Canonical.Digester()
		packed, err := measured(spec.MediaTypeImageLayerGzip, func(w io.Writer) error { return layer.pack(w, tar.Hash()) })
		if err != nil {
			return blob{}, nil, err
		}
		packed.write = func(w io.Writer) error { return layer.pack(w, io.Discard) }
		blobs = append(blobs, packed)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, tar.Digest())
	}
	encoded, err := jsonBlob(spec.MediaTypeImageConfig, config)
	return encoded, blobs, err
}

// pack writes the layer as a compressed archive, and the archive itself.
func (l layer) pack(packed, archive io.Writer) error {
	compressed, err := gzip.NewWriterLevel(packed, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if err := l.archive(io.MultiWriter(compressed, archive)); err != nil {
		return err
	}
	return compressed.Close()
}

// measured writes a blob once, for its digest and its size.
func measured(mediaType string, write func(io.Writer) error) (blob, error) {
	digester := digest.Canonical.Digester()
	var size counter
	if err := write(io.MultiWriter(digester.Hash(), &size)); err != nil {
		return blob{}, fmt.Errorf("making a blob of type %s: %w", mediaType, err)
	}
	return blob{spec.Descriptor{MediaType: mediaType, Digest: digester.Digest(), Size: int64(size)}, write}, nil
}

// counter counts the bytes that are written to it.
type counter int64

func (c *counter) Write(data []byte) (int, error) {
	*c += counter(len(data))
	return len(data), nil
}

func jsonBlob(mediaType string, value any) (blob, error) {
	data, err := json.Marshal(value)
	return bytesBlob(mediaType, data), err
}

func bytesBlob(mediaType string, data []byte) blob {
	descriptor := spec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return blob{descriptor, func(w io.Writer) error {
		_, err := io.Copy(w, bytes.NewReader(data))
		return err
	}}
}
