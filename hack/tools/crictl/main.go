// Crictl is the small part of sigs.k8s.io/cri-tools' crictl that the tests need, with the same arguments and output fields. The real one
// cannot be pinned here: the Go checksum database has no entry for the version that goes with Kubernetes 1.34.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const usage = `usage: crictl [-r ENDPOINT] COMMAND
  images [-q] [-o json] [IMAGE]        list images
  inspecti IMAGE                       one image's status, as JSON
  pull [--creds USER:PASSWORD] IMAGE   pull an image
  rmi IMAGE...                         remove images
  ps [-a] [-q] [-o json]               list containers
  pods [-q] [-o json]                  list pods
  stop|rm CONTAINER..., stopp|rmp POD...
  info, version, imagefsinfo           as JSON`

// args is one command's arguments, parsed.
type args struct {
	quiet, all, json bool
	creds            string
	rest             []string
}

type runtime struct {
	cri.RuntimeServiceClient
	images cri.ImageServiceClient
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "crictl:", err)
		os.Exit(1)
	}
}

func run(argv []string) error {
	global := flag.NewFlagSet("crictl", flag.ExitOnError)
	global.Usage = func() { fmt.Fprintln(os.Stderr, usage) }
	endpoint := global.String("r", cmp.Or(os.Getenv("CONTAINER_RUNTIME_ENDPOINT"), "unix:///run/containerd/containerd.sock"), "")
	_ = global.Parse(argv)
	if global.NArg() == 0 {
		return errors.New(usage)
	}
	command, parsed, err := parse(global.Args())
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(*endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	return runtime{cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)}.do(ctx, command, parsed)
}

// parse allows flags after the names too, as the real one does.
func parse(argv []string) (string, args, error) {
	var a args
	flags := flag.NewFlagSet(argv[0], flag.ExitOnError)
	flags.Usage = func() { fmt.Fprintln(os.Stderr, usage) }
	for _, name := range []string{"q", "quiet"} {
		flags.BoolVar(&a.quiet, name, false, "")
	}
	for _, name := range []string{"a", "all"} {
		flags.BoolVar(&a.all, name, false, "")
	}
	var output string
	for _, name := range []string{"o", "output"} {
		flags.StringVar(&output, name, "table", "")
	}
	flags.StringVar(&a.creds, "creds", "", "")
	for left := argv[1:]; len(left) > 0; {
		_ = flags.Parse(left)
		left = flags.Args()
		if len(left) > 0 {
			a.rest, left = append(a.rest, left[0]), left[1:]
		}
	}
	a.json = output == "json"
	if output != "json" && output != "table" {
		return "", a, fmt.Errorf("output %q is neither json nor table", output)
	}
	return argv[0], a, nil
}

func (r runtime) do(ctx context.Context, command string, a args) error {
	switch command {
	case "images", "image":
		return r.listImages(ctx, a)
	case "inspecti":
		return r.inspectImages(ctx, a)
	case "pull":
		return r.pull(ctx, a)
	case "rmi":
		return each(a.rest, func(name string) error { return r.removeImage(ctx, name) })
	case "ps":
		return r.listContainers(ctx, a)
	case "pods":
		return r.listPods(ctx, a)
	case "stop":
		return each(a.rest, func(id string) error {
			_, err := r.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id})
			return err
		})
	case "rm":
		return each(a.rest, func(id string) error {
			_, err := r.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id})
			return err
		})
	case "stopp":
		return each(a.rest, func(id string) error {
			_, err := r.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
			return err
		})
	case "rmp":
		return each(a.rest, func(id string) error {
			_, err := r.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
			return err
		})
	case "info":
		return show(r.Status(ctx, &cri.StatusRequest{Verbose: true}))
	case "version":
		return show(r.Version(ctx, &cri.VersionRequest{}))
	case "imagefsinfo":
		return show(r.images.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{}))
	}
	return fmt.Errorf("no command %q here\n%s", command, usage)
}

func (r runtime) listImages(ctx context.Context, a args) error {
	request := &cri.ListImagesRequest{}
	if len(a.rest) > 0 {
		request.Filter = &cri.ImageFilter{Image: &cri.ImageSpec{Image: a.rest[0]}}
	}
	list, err := r.images.ListImages(ctx, request)
	if err != nil || a.json {
		return show(list, err)
	}
	table := newTable(a.quiet, "IMAGE", "IMAGE ID", "SIZE")
	for _, image := range list.Images {
		names := image.RepoTags
		if len(names) == 0 {
			names = image.RepoDigests
		}
		table.row(image.Id, strings.Join(names, ","), strings.TrimPrefix(image.Id, "sha256:")[:13], fmt.Sprint(image.Size))
	}
	return table.Flush()
}

func (r runtime) inspectImages(ctx context.Context, a args) error {
	return each(a.rest, func(name string) error {
		response, err := r.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
		if err != nil {
			return err
		}
		if response.Image == nil {
			return errors.New("no such image")
		}
		// The real one calls the image its status.
		text, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(response.Image)
		fmt.Printf("{\"status\": %s}\n", text)
		return err
	})
}

func (r runtime) pull(ctx context.Context, a args) error {
	if len(a.rest) != 1 {
		return errors.New("pull takes one image")
	}
	request := &cri.PullImageRequest{Image: &cri.ImageSpec{Image: a.rest[0]}}
	if user, password, ok := strings.Cut(a.creds, ":"); ok {
		request.Auth = &cri.AuthConfig{Username: user, Password: password}
	}
	response, err := r.images.PullImage(ctx, request)
	if err == nil {
		fmt.Println("Image is up to date for", response.ImageRef)
	}
	return err
}

// removeImage fails for an image that is not there, as the real one does; RemoveImage itself would succeed.
func (r runtime) removeImage(ctx context.Context, name string) error {
	spec := &cri.ImageSpec{Image: name}
	status, err := r.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec})
	if err != nil {
		return err
	}
	if status.Image == nil {
		return errors.New("no such image")
	}
	_, err = r.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: spec})
	if err == nil {
		fmt.Println("Deleted:", name)
	}
	return err
}

func (r runtime) listContainers(ctx context.Context, a args) error {
	filter := &cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}
	if a.all {
		filter = nil
	}
	list, err := r.ListContainers(ctx, &cri.ListContainersRequest{Filter: filter})
	if err != nil || a.json {
		return show(list, err)
	}
	table := newTable(a.quiet, "CONTAINER", "IMAGE", "STATE", "NAME", "NAMESPACE", "POD")
	for _, c := range list.Containers {
		table.row(c.Id, c.Id[:13], c.Image.GetImage(), strings.TrimPrefix(c.State.String(), "CONTAINER_"), c.Metadata.GetName(),
			c.Labels["io.kubernetes.pod.namespace"], c.Labels["io.kubernetes.pod.name"])
	}
	return table.Flush()
}

func (r runtime) listPods(ctx context.Context, a args) error {
	list, err := r.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil || a.json {
		return show(list, err)
	}
	table := newTable(a.quiet, "POD ID", "STATE", "NAME", "NAMESPACE")
	for _, p := range list.Items {
		table.row(p.Id, p.Id[:13], strings.TrimPrefix(p.State.String(), "SANDBOX_"), p.Metadata.GetName(), p.Metadata.GetNamespace())
	}
	return table.Flush()
}

// each goes on after a failure and reports them all.
func each(names []string, do func(string) error) error {
	if len(names) == 0 {
		return errors.New("at least one name is needed")
	}
	var failures []error
	for _, name := range names {
		if err := do(name); err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(failures...)
}

func show(message proto.Message, err error) error {
	if err != nil {
		return err
	}
	text, err := protojson.MarshalOptions{EmitDefaultValues: true, Indent: "  "}.Marshal(message)
	if err != nil {
		return err
	}
	fmt.Println(string(text))
	return nil
}

type table struct {
	*tabwriter.Writer
	quiet bool
}

func newTable(quiet bool, titles ...string) table {
	t := table{tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', 0), quiet}
	if !quiet {
		fmt.Fprintln(t, strings.Join(titles, "\t"))
	}
	return t
}

func (t table) row(id string, columns ...string) {
	if t.quiet {
		columns = []string{id}
	}
	fmt.Fprintln(t, strings.Join(columns, "\t"))
}
