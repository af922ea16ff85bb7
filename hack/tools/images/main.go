// Images makes the test images of the local cluster and pushes them to its registries. An image has the same bytes, hence the same
// digest, on every run, and what a registry has already is not sent again.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
)

const usage = `usage: images -plain ADDRESS -private ADDRESS -password FILE -pause FILE -samples FILE [SET]
  -plain ADDRESS     registry that is called registry.test:5000 in the cluster, and docker.io, ghcr.io and quay.io
  -private ADDRESS   registry that is called private.test:5001 in the cluster
  -password FILE     password of its user demo
  -pause FILE        program of the images that only have to run
  -samples FILE      manifest of an ImageCache, whose images are made as well
SET is one of
  test               the small ones; the default
  bench              24 images of 4 MB and one of 300 MB
  big                only the image of 300 MB
  peers              images of three layers`

// private is the host of names that belong to the registry with a password; all others belong to the plain one.
const private = "private.test:5001"

// registries are where images are pushed.
type registries struct{ plain, private, password string }

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	var to registries
	var from programs
	flags := flag.NewFlagSet("images", flag.ExitOnError)
	flags.Usage = func() { fmt.Fprintln(os.Stderr, usage) }
	flags.StringVar(&to.plain, "plain", "", "")
	flags.StringVar(&to.private, "private", "", "")
	flags.StringVar(&from.pause, "pause", "", "")
	passwordFile := flags.String("password", "", "")
	samplesFile := flags.String("samples", "", "")
	_ = flags.Parse(args)
	if flags.NArg() > 1 {
		return errors.New(usage)
	}

	samples, err := os.ReadFile(*samplesFile)
	if err != nil {
		return fmt.Errorf("reading the names of sample images: %w", err)
	}
	if from.busybox, err = exec.LookPath("busybox"); err != nil {
		return fmt.Errorf("finding busybox, a part of the images: %w", err)
	}
	password, err := os.ReadFile(*passwordFile)
	if err != nil {
		return fmt.Errorf("reading the registry's password: %w", err)
	}
	to.password = strings.TrimSpace(string(password))
	images, err := from.images(cmp.Or(flags.Arg(0), "test"), string(samples))
	if err != nil {
		return err
	}
	return to.push(ctx, images)
}

// push sends a few images at a time.
func (r registries) push(ctx context.Context, images map[string]image) error {
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(4)
	for name, image := range images {
		work.Go(func() error {
			repository, err := r.repository(name)
			if err == nil {
				err = image.push(ctx, repository, repository.Reference.Reference)
			}
			if err != nil {
				return fmt.Errorf("pushing %s: %w", name, err)
			}
			return nil
		})
	}
	return work.Wait()
}

// repository is where a name of the cluster really is, with the name's tag as its reference.
func (r registries) repository(name string) (*remote.Repository, error) {
	host, path, _ := strings.Cut(name, "/")
	address := r.plain
	if host == private {
		address = r.private
	}
	repository, err := remote.NewRepository(address + "/" + path)
	if err != nil {
		return nil, err
	}
	repository.PlainHTTP = true
	if host == private {
		demo := auth.StaticCredential(address, auth.Credential{Username: "demo", Password: r.password})
		repository.Client = &auth.Client{Credential: demo, Cache: auth.NewCache()}
	}
	return repository, nil
}
