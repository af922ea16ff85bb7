# The three images of this source:
#   docker buildx bake --load
# One stage compiles all three binaries, so that their crates are compiled as rarely as possible. The Dockerfiles also work alone.

variable "REGISTRY" { default = "ghcr.io/kubefledged" }
# The tag; as in Cargo.toml and Chart.yaml, so that the chart's default values name what is built here.
variable "VERSION" { default = "0.1.0" }
variable "REVISION" { default = "unknown" }
# A version of cargo-auditable; empty: without.
variable "AUDITABLE" { default = "" }

group "default" { targets = ["controller", "webhook", "puller"] }

target "binaries" {
  dockerfile = "Dockerfile.controller"
  target     = "build"
  args = {
    BINARIES  = "controller webhook puller"
    AUDITABLE = AUDITABLE
  }
}

target "image" {
  name   = component
  matrix = { component = ["controller", "webhook", "puller"] }

  dockerfile = "Dockerfile.${component}"
  # Takes the place of the Dockerfile's own stage of this name.
  contexts = { build = "target:binaries" }
  args     = { VERSION = VERSION, REVISION = REVISION }
  tags     = ["${REGISTRY}/${component}:${VERSION}"]
  # `kind load` and `minikube image load` cannot take an image with attestations. The release asks for them.
  attest = [{ type = "provenance", disabled = true }]
}
