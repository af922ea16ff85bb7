module kubefledged.io/hack/tools/pause

go 1.24.0
