module kubefledged.io/hack/tools/faulty

go 1.24.0
