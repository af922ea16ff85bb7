# On a new Debian 12 machine with root, `make demo` and `make test` do the whole set-up themselves.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test kind-demo lint unit chart generated generate images cluster install e2e package test-arm64 release-dry-run plugin krew sbom test-dashboard lint-shell lint-ui test-ui test-install test-runtimes test-versions test-faults test-abuse test-gate test-peers test-workloads bench-workloads bench-plugin bench-real-gate bench-peers sim sim-mutations fuzz soak \
	bench-engine bench-peers-model bench-queue bench-guard bench-start bench-pull-through bench-real bench-real-big bench-real-install bench-fleet bench-inside bench-webhook \
	deploy-using-yaml remove-kubefledged update down test-vectors test-status test-images

TARGET := $(shell uname -m)-unknown-linux-gnu
# Of the images; empty: this machine's.
ARCH ?=
TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
CARGO := cargo
# With CLUSTER_NAME=x in the environment all targets use a local cluster of that name.
CLUSTER := hack/cluster
PROFILE ?= release
NAMESPACE := kube-fledged
REGISTRY := registry.test:5000
# The kubectl of your own cluster, for deploy-using-yaml and remove-kubefledged.
KUBECTL ?= kubectl
CLEANUP ?= yes
# A folder in PATH.
PLUGIN_DIR ?= $(HOME)/.local/bin
HELM := hack/tool helm
CHART := charts/kubefledged
CONTROLLER_CRD = $(CARGO) run --quiet --locked --target $(TARGET) --bin kubefledged-controller -- crd
# The values without comments. The chart reads this file, because it cannot read its own values.yaml.
DEFAULTS := sed -e '/^ *\#/d' -e '/^$$/d' $(CHART)/values.yaml
CHART_README = hack/tool helm-docs --log-level warning --sort-values-order file --chart-search-root $(CHART)

# As hack/cluster builds, so that packages are compiled once for both.
GO_ENV := CGO_ENABLED=0 GOWORK=off GOFLAGS="-mod=readonly -trimpath"

SEEDS ?= 2000
FIRST ?= 1
JOBS ?= 0
SIM_ARGS = $(if $(SEED),--seed $(SEED) $(if $(TRACE),--trace),--seeds $(SEEDS) --first $(FIRST) --jobs $(JOBS))

NODES ?= 5000
MINUTES ?= 60
# cold also measures a check round, one more image and a purge; sick has dead and slow nodes.
FLEET := cold bandwidth join gate killed sick wrong limited caches rewrites growth
CASES ?= 1000000
VECTORS ?= 200000
FUZZ_MINUTES ?= 30
FUZZ = $(CARGO) test --locked --target $(TARGET) --profile sim

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install the tools that building needs, or say what is missing
	@hack/setup

# One build of all dependencies serves the tests and the images. PROFILE=release compiles them three times more.
# A package that is named on the command line is built with the features that it needs, and so are its dependencies. Without a name
# the features are those of all default members, which is why no target that `make test` runs names one of them.
demo test: PROFILE := dev
demo: setup ## Start a local cluster, install the chart, and run the sample ImageCache until it succeeds
	@hack/at-once cluster '$(CLUSTER) up' images 'hack/images $(PROFILE)'
	@hack/install
	@hack/demo

test: setup lint unit test-status test-images sim chart generated cluster install e2e ## Run everything that CI runs
	@echo "== make test passed"

kind-demo: ## Run the README's quick start on kind; needs Docker, kind, kubectl and Helm
	bash -euxo pipefail -c "$$(hack/blocks README.md kind-build; hack/blocks README.md kind)"

lint: ## Check formatting, clippy, the workflows, and that the pure crates do no I/O
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets --target $(TARGET) -- -D warnings
	hack/pure
	git apply --check crates/sim/mutations/*.patch || { echo "bring these bugs for make sim-mutations up to date with the code" >&2; exit 1; }
	hack/tool actionlint -shellcheck= -pyflakes=
	@find crates -name '*.rs' -exec wc -l {} + | awk '$$2 != "total" && $$1 > 450 {print $$2 ": " $$1 " lines, more than 450: split it"; long = 1} END {exit long}'

unit: ## Run the unit tests and whole-process tests
	$(CARGO) test --locked --target $(TARGET)

sim: ## Simulate days of faults: SEEDS=2000, FIRST=1, JOBS=0 (one per processor); SEED=17 replays one day, TRACE=1 prints all its events
	$(CARGO) run --quiet --locked --target $(TARGET) --config .cargo/sim.toml --bin kubefledged-sim -- $(SIM_ARGS)

fuzz: ## Try hostile input on all parsers: CASES=1000000 per property, at most FUZZ_MINUTES=30 for each half
	for half in "--package kubefledged-image --package kubefledged-api-types --package kubefledged-contract --package kubefledged-webhook --test hostile" \
	    "--package kubefledged-controller --package kubefledged-puller --lib hostile"; do \
	  $(FUZZ) $$half --no-run; PROPTEST_CASES=$(CASES) timeout $(FUZZ_MINUTES)m $(FUZZ) $$half; done

test-vectors: ## References, pull secrets and credential providers beside the kubelet's own code: its test texts and VECTORS=200000 made-up cases
	$(CARGO) build --locked --target $(TARGET) --example vectors --example plugins
	cd hack/tools/vectors && GOWORK=off GOFLAGS=-mod=readonly go run . -cases $(VECTORS) \
	  -ours $(TARGET_DIR)/$(TARGET)/debug/examples/vectors -plugins $(TARGET_DIR)/$(TARGET)/debug/examples/plugins

test-status: ## What kstatus (Flux, Helm 4) and Argo CD make of the recorded objects of every state
	cd hack/tools/status && export $(GO_ENV) && go vet . && go test -count=1 .

test-images: ## Vet and test the program that makes the test images
	cd hack/tools/images && export $(GO_ENV) && go vet . && go test -count=1 .

sim-mutations: ## Add deliberate bugs, and fail unless a simulated day finds each of them
	hack/sim-mutations

chart: ## Lint the chart, validate its manifests with kubeconform, and test them, without a cluster
	$(HELM) lint --strict $(CHART)
	hack/kubeconform
	$(CARGO) test --locked --target $(TARGET) --package kubefledged-chart

generate: ## Write the generated files: the CRD, the chart's README and defaults, deploy/
	crd=$$($(CONTROLLER_CRD)) && printf '%s\n' "$$crd" >$(CHART)/files/crd.yaml
	defaults=$$($(DEFAULTS)) && printf '%s\n' "$$defaults" >$(CHART)/files/defaults.yaml
	$(CHART_README)
	HELM="$(HELM)" deploy/generate

generated: ## Fail if a committed file differs from what `make generate` writes
	diff <($(CONTROLLER_CRD)) $(CHART)/files/crd.yaml || { echo "$(CHART)/files/crd.yaml is out of date: run make generate" >&2; exit 1; }
	diff <($(DEFAULTS)) $(CHART)/files/defaults.yaml || { echo "$(CHART)/files/defaults.yaml is out of date: run make generate" >&2; exit 1; }
	diff <($(CHART_README) --dry-run) $(CHART)/README.md || { echo "$(CHART)/README.md is out of date: run make generate" >&2; exit 1; }
	HELM="$(HELM)" deploy/generate --check

images: ## Build static binaries and their images in dist/ (PROFILE=dev builds faster and larger; ARCH=arm64 builds for the other architecture)
	hack/images $(PROFILE) $(ARCH)

cluster: ## Start the local cluster with two nodes, unless it is up
	$(CLUSTER) up

install: images ## Build the images and install the chart into the local cluster
	hack/install

e2e: ## Run the end-to-end tests on the local cluster
	$(CARGO) build --quiet --locked --target $(TARGET) --bin kubectl-fledged
	$(CARGO) test --locked --target $(TARGET) --package kubefledged-e2e -- --test-threads=1

test-runtimes: setup images ## Run end-to-end tests on containerd 1.6, containerd 2.2 and CRI-O, in clusters of their own
	export CLUSTER_NAME=runtimes; trap '$(CLUSTER) down' EXIT; \
	$(CLUSTER) down; $(CLUSTER) up --runtime containerd,containerd2,crio --disk 2G; hack/install --set puller.diskWatermark=80 --set controller.checkInterval=1m; \
	$(CARGO) test --locked --no-fail-fast --target $(TARGET) --package kubefledged-e2e --test runtimes -- --test-threads=1 --include-ignored; \
	$(CLUSTER) down; $(CLUSTER) up --runtime containerd2,crio; hack/install; \
	$(CARGO) test --locked --target $(TARGET) --package kubefledged-e2e --test walkthrough --test node --test credentials -- --test-threads=1

test-versions: setup images ## Run end-to-end tests on Kubernetes 1.34 and 1.37 with four container runtimes, in clusters of their own
	hack/test-versions

test-dashboard: setup ## Run the dashboard's queries in a Prometheus that scrapes the local cluster, and draw docs/dashboard.svg
	export KUBEFLEDGED_DASHBOARD=$$(mktemp); trap 'rm -f $$KUBEFLEDGED_DASHBOARD' EXIT; \
	$(CARGO) test --locked --target $(TARGET) --package kubefledged-e2e --test dashboard -- --ignored; \
	$(CARGO) run --quiet --locked --target $(TARGET) --package kubefledged-bench --bin dashboard -- $$KUBEFLEDGED_DASHBOARD docs/dashboard.svg

lint-shell: ## Lint the shell scripts (Debian's package shellcheck)
	git grep -lE '^#!(/usr/bin/env bash|/bin/sh)|^# shellcheck shell=bash' | xargs shellcheck --external-sources --source-path=SCRIPTDIR --severity=warning

lint-ui: ## Lint the page of `kubectl fledged ui` with Biome (an npm package)
	command -v npm >/dev/null || { echo "install Debian's package npm" >&2; exit 1; }
	npm exec --yes @biomejs/biome@2.3.8 -- lint --error-on-warnings --skip=suspicious/noRedundantUseStrict crates/kubectl-fledged/ui

test-ui: lint-ui ## Lint and test the page of `kubectl fledged ui` in headless Chromium on the local cluster with the chart installed, and draw docs/ui.png
	command -v chromium >/dev/null || { echo "install Debian's package chromium" >&2; exit 1; }
	$(CARGO) build --quiet --locked --target $(TARGET) --bin kubectl-fledged
	export KUBEFLEDGED_SCREENSHOT=$(CURDIR)/docs/ui.png; \
	$(CARGO) test --locked --target $(TARGET) --package kubefledged-e2e --test ui -- --test-threads=1 --ignored

test-install: images ## Test installing, upgrading, moving over and uninstalling, on a local cluster of its own
	export CLUSTER_NAME=install; trap '$(CLUSTER) down' EXIT; \
	$(CLUSTER) down; $(CLUSTER) up --runtime containerd,containerd2 --disk 2G; hack/publish; \
	$(CARGO) test --locked --no-fail-fast --target $(TARGET) --package kubefledged-e2e --test install --test upgrade --test gitops --test migrate -- --test-threads=1 --ignored --nocapture

test-faults: images ## Test with real faults, in a cluster of its own with three nodes: FAULTS_SECONDS=600, FAULTS_SEED=...
	export CLUSTER_NAME=faults; trap '$(CLUSTER) down' EXIT; \
	$(CLUSTER) down; $(CLUSTER) up --runtime containerd,containerd2,crio --disk 2G; hack/install --set puller.diskWatermark=80 --set controller.checkInterval=1m; \
	$(CARGO) test --locked --target $(TARGET) --package kubefledged-e2e --test faults --test hostile -- --test-threads=1 --include-ignored --nocapture

test-abuse: images ## Attack the ports, as a tenant, as a node and as a registry, in a cluster of its own with three nodes
	export CLUSTER_NAME=abuse; trap '$(CLUSTER) down' EXIT; \
	$(CLUSTER) down; $(CLUSTER) up 3; hack/install; \
	$(CARGO) test --locked --no-fail-fast --target $(TARGET) --package kubefledged-e2e --test abuse -- --test-threads=1 --ignored --nocapture

test-gate: images ## Test the node gate with nodes that join, in a cluster of its own
	export CLUSTER_NAME=gate; trap '$(CLUSTER) down' EXIT; \
	$(CLUSTER) down; $(CLUSTER) up; hack/install; \
	$(CARGO) test --locked --no-fail-fast --target $(TARGET) --package kubefledged-e2e --test gate -- --test-threads=1 --include-ignored --nocapture --skip measure

test-peers: images ## Test layers from other nodes on containerd 2.2 and 2.4, in a cluster of its own with four nodes
	export CLUSTER_NAME=peers; trap '$(CLUSTER) down' EXIT; \
	$(CLUSTER) down; $(CLUSTER) up 4 --runtime containerd2,containerd2,containerd24,containerd2; $(CLUSTER) images peers; hack/install; \
	$(CARGO) test --locked --no-fail-fast --target $(TARGET) --package kubefledged-e2e --test peers -- --test-threads=1 --ignored --nocapture

bench-peers: images ## Measure layers from other nodes with limited links, in a cluster of its own with nine nodes
	export CLUSTER_NAME=peers; trap '$(CLUSTER) down' EXIT; \
	$(CLUSTER) down; $(CLUSTER) up 9 --runtime containerd2; hack/install; hack/bench-peers; \
	$(CARGO) build --locked --release --target $(TARGET) --package kubefledged-puller --example peer_rates; hack/bench-peers rates

test-workloads: images ## Test images from workloads on three nodes, in a cluster of its own
	export CLUSTER_NAME=workloads; trap '$(CLUSTER) down' EXIT; \
	$(CLUSTER) down; $(CLUSTER) up 3; hack/install --values crates/e2e/testdata/workload-values.yaml; \
	$(CARGO) test --locked --no-fail-fast --target $(TARGET) --package kubefledged-e2e --test workloads -- --test-threads=1 --include-ignored --nocapture

bench-real-gate: images ## Measure what the node gate adds to the pulls of a new node beside crictl, in a cluster of its own
	export CLUSTER_NAME=gate; trap '$(CLUSTER) down' EXIT; \
	$(CLUSTER) down; $(CLUSTER) up; hack/install --set puller.hostNetwork=true; \
	$(CARGO) test --locked --target $(TARGET) --package kubefledged-e2e --test gate -- --test-threads=1 --ignored --nocapture measure

plugin: ## Build the kubectl plugin and copy it to PLUGIN_DIR=~/.local/bin, with its completions for kubectl
	$(CARGO) build --locked --release --target $(TARGET) --package kubectl-fledged
	install -d $(PLUGIN_DIR)
	install $(TARGET_DIR)/$(TARGET)/release/kubectl-fledged crates/kubectl-fledged/kubectl_complete-fledged $(PLUGIN_DIR)

test-arm64: ## Build images for arm64, and run their binaries and tests of the puller by qemu
	hack/test-arm64 $(PROFILE)

release-dry-run: ## Build everything that a release publishes in dist/, and print it with its digests
	hack/release dry-run $(PROFILE)

krew: ## Write dist/fledged.yaml, the plugin's krew manifest, for the archives dist/kubectl-fledged_*.tar.gz
	hack/krew

package: ## Package the chart and its manifests as dist/kubefledged-VERSION.{tgz,yaml}, with the digests of dist/*.digest
	hack/package

sbom: ## Write the bills of materials of the binaries: dist/kubefledged-*.cdx.json (CycloneDX)
	hack/sbom

# === Benchmarks. They write their tables and plots into docs/performance.md. `make test` runs none of them.

bench-peers-model: ## Run waves of layers from other nodes, with a real engine over simulated lines
	$(CARGO) bench --quiet --locked --target $(TARGET) --package kubefledged-engine --bench peers

bench-engine: ## Measure the engine alone: 1,000 to 50,000 nodes x 20 caches x 100 images (20 minutes, 4 GB of memory)
	hack/bench-pure engine

bench-queue: ## Measure the queue alone: requests with 100 to 8,000 images
	hack/bench-pure queue

bench-guard: ## Count the instructions of the hot paths of engine and queue, and fail if one takes 10 % more than committed
	hack/bench-guard

bench-inside: ## Measure the debug endpoint of a controller with 5,000 nodes x 100 images
	$(CARGO) bench --quiet --locked --target $(TARGET) --package kubefledged-controller --bench inside

bench-webhook: ## Measure the webhook on one processor: 1,000 admissions a second for 20 s, over TLS
	hack/bench-webhook

bench-real: ## Compare pulls of 24 images of 4 MB to 2 nodes with crictl, on the local cluster with the chart installed
	hack/bench-real

bench-real-big: ## Compare the pull of one image of 300 MB with crictl, likewise
	hack/bench-real big

bench-start: ## Measure the start of a pod with and without an ImageCache, likewise
	hack/bench-start

bench-pull-through: ## Measure one small image from create to Ready by part beside crictl, likewise
	hack/bench-pull-through

bench-real-install: ## Measure the time of helm install, likewise
	hack/bench-real install

bench-fleet: ## Run all scenarios with simulated nodes (NODES=5000); bench-cold, bench-join, ... run one each
	hack/bench-fleet $(FLEET) --nodes $(NODES)

bench-plugin: ## Measure the kubectl plugin over 5,000 simulated nodes: docs/performance.md
	hack/bench-fleet plugin

bench-workloads: ## Measure what 10,000 Deployments and 100,000 Pods cost that ImageCaches follow: docs/performance.md
	hack/bench-fleet workloads --nodes 20

.PHONY: $(addprefix bench-,$(FLEET))
$(addprefix bench-,$(FLEET)): bench-%:
	hack/bench-fleet $* --nodes $(NODES)

soak: ## Measure memory, sockets and API writes during an hour (MINUTES=60) of churn on 1,000 simulated nodes
	FLEET_LIMIT=$$(($(MINUTES) + 10))m hack/bench-fleet soak --nodes 1000 --minutes $(MINUTES)

deploy-using-yaml: ## Apply the plain manifests to your own cluster (KUBECTL=...)
	$(KUBECTL) apply -f deploy/kubefledged-namespace.yaml
	$(KUBECTL) apply --server-side -f deploy/kubefledged-crd.yaml
	for file in deploy/kubefledged-resourcequota-*.yaml deploy/kubefledged-clusterrole-*.yaml; do $(KUBECTL) apply -f $$file; done
	for part in controller puller webhook-server; do \
	  for kind in networkpolicy serviceaccount clusterrolebinding role rolebinding service; do \
	    file=deploy/kubefledged-$$kind-$$part.yaml; [ ! -f $$file ] || $(KUBECTL) apply -f $$file; done; done
	$(KUBECTL) apply -f deploy/kubefledged-validatingwebhook.yaml
	for file in deploy/kubefledged-deployment-*.yaml deploy/kubefledged-daemonset-*.yaml deploy/kubefledged-poddisruptionbudget-*.yaml; do \
	  $(KUBECTL) apply -f $$file; done
	$(KUBECTL) -n $(NAMESPACE) rollout status deployment/kubefledged-controller --timeout=120s
	$(KUBECTL) -n $(NAMESPACE) rollout status deployment/kubefledged-webhook-server --timeout=120s
	$(KUBECTL) -n $(NAMESPACE) rollout status daemonset/kubefledged-puller --timeout=120s
	$(KUBECTL) wait --for=jsonpath='{.webhooks[0].clientConfig.caBundle}' --timeout=60s \
	  validatingwebhookconfiguration/kubefledged-webhook-server
	$(KUBECTL) get pods -n $(NAMESPACE)

# The clean-up removes finalizers and pins, because nothing can remove them later.
remove-kubefledged: ## Remove everything that deploy-using-yaml applied; images stay on the nodes
	if [ "$(CLEANUP)" = yes ] && $(KUBECTL) get -n $(NAMESPACE) deployment kubefledged-controller >/dev/null; then \
	  $(KUBECTL) apply -f deploy/kubefledged-cleanup.yaml; \
	  $(KUBECTL) -n $(NAMESPACE) wait --for=condition=Complete --timeout=120s job/kubefledged-cleanup || { \
	    echo "see: kubectl logs -n $(NAMESPACE) job/kubefledged-cleanup; to skip the clean-up: make remove-kubefledged CLEANUP=no" >&2; exit 1; }; \
	  $(KUBECTL) delete -f deploy/kubefledged-cleanup.yaml; fi
	$(KUBECTL) delete --ignore-not-found -f deploy/kubefledged-validatingwebhook.yaml
	$(KUBECTL) delete --ignore-not-found --wait=true -f deploy/kubefledged-crd.yaml
	for file in deploy/kubefledged-*.yaml; do case $$file in \
	  *-imagecache.yaml|*-crd.yaml|*-namespace.yaml|*-validatingwebhook.yaml) ;; \
	  *) $(KUBECTL) delete --ignore-not-found -f $$file;; esac; done
	$(KUBECTL) delete --ignore-not-found -f deploy/kubefledged-namespace.yaml

update: deploy-using-yaml ## Update an existing installation; kube-fledged's name for deploy-using-yaml

down: ## End the local cluster and delete its state
	$(CLUSTER) down
