package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"

	"k8s.io/kubernetes/pkg/credentialprovider"
)

// printed is how many unexplained differences are told in full.
const printed = 20

type differences struct {
	explained   map[string]int
	unexplained int
}

// compare asks our program and the kubelet's code.
func compare(program string, cases []question) (differences, error) {
	found := differences{explained: map[string]int{}}
	command := exec.Command(program)
	command.Stderr = os.Stderr
	stdin, err := command.StdinPipe()
	if err != nil {
		return found, err
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		return found, err
	}
	if err := command.Start(); err != nil {
		return found, err
	}
	go func() {
		writer := bufio.NewWriter(stdin)
		encoder := json.NewEncoder(writer)
		for _, q := range cases {
			_ = encoder.Encode(q)
		}
		_ = writer.Flush()
		_ = stdin.Close()
	}()
	answers := json.NewDecoder(bufio.NewReader(stdout))
	for i, q := range cases {
		var ours answer
		if err := answers.Decode(&ours); err != nil {
			return found, fmt.Errorf("case %d: %w", i, err)
		}
		found.add(q, ours, kubelet(q))
	}
	return found, command.Wait()
}

func (d *differences) add(q question, ours, theirs answer) {
	if equal(q, ours, theirs) {
		return
	}
	for _, accepted := range acceptedDifferences {
		if accepted.explains(q, ours, theirs) {
			d.explained[accepted.name]++
			return
		}
	}
	d.unexplained++
	if d.unexplained <= printed {
		text, _ := json.Marshal(q)
		fmt.Printf("differs: %s\n  ours:    %+v\n  kubelet: %+v\n", text, ours, theirs)
		for _, s := range q.Secrets {
			for _, value := range s.Data {
				fmt.Printf("  secret:  %q\n", decoded(value))
			}
		}
	}
}

// equal compares what both say. Keys of one secret that mean the same are read in no order by the kubelet.
func equal(q question, ours, theirs answer) bool {
	ours.PassedOver = nil
	if q.Kind == "logins" {
		if !slices.Equal(ours.Logins, theirs.Logins) && sameKeys(q) {
			sorted(&ours)
			sorted(&theirs)
		}
		if len(ours.Logins) == 0 {
			ours.Logins = nil
		}
	} else {
		ours.Logins = nil
	}
	return reflect.DeepEqual(ours, theirs)
}

// sameKeys tells whether a secret has keys that mean the same.
func sameKeys(q question) bool {
	for _, s := range q.Secrets {
		seen := map[string]bool{}
		for _, key := range keys(s) {
			if !strings.HasPrefix(key, "https://") && !strings.HasPrefix(key, "http://") {
				key = "https://" + key
			}
			parsed, err := url.Parse(key)
			if err != nil {
				continue
			}
			path := parsed.Path
			if strings.HasPrefix(path, "/v1/") || strings.HasPrefix(path, "/v2/") {
				path = path[3:]
			}
			meaning := parsed.Host + strings.TrimSuffix(path, "/")
			if seen[meaning] {
				return true
			}
			seen[meaning] = true
		}
	}
	return false
}

// keys are those that a secret has, whichever of the two formats it is of.
func keys(s secret) []string {
	var all []string
	for _, value := range s.Data {
		var config credentialprovider.DockerConfigJSON
		_ = json.Unmarshal([]byte(decoded(value)), &config)
		all = slices.AppendSeq(all, maps.Keys(config.Auths))
		var old credentialprovider.DockerConfig
		if json.Unmarshal([]byte(decoded(value)), &old) == nil {
			all = slices.AppendSeq(all, maps.Keys(old))
		}
	}
	return all
}

func decoded(value string) string {
	content, _ := base64.StdEncoding.DecodeString(value)
	return string(content)
}

// sorted puts logins in an order that does not depend on the kubelet's maps.
func sorted(a *answer) {
	a.Logins = slices.Clone(a.Logins)
	slices.SortFunc(a.Logins, func(x, y [2]string) int { return strings.Compare(x[0]+"\x00"+x[1], y[0]+"\x00"+y[1]) })
}

func (d differences) print(total int) {
	fmt.Printf("%d cases\n", total)
	for _, accepted := range acceptedDifferences {
		fmt.Printf("  %7d accepted: %s\n", d.explained[accepted.name], accepted.name)
	}
}
