package main

import (
	"archive/tar"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"io"
	"os"
	"strings"
	"time"
)

// layer is a file system, or the difference to that of the layers before.
type layer []entry

// entry is a file, a directory or a symbolic link. What it does not have is nil or empty.
type entry struct {
	name   string
	mode   int64
	target string
	open   func() (content io.ReadCloser, size int64, err error)
}

func directory(name string) entry { return entry{name: name + "/", mode: 0o755} }

func link(name, target string) entry { return entry{name: name, mode: 0o777, target: target} }

func text(name, content string) entry {
	return entry{name: name, mode: 0o644, open: func() (io.ReadCloser, int64, error) {
		return io.NopCloser(strings.NewReader(content)), int64(len(content)), nil
	}}
}

// program is a file of this machine that can be run.
func program(name, path string) entry {
	return entry{name: name, mode: 0o755, open: func() (io.ReadCloser, int64, error) {
		file, err := os.Open(path)
		if err != nil {
			return nil, 0, err
		}
		info, err := file.Stat()
		if err != nil {
			return nil, 0, err
		}
		return file, info.Size(), nil
	}}
}

// noise is incompressible data, always the same for a seed.
func noise(name, seed string, size int64) entry {
	return entry{name: name, mode: 0o644, open: func() (io.ReadCloser, int64, error) {
		key := sha256.Sum256([]byte(seed))
		block, err := aes.NewCipher(key[:])
		if err != nil {
			return nil, 0, err
		}
		stream := cipher.NewCTR(block, make([]byte, aes.BlockSize))
		return io.NopCloser(&cipher.StreamReader{S: stream, R: io.LimitReader(zeros{}, size)}), size, nil
	}}
}

// zeros never end.
type zeros struct{}

func (zeros) Read(data []byte) (int, error) {
	clear(data)
	return len(data), nil
}

// write copies a file's content.
func (e entry) write(w io.Writer) error {
	content, _, err := e.open()
	if err != nil {
		return err
	}
	defer content.Close()
	_, err = io.Copy(w, content)
	return err
}

// archive writes the entries as a tar archive: all of root's, and as old as time.
func (l layer) archive(w io.Writer) error {
	archive := tar.NewWriter(w)
	for _, entry := range l {
		if err := entry.add(archive); err != nil {
			return err
		}
	}
	return archive.Close()
}

func (e entry) add(archive *tar.Writer) error {
	header := &tar.Header{Name: e.name, Mode: e.mode, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
	switch {
	case e.target != "":
		header.Typeflag, header.Linkname = tar.TypeSymlink, e.target
	case e.open == nil:
		header.Typeflag = tar.TypeDir
	default:
		content, size, err := e.open()
		if err != nil {
			return err
		}
		defer content.Close()
		header.Typeflag, header.Size = tar.TypeReg, size
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		_, err = io.Copy(archive, content)
		return err
	}
	return archive.WriteHeader(header)
}
