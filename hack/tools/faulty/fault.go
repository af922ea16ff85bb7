package main

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// fault is what goes wrong, and for which requests.
type fault struct {
	kind       string
	value      string // of token, platform, says and login
	number     int    // of the kinds that take one
	retryAfter string
	body       string // html: what a proxy before a registry says
	what       string // of says: denied, missing or throttled
	only       string
	match      string
	left       int // so many times more; negative: always
}

func (f fault) String() string {
	text := f.kind
	for _, option := range [][2]string{{"value", f.value}, {"retry-after", f.retryAfter}, {"body", f.body}, {"what", f.what}, {"only", f.only}, {"match", f.match}} {
		if option[1] != "" {
			text += fmt.Sprintf(" %s=%s", option[0], option[1])
		}
	}
	if f.left >= 0 {
		text += fmt.Sprintf(" left=%d", f.left)
	}
	return text
}

var numeric = []string{"status", "slow", "drip", "delay", "truncate", "reset"}

func parse(form url.Values) (fault, error) {
	f := fault{kind: "off", left: -1}
	for key := range form {
		value := form.Get(key)
		switch key {
		case "kind":
			f.kind = value
		case "value":
			f.value = value
		case "retry-after":
			f.retryAfter = value
		case "body":
			f.body = value
		case "what":
			f.what = value
		case "only":
			f.only = value
		case "match":
			f.match = value
		case "times":
			times, err := strconv.Atoi(value)
			if err != nil || times < 1 {
				return f, fmt.Errorf("times takes a positive number, not %q", value)
			}
			f.left = times
		default:
			return f, fmt.Errorf("no option %q", key)
		}
	}
	return f.checked()
}

func (f fault) checked() (fault, error) {
	if f.only != "" && f.only != "manifests" && f.only != "blobs" {
		return f, fmt.Errorf("only takes manifests or blobs, not %q", f.only)
	}
	if f.body != "" && f.body != "html" {
		return f, fmt.Errorf("body takes html, not %q", f.body)
	}
	switch {
	case slices.Contains(numeric, f.kind):
		number, err := strconv.Atoi(f.value)
		if err != nil || number < 0 || (f.kind == "slow" || f.kind == "drip") && number == 0 || f.kind == "status" && http.StatusText(number) == "" {
			return f, fmt.Errorf("%s takes a number, not %q", f.kind, f.value)
		}
		f.number = number
	case f.kind == "token":
		if f.value != "grant" && f.value != "deny" {
			return f, fmt.Errorf("token takes grant or deny, not %q", f.value)
		}
	case f.kind == "says" || f.kind == "login":
		if replies[f.value] == nil {
			return f, fmt.Errorf("%s takes one of %s, not %q", f.kind, registries(), f.value)
		}
		if f.what == "" {
			f.what = denied
		}
		if _, known := replies[f.value][f.what]; !known {
			return f, fmt.Errorf("what takes denied, missing or throttled, not %q", f.what)
		}
	case f.kind == "platform":
		if f.value == "" {
			return f, fmt.Errorf("platform takes an architecture")
		}
	case f.kind != "off" && f.kind != "corrupt":
		return f, fmt.Errorf("no kind %q", f.kind)
	}
	return f, nil
}

// concerns tells whether a request is one that goes wrong.
func (f fault) concerns(path string) bool {
	if f.kind == "off" || f.left == 0 || !strings.HasPrefix(path, "/v2") {
		return false
	}
	return strings.Contains(path, f.match) && (f.only == "" || strings.Contains(path, "/"+f.only+"/"))
}
