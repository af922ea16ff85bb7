module kubefledged.io/hack/tools/images

go 1.26.0

require (
	github.com/opencontainers/go-digest v1.0.0
	github.com/opencontainers/image-spec v1.1.1
	golang.org/x/sync v0.25.0
	oras.land/oras-go/v2 v2.7.0
)
