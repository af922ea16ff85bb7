// Faulty is a registry that fails as told: a proxy before a sound one, whose fault can be changed while it runs.
//
//	faulty serve LISTEN UPSTREAM CONTROL     e.g. 10.77.0.1:5003 10.77.0.1:5000 127.0.0.1:5004
//	faulty set CONTROL KIND[=VALUE] [OPTION=VALUE]...
package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
)

const usage = `usage: faulty serve LISTEN UPSTREAM CONTROL
       faulty set CONTROL [KIND[=VALUE] [OPTION=VALUE]...]
kinds:
  off               pass everything on
  status=CODE       answer with this HTTP status; options retry-after=SECONDS, body=html (as a proxy before a registry)
  token=grant|deny  ask for a bearer token; the token service gives one to user demo:demo, or to nobody
  says=REGISTRY     refuse in the words of dockerhub, ghcr, ecr, gar, acr, harbor, quay, artifactory or plain distribution; option
                    what=denied|missing|throttled
  login=REGISTRY    ask for a login; pass user demo:demo on and refuse all others in those words
  slow=KIB          at most so many KiB per second
  drip=SECONDS      one byte of the body, and the next one so much later
  delay=SECONDS     answer so much later
  truncate=BYTES    cut a body after so many bytes, as a connection that ends
  reset=BYTES       the same with a TCP reset; 0: before any answer
  corrupt           change the last byte of a body
  platform=NAME     tags become an index whose only image is for this architecture
options:
  only=manifests|blobs   of a registry's requests; all
  match=TEXT             in the path; all
  times=N                then pass everything on; no limit`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "faulty:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 4 && args[0] == "serve":
		return serve(args[1], args[2], args[3])
	case len(args) >= 2 && args[0] == "set":
		return set(args[1], args[2:])
	}
	return errors.New(usage)
}

// serve returns when one of the two listeners fails.
func serve(listen, upstream, control string) error {
	p := newProxy(upstream)
	failed := make(chan error, 2)
	go func() { failed <- http.ListenAndServe(control, http.HandlerFunc(p.control)) }()
	go func() { failed <- http.ListenAndServe(listen, p) }()
	return <-failed
}

func set(control string, words []string) error {
	form := url.Values{}
	for i, word := range words {
		key, value, _ := strings.Cut(word, "=")
		if i == 0 {
			form.Set("kind", key)
			key = "value"
		}
		form.Set(key, value)
	}
	response, err := http.PostForm("http://"+control, form)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s\n%s", strings.TrimSpace(string(text)), usage)
	}
	if err == nil {
		fmt.Print(string(text))
	}
	return err
}
