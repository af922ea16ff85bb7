package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/kubernetes/pkg/credentialprovider/plugin"
	"k8s.io/kubernetes/pkg/util/parsers"
)

const version = "credentialprovider.kubelet.k8s.io/v1"

// setup is a configuration of credential providers and an image. A provider is a script that answers with its auth, or with whatever it is.
type setup struct {
	name  string
	files map[string]string // one called "" is the configuration itself; else it is a directory
	image string
	// Logins that differ from the kubelet's, and why they are meant to.
	ours   [][2]string
	reason string
}

func entry(name, images, more string) string {
	return fmt.Sprintf("- {name: %s, matchImages: [%s], defaultCacheDuration: 1m, apiVersion: %s%s}\n", name, images, version, more)
}

func config(entries ...string) string {
	return "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n" + strings.Join(entries, "")
}

func login(user string) [2]string { return [2]string{user, "p"} }

const needsToken = ", tokenAttributes: {serviceAccountTokenAudience: a, requireServiceAccount: true, cacheType: Token}"

var setups = []setup{
	{name: "one provider", files: map[string]string{"": config(entry("one", "r.test", ""))}, image: "r.test/a:1"},
	{name: "another registry", files: map[string]string{"": config(entry("one", "r.test", ""))}, image: "s.test/a:1"},
	{name: "two providers of one key", files: map[string]string{"": config(entry("two", "r.test", ""), entry("one", "r.test", ""))}, image: "r.test/a:1"},
	{name: "a more specific key comes first", files: map[string]string{"": config(entry("one", "r.test", ""), entry("path", "r.test", ""))}, image: "r.test/a:1"},
	{name: "a directory", files: map[string]string{"20.json": config(entry("one", "r.test", "")), "10.yaml": config(entry("two", "r.test", "")), "x.conf": "no"},
		image: "r.test/a:1"},
	{name: "a pattern with a scheme", files: map[string]string{"": config(entry("one", "'https://r.test'", ""))}, image: "r.test/a:1"},
	{name: "a pattern with v2", files: map[string]string{"": config(entry("one", "r.test/v2/", ""))}, image: "r.test/a:1"},
	{name: "a pattern of docker hub's index", files: map[string]string{"": config(entry("one", "index.docker.io", ""))}, image: "nginx"},
	{name: "a wildcard", files: map[string]string{"": config(entry("one", "'*.test'", ""))}, image: "r.test/a:1"},
	{name: "a token that need not be", files: map[string]string{"": config(entry("one", "r.test", strings.Replace(needsToken, "true", "false", 1)))}, image: "r.test/a:1"},
	{name: "a token that must be", files: map[string]string{"": config(entry("two", "r.test", needsToken), entry("one", "r.test", ""))}, image: "r.test/a:1"},
	{name: "a provider that fails", files: map[string]string{"": config(entry("fails", "r.test", ""), entry("one", "r.test", ""))}, image: "r.test/a:1"},
	{name: "a provider that answers with nothing", files: map[string]string{"": config(entry("null", "r.test", ""))}, image: "r.test/a:1"},
	{name: "a provider that answers in another version", files: map[string]string{"": config(entry("old", "r.test", ""))}, image: "r.test/a:1"},
	{name: "a key that is no address", files: map[string]string{"": config(entry("odd", "r.test", ""))}, image: "r.test/a:1"},
	{name: "one bad provider", files: map[string]string{"": config(entry("a/b", "r.test", ""), entry("one", "r.test", ""))}, image: "r.test/a:1",
		ours: [][2]string{login("one")}, reason: "a kubelet does not start with it; a puller uses the others and says so"},
	{name: "one bad file", files: map[string]string{"1.json": "no", "2.json": config(entry("one", "r.test", ""))}, image: "r.test/a:1",
		ours: [][2]string{login("one")}, reason: "a kubelet does not start with it; a puller uses the others and says so"},
	{name: "no configuration", files: map[string]string{"x.conf": "no"}, image: "r.test/a:1"},
}

// comparePlugins runs every setup with both, and returns how many differ without a reason.
func comparePlugins(ours string) int {
	directory, err := os.MkdirTemp("", "vectors")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(directory)
	programs := filepath.Join(directory, "bin")
	writePrograms(programs)
	kubelet, err := os.Executable()
	if err != nil {
		log.Fatal(err)
	}
	differ := 0
	for i, s := range setups {
		configuration := filepath.Join(directory, fmt.Sprint(i))
		for name, text := range s.files {
			write(filepath.Join(configuration, name), text, 0o600)
		}
		mine := run(ours, configuration, programs, s.image)
		theirs := run(kubelet, "kubelet-plugins", configuration, programs, s.image)
		switch {
		case s.reason != "" && slices.Equal(mine, s.ours):
			fmt.Printf("  accepted: %s: %s\n", s.name, s.reason)
		case s.reason == "" && slices.Equal(mine, theirs):
		default:
			differ++
			fmt.Printf("differs: credential providers: %s\n  ours:    %v\n  kubelet: %v\n", s.name, mine, theirs)
		}
	}
	fmt.Printf("%d setups of credential providers\n", len(setups))
	return differ
}

func writePrograms(directory string) {
	answer := func(version, auth string) string {
		return fmt.Sprintf("#!/bin/sh\necho '{\"apiVersion\":%q,\"kind\":\"CredentialProviderResponse\",\"cacheKeyType\":\"Image\",\"auth\":%s}'\n", version, auth)
	}
	auth := func(key, user string) string { return fmt.Sprintf(`{%q:{"username":%q,"password":"p"}}`, key, user) }
	for name, text := range map[string]string{
		"one":   answer(version, auth("r.test", "one")),
		"two":   answer(version, auth("r.test", "two")),
		"path":  answer(version, auth("r.test/a", "path")),
		"null":  answer(version, "null"),
		"old":   answer("credentialprovider.kubelet.k8s.io/v1beta1", auth("r.test", "old")),
		"odd":   answer(version, auth("r.t[e]st", "odd")),
		"fails": "#!/bin/sh\nexit 1\n",
	} {
		write(filepath.Join(directory, name), text, 0o700)
	}
}

func write(path, text string, mode os.FileMode) {
	path = filepath.Clean(path)
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = os.WriteFile(path, []byte(text), mode)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func run(program string, args ...string) [][2]string {
	output, err := exec.Command(program, args...).Output()
	if err != nil {
		log.Fatalf("%s %v: %v", program, args, err)
	}
	var logins [][2]string
	if err := json.Unmarshal(output, &logins); err != nil {
		log.Fatalf("%s %v: %v", program, args, err)
	}
	return logins
}

// kubeletPlugins prints what the kubelet would try. In a process of its own: providers are registered once and for all.
func kubeletPlugins(args []string) {
	logins := [][2]string{}
	if err := plugin.RegisterCredentialProviderPlugins(args[0], args[1], nil, nil); err == nil {
		repository, _, _, err := parsers.ParseImageName(args[2])
		if err != nil {
			log.Fatal(err)
		}
		found, _ := plugin.NewExternalCredentialProviderDockerKeyring("", "", "", "").Lookup(repository)
		for _, login := range found {
			logins = append(logins, [2]string{login.Username, login.Password})
		}
	}
	_ = json.NewEncoder(os.Stdout).Encode(logins)
}
