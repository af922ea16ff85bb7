package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
)

// maker makes cases up. The same seed makes the same cases.
type maker struct{ *rand.Rand }

func madeUp(random *rand.Rand, count int) []question {
	m := maker{random}
	cases := make([]question, count)
	for i := range cases {
		switch m.IntN(3) {
		case 0:
			cases[i] = question{Kind: "reference", Text: m.reference()}
		case 1:
			image := m.reference()
			cases[i] = question{Kind: "pattern", Pattern: m.key(image), Image: image}
		default:
			cases[i] = m.logins()
		}
	}
	return cases
}

func pick[T any](m maker, all ...T) T { return all[m.IntN(len(all))] }

func (m maker) chance(percent int) bool { return m.IntN(100) < percent }

const odd = "aAzZ09._-:/@%#?*[]\\ \t\n\x00\x1b~!$&'()+,;=<>\"^|`{}äſK漢"

func (m maker) odd() string {
	letters := []rune(odd)
	return string(letters[m.IntN(len(letters))])
}

// mutated is a text with a few characters changed, mostly none.
func (m maker) mutated(text string) string {
	for m.chance(25) {
		at := m.IntN(len(text) + 1)
		end := min(len(text), at+m.IntN(3))
		text = strings.ToValidUTF8(text[:at]+m.odd()+text[end:], "")
	}
	return text
}

func (m maker) host() string {
	host := pick(m, "r.test", "eu.r.test", "docker.io", "index.docker.io", "localhost", "R.Test", "my_registry.local", "a__b.c", "Team", "team",
		"127.0.0.1", "[fd00::1]", "[::]", "[FD00::1]", "[::::]", "x-y.test", "a.b.c.d", "registry-1.docker.io", strings.Repeat("h", 250)+".io")
	return host + pick(m, "", "", "", ":5000", ":443", ":80", ":", ":0", ":99999")
}

func (m maker) path() string {
	words := make([]string, 1+m.IntN(4))
	for i := range words {
		words[i] = pick(m, "team", "app", "library", "v1", "v2", "a", "x_y", "x__y", "x-y", "x---y", "x.y", "0", "latest", "Team", strings.Repeat("p", 90))
	}
	return strings.Join(words, "/")
}

func (m maker) reference() string {
	text := m.path()
	if m.chance(70) {
		text = m.host() + "/" + text
	}
	hex := "0123456789abcdef"
	switch m.IntN(6) {
	case 0, 1:
		text += ":" + pick(m, "1", "latest", "v1.0", "_x", "A-B", strings.Repeat("t", 128), strings.Repeat("t", 129), "")
	case 2:
		text += pick(m, "", ":1", ":latest") + "@" + pick(m, "sha256:"+strings.Repeat(hex, 4), "sha512:"+strings.Repeat(hex, 8), "sha384:"+strings.Repeat(hex, 6),
			"sha256:"+strings.Repeat(hex, 3), "SHA256:"+strings.Repeat(hex, 4), "blake3:"+strings.Repeat(hex, 4), "md5:"+strings.Repeat(hex, 2),
			"sha256:"+strings.ToUpper(strings.Repeat(hex, 4)), "sha256", "")
	}
	return m.mutated(text)
}

// key is one for an image, or for another one.
func (m maker) key(image string) string {
	host, path, _ := strings.Cut(image, "/")
	if m.chance(25) {
		host = m.host()
	}
	if m.chance(30) {
		labels := strings.Split(host, ".")
		at := m.IntN(len(labels))
		labels[at] = pick(m, "*", "*"+labels[at], labels[at]+"*", "["+labels[at]+"]", "?"+labels[at], "\\"+labels[at], "**")
		host = strings.Join(labels, ".")
	}
	key := pick(m, "", "", "", "https://", "http://", "HTTPS://", "oci://", "//", "me@", "me:secret@", "m^e@") + host
	if m.chance(50) {
		key += pick(m, "/", "/v1/", "/v2/", "/v1", "/v2/"+path, "/"+path, "/"+path[:m.IntN(len(path)+1)], "/%74eam", "/%2574eam", "/%zz", "?q=1", "#f", "#%", "/../"+path)
	}
	return m.mutated(key)
}

func (m maker) logins() question {
	image := m.reference()
	q := question{Kind: "logins", Image: image}
	number := 0
	for range 1 + m.IntN(2) {
		entries := map[string]any{}
		for range m.IntN(4) {
			number++
			entries[m.key(image)] = m.entry(fmt.Sprintf("u%d", number))
		}
		q.Secrets = append(q.Secrets, m.secret(entries))
	}
	return q
}

func (m maker) entry(user string) any {
	plain := user + ":" + pick(m, "p", "", "p:q", "pä", "p\x00", "p\xff", strings.Repeat("p", 100))
	auth := base64.StdEncoding.EncodeToString([]byte(plain))
	name := func(field string) string {
		return pick(m, field, field, field, strings.ToUpper(field), strings.Title(field), strings.Replace(field, "s", "ſ", 1))
	} //nolint:staticcheck
	switch m.IntN(16) {
	case 0:
		return nil
	case 1:
		return map[string]any{name("username"): nil, name("password"): nil, name("auth"): auth}
	case 2:
		return pick[any](m, "text", 5, []string{}, true)
	case 3:
		return map[string]any{name("username"): pick[any](m, 5, true, []int{}), name("password"): "p"}
	case 4:
		return map[string]any{"auth": strings.TrimRight(auth, "=")}
	case 5:
		return map[string]any{"auth": wrapped(auth, pick(m, "\n", "\r\n"), pick(m, 4, 76))}
	case 6:
		return map[string]any{"auth": pick(m, " "+auth, auth+" ", auth+"\n", auth+"=", "\n", "=", "a", base64.URLEncoding.EncodeToString([]byte(plain)))}
	case 7:
		return map[string]any{"auth": base64.StdEncoding.EncodeToString([]byte(user))}
	case 8:
		return map[string]any{name("username"): user, name("password"): "p", "email": pick[any](m, "e", nil, 5), "identitytoken": 5}
	case 9:
		return map[string]any{}
	case 10, 11, 12:
		return map[string]any{name("username"): user, name("password"): pick(m, "p", "", "pä\x00", "p\x1b")}
	}
	return map[string]any{name("auth"): auth}
}

func wrapped(text, end string, width int) string {
	var lines strings.Builder
	for len(text) > width {
		lines.WriteString(text[:width] + end)
		text = text[width:]
	}
	return lines.String() + text + end
}

func secretOf(entries map[string]any) secret {
	content, _ := json.Marshal(map[string]any{"auths": entries})
	return newSecret(false, string(content))
}

func (m maker) secret(entries map[string]any) secret {
	old := m.chance(20)
	var config any = entries
	if !old {
		config = map[string]any{pick(m, "auths", "auths", "auths", "Auths", "authſ"): entries, "HttpHeaders": pick[any](m, nil, map[string]string{"a": "b"}), "x": 1}
	}
	if m.chance(3) {
		config = pick[any](m, nil, map[string]any{}, map[string]any{"auths": nil}, []int{}, "text", map[string]any{"HttpHeaders": map[string]int{"a": 1}})
	}
	content, _ := json.Marshal(config)
	text := string(content)
	// What Go's encoder never writes: fields twice, halves of surrogate pairs, bytes that are no UTF-8, text that is cut off.
	switch m.IntN(30) {
	case 0:
		text = strings.Replace(text, `"username":`, `"username":"other","username":`, 1)
	case 1:
		text = strings.Replace(text, `"u1`, `"`+pick(m, `\ud800`, `\udc00`, `\ud83d\ude00`, `\ud800\u0041`, "\xff", "\xe2\x82", `\q`, "\x01"), 1)
	case 2:
		text = text[:m.IntN(len(text)+1)]
	case 3:
		text = strings.Replace(text, `"auths":`, `"auths":{"r.test":{"username":"first","password":"p"}},"auths":`, 1)
	}
	return newSecret(old, text)
}
