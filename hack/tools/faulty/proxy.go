package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"time"
)

const (
	token     = "a-token-of-the-faulty-registry"
	indexType = "application/vnd.oci.image.index.v1+json"
)

type proxy struct {
	forward *httputil.ReverseProxy

	lock    sync.Mutex
	fault   fault
	indexes map[string][]byte // by digest
}

func newProxy(upstream string) *proxy {
	forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: upstream})
	forward.FlushInterval = -1
	return &proxy{forward: forward, fault: fault{kind: "off", left: -1}, indexes: map[string][]byte{}}
}

// control answers with the present fault, and sets another if the request has one.
func (p *proxy) control(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p.lock.Lock()
	defer p.lock.Unlock()
	if len(r.Form) > 0 {
		f, err := parse(r.Form)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		p.fault = f
	}
	fmt.Fprintln(w, p.fault)
}

// next is the fault that a request meets.
func (p *proxy) next(path string) fault {
	p.lock.Lock()
	defer p.lock.Unlock()
	if !p.fault.concerns(path) {
		return fault{kind: "off"}
	}
	f := p.fault
	if p.fault.left > 0 {
		p.fault.left--
	}
	return f
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/token" {
		p.giveToken(w, r)
		return
	}
	f := p.next(r.URL.Path)
	switch f.kind {
	case "off":
		p.forward.ServeHTTP(w, r)
	case "status":
		if f.retryAfter != "" {
			w.Header().Set("Retry-After", f.retryAfter)
		}
		if f.body == "html" {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(f.number)
			fmt.Fprintf(w, "<html><body><h1>%s</h1></body></html>\n", http.StatusText(f.number))
			return
		}
		fail(w, f.number)
	case "says":
		refuse(w, r, f.value, f.what)
	case "login":
		p.login(w, r, f.value)
	case "token":
		if r.Header.Get("Authorization") == "Bearer "+token {
			r.Header.Del("Authorization")
			p.forward.ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="faulty",scope="%s"`, r.Host, scope(r.URL.Path)))
		fail(w, http.StatusUnauthorized)
	case "delay":
		select {
		case <-time.After(time.Duration(f.number) * time.Second):
			p.forward.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	case "platform":
		p.otherPlatform(w, r, f.value)
	default:
		p.forward.ServeHTTP(&spoiler{ResponseWriter: w, fault: f}, r)
	}
}

func (p *proxy) giveToken(w http.ResponseWriter, r *http.Request) {
	p.lock.Lock()
	grant := p.fault.kind == "token" && p.fault.value == "grant"
	p.lock.Unlock()
	user, password, _ := r.BasicAuth()
	if r.Method == http.MethodPost { // OAuth 2
		user, password = r.FormValue("username"), r.FormValue("password")
	}
	if !grant || user != "demo" || password != "demo" {
		fail(w, http.StatusUnauthorized)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"token": %q, "access_token": %q, "expires_in": 60}`, token, token)
}

// scope is what a token must allow for a path /v2/NAME/manifests/TAG.
func scope(path string) string {
	name := strings.TrimPrefix(path, "/v2/")
	for _, part := range []string{"/manifests/", "/blobs/"} {
		name, _, _ = strings.Cut(name, part)
	}
	return "repository:" + name + ":pull"
}

// fail answers as a registry does.
func fail(w http.ResponseWriter, status int) {
	code := map[int]string{401: "UNAUTHORIZED", 403: "DENIED", 404: "NAME_UNKNOWN", 429: "TOOMANYREQUESTS"}[status]
	if code == "" {
		code = "UNKNOWN"
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors": [{"code": %q, "message": "the faulty registry was told so"}]}`, code)
}

// otherPlatform wraps a tag's manifest in an index that offers it for another architecture. Clients ask for the index by its digest next.
func (p *proxy) otherPlatform(w http.ResponseWriter, r *http.Request, architecture string) {
	_, reference, ok := strings.Cut(r.URL.Path, "/manifests/")
	p.lock.Lock()
	index := p.indexes[reference]
	p.lock.Unlock()
	switch {
	case index != nil:
		sendIndex(w, r, index)
	case !ok || strings.HasPrefix(reference, "sha256:"):
		p.forward.ServeHTTP(w, r)
	default:
		p.makeIndex(w, r, architecture)
	}
}

func (p *proxy) makeIndex(w http.ResponseWriter, r *http.Request, architecture string) {
	ask := r.Clone(r.Context())
	ask.Method = http.MethodGet
	answer := &recorder{header: http.Header{}, status: http.StatusOK}
	p.forward.ServeHTTP(answer, ask)
	if answer.status != http.StatusOK {
		fail(w, answer.status)
		return
	}
	index, _ := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": []any{map[string]any{
		"mediaType": answer.header.Get("Content-Type"),
		"digest":    digest(answer.body.Bytes()),
		"size":      answer.body.Len(),
		"platform":  map[string]string{"os": "linux", "architecture": architecture},
	}}})
	p.lock.Lock()
	p.indexes[digest(index)] = index
	p.lock.Unlock()
	sendIndex(w, r, index)
}

func sendIndex(w http.ResponseWriter, r *http.Request, index []byte) {
	w.Header().Set("Content-Type", indexType)
	w.Header().Set("Docker-Content-Digest", digest(index))
	w.Header().Set("Content-Length", fmt.Sprint(len(index)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(index)
	}
}

func digest(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

// recorder keeps an answer.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header            { return r.header }
func (r *recorder) WriteHeader(status int)         { r.status = status }
func (r *recorder) Write(data []byte) (int, error) { return r.body.Write(data) }

// spoiler passes an answer on until its body goes wrong.
type spoiler struct {
	http.ResponseWriter
	fault fault
	sent  int
	size  int
}

func (s *spoiler) WriteHeader(status int) {
	_, _ = fmt.Sscan(s.Header().Get("Content-Length"), &s.size)
	if s.fault.kind == "reset" && s.fault.number == 0 {
		s.reset()
	}
	s.ResponseWriter.WriteHeader(status)
}

func (s *spoiler) Write(data []byte) (int, error) {
	switch s.fault.kind {
	case "truncate", "reset":
		if left := s.fault.number - s.sent; left < len(data) {
			if left > 0 {
				_, _ = s.ResponseWriter.Write(data[:left])
			}
			s.flush()
			if s.fault.kind == "reset" {
				s.reset()
			}
			panic(http.ErrAbortHandler)
		}
	case "corrupt":
		if s.size > 0 && s.sent+len(data) == s.size {
			data = append([]byte{}, data...)
			data[len(data)-1] ^= 1
		}
	case "slow":
		return s.pieces(data, max(1, s.fault.number*1024/10), 100*time.Millisecond)
	case "drip":
		return s.pieces(data, 1, time.Duration(s.fault.number)*time.Second)
	}
	n, err := s.ResponseWriter.Write(data)
	s.sent += n
	return n, err
}

// pieces writes so many bytes at a time, and waits after each.
func (s *spoiler) pieces(data []byte, step int, pause time.Duration) (int, error) {
	for start := 0; start < len(data); start += step {
		n, err := s.ResponseWriter.Write(data[start:min(start+step, len(data))])
		if err != nil {
			return start + n, err
		}
		s.flush()
		time.Sleep(pause)
	}
	return len(data), nil
}

func (s *spoiler) flush() { _ = http.NewResponseController(s.ResponseWriter).Flush() }

// reset ends the connection without a farewell: SO_LINGER of 0 makes the kernel send RST.
func (s *spoiler) reset() {
	conn, _, err := http.NewResponseController(s.ResponseWriter).Hijack()
	if err == nil {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}
	panic(http.ErrAbortHandler)
}

// FlushError lets the body stream.
func (s *spoiler) FlushError() error { return http.NewResponseController(s.ResponseWriter).Flush() }
