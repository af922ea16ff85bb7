// kstatus prints what kstatus (Flux, Helm 4, kpt) makes of the object on its standard input: the status and its cause.
package main

import (
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
	"sigs.k8s.io/yaml"
)

func main() {
	if err := compute(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "kstatus:", err)
		os.Exit(1)
	}
}

func compute(in io.Reader, out io.Writer) error {
	text, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	object := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(text, object); err != nil {
		return err
	}
	result, err := status.Compute(object)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s: %s\n", result.Status, result.Message)
	return err
}
