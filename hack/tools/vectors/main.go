package main

import (
	_ "github.com/distribution/reference"
	_ "k8s.io/api/core/v1"
	_ "k8s.io/kubernetes/pkg/credentialprovider"
	_ "k8s.io/kubernetes/pkg/credentialprovider/plugin"
	_ "k8s.io/kubernetes/pkg/credentialprovider/secrets"
	_ "k8s.io/kubernetes/pkg/util/parsers"
)

func main() {}
