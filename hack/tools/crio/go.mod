// Pins the source that hack/cluster builds CRI-O from. It is built in a copy of that module, with the module's own go.sum: a module
// that depends on it cannot be tidied, since the checksum database lacks one of its requirements (CloudNativeAI/model-spec v0.0.4).
module kubefledged.io/hack/tools/crio

go 1.24.0

require github.com/cri-o/cri-o v1.34.0
