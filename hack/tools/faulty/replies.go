package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// reply is how a registry refuses: a status, and an error by its code and message; a body where it has no error.
type reply struct {
	status        int
	code, message string
	body          string
}

// What a request may be refused for.
const (
	denied    = "denied"
	missing   = "missing"
	throttled = "throttled"
)

// replies are the words of registries as their sources and documentation have them. NAME and TAG stand for those of the request.
var replies = map[string]map[string]reply{
	"distribution": {
		denied:    {401, "UNAUTHORIZED", "authentication required", ""},
		missing:   {404, "NAME_UNKNOWN", "repository name not known to registry", ""},
		throttled: {429, "TOOMANYREQUESTS", "too many requests", ""},
	},
	"dockerhub": {
		denied:    {401, "DENIED", "requested access to the resource is denied", ""},
		missing:   {404, "MANIFEST_UNKNOWN", "manifest unknown", ""},
		throttled: {429, "TOOMANYREQUESTS", "You have reached your pull rate limit. You may increase the limit by authenticating and upgrading: https://www.docker.com/increase-rate-limit", ""},
	},
	"ghcr": {
		denied:    {403, "DENIED", "denied", ""},
		missing:   {404, "MANIFEST_UNKNOWN", "manifest unknown", ""},
		throttled: {429, "TOOMANYREQUESTS", "retry-after: 1s, allowed: 44000/minute", ""},
	},
	"ecr": {
		denied:    {403, "DENIED", "Your authorization token has expired. Reauthenticate and try again.", ""},
		missing:   {404, "NAME_UNKNOWN", "The repository with name 'NAME' does not exist in the registry with id '123456789012'", ""},
		throttled: {429, "TOOMANYREQUESTS", "Rate exceeded", ""},
	},
	"gar": {
		denied:    {403, "DENIED", `Permission "artifactregistry.repositories.downloadArtifacts" denied on resource "projects/p/locations/l/repositories/r" (or it may not exist)`, ""},
		missing:   {404, "MANIFEST_UNKNOWN", `Failed to fetch "TAG"`, ""},
		throttled: {429, "RESOURCE_EXHAUSTED", "Quota exceeded for quota metric 'Requests per project per user'", ""},
	},
	"acr": {
		denied:    {401, "UNAUTHORIZED", "authentication required, visit https://aka.ms/acr/authorization for more information.", ""},
		missing:   {404, "MANIFEST_UNKNOWN", `manifest tagged by "TAG" is not found`, ""},
		throttled: {429, "TOOMANYREQUESTS", "too many requests", ""},
	},
	"harbor": {
		denied:    {401, "UNAUTHORIZED", "unauthorized to access repository: NAME, action: pull: unauthorized to access repository: NAME, action: pull", ""},
		missing:   {404, "NOT_FOUND", "artifact NAME:TAG not found", ""},
		throttled: {429, "TOOMANYREQUESTS", "too many requests", ""},
	},
	"quay": {
		denied:    {401, "UNAUTHORIZED", "access to the requested resource is not authorized", ""},
		missing:   {404, "MANIFEST_UNKNOWN", "manifest unknown", ""},
		throttled: {429, "", "", "<html><head><title>429 Too Many Requests</title></head></html>"},
	},
	"artifactory": {
		denied:    {403, "DENIED", "The client does not have permission for manifest", ""},
		missing:   {404, "MANIFEST_UNKNOWN", "The named manifest is not known to the registry.", ""},
		throttled: {429, "TOOMANYREQUESTS", "Too many requests", ""},
	},
}

func registries() string { return strings.Join(slices.Sorted(maps.Keys(replies)), ", ") }

// refuse answers as a registry of that kind does.
func refuse(w http.ResponseWriter, r *http.Request, registry, what string) {
	answer := replies[registry][what]
	name := strings.TrimPrefix(scope(r.URL.Path), "repository:")
	name = strings.TrimSuffix(name, ":pull")
	tag := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	message := strings.NewReplacer("NAME", name, "TAG", tag).Replace(answer.message)
	if answer.code == "" {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(answer.status)
		fmt.Fprintln(w, answer.body)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(answer.status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]any{"code": answer.code, "message": message}}})
}

// login passes the user demo:demo on and refuses all others in a registry's words. As Docker Hub does it, who asks for nothing but the API's
// version is let in with any login: only the manifest shows what it is good for.
func (p *proxy) login(w http.ResponseWriter, r *http.Request, registry string) {
	user, password, given := r.BasicAuth()
	switch {
	case user == "demo" && password == "demo":
		r.Header.Del("Authorization")
		p.forward.ServeHTTP(w, r)
	case given && r.URL.Path == "/v2/":
		w.WriteHeader(http.StatusOK)
	default:
		w.Header().Set("WWW-Authenticate", `Basic realm="faulty"`)
		refuse(w, r, registry, denied)
	}
}
