package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"log"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// recorded are the texts of the kubelet's own tests: each is a reference; and of the tests of keyrings and plugins each is a key, a pattern and
// an image, in all pairs.
func recorded() []question {
	reference := module("github.com/distribution/reference")
	provider := filepath.Join(module("k8s.io/kubernetes"), "pkg/credentialprovider")
	var cases []question
	names := literals(filepath.Join(reference, "*_test.go"))
	keys := append(literals(filepath.Join(provider, "*_test.go")), literals(filepath.Join(provider, "plugin", "*_test.go"))...)
	for _, text := range append(slices.Clone(names), keys...) {
		cases = append(cases, question{Kind: "reference", Text: text})
	}
	contents := append(keys, literals(filepath.Join(provider, "secrets", "*_test.go"))...)
	for _, content := range contents {
		if !strings.HasPrefix(strings.TrimSpace(content), "{") {
			continue
		}
		for _, old := range []bool{false, true} {
			for _, image := range []string{"foo.example.com/app", "index.docker.io/app", "app", "localhost/app"} {
				cases = append(cases, question{Kind: "logins", Secrets: []secret{newSecret(old, content)}, Image: image})
			}
		}
	}
	hosts := slices.DeleteFunc(keys, func(text string) bool { return !strings.ContainsAny(text, "./") || strings.ContainsAny(text, " {%") })
	for _, key := range hosts {
		entries := secretOf(map[string]any{key: map[string]any{"username": "u", "password": "p"}})
		for _, image := range hosts {
			cases = append(cases, question{Kind: "logins", Secrets: []secret{entries}, Image: image}, question{Kind: "pattern", Pattern: key, Image: image})
		}
	}
	return cases
}

// module is the directory of a module's sources.
func module(path string) string {
	directory, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", path).Output()
	if err != nil {
		log.Fatalf("go list -m %s: %v; run this in hack/tools/vectors", path, err)
	}
	return strings.TrimSpace(string(directory))
}

// literals are the strings of source files, each once.
func literals(pattern string) []string {
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		log.Fatalf("no files %s (%v)", pattern, err)
	}
	seen := map[string]bool{}
	var texts []string
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			log.Fatal(err)
		}
		ast.Inspect(parsed, func(node ast.Node) bool {
			literal, ok := node.(*ast.BasicLit)
			if !ok || literal.Kind != token.STRING {
				return true
			}
			text, err := strconv.Unquote(literal.Value)
			if err == nil && !seen[text] && len(text) < 4096 {
				seen[text] = true
				texts = append(texts, strings.ToValidUTF8(text, "?"))
			}
			return true
		})
	}
	return texts
}
