# `make demo` and `make test` do all set-up by themselves on a fresh Debian 12 machine with root.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint unit chart generated generate images cluster install e2e package sbom test-dashboard test-install test-runtimes test-faults sim sim-mutations fuzz soak \
	bench-engine bench-queue bench-guard bench-real bench-real-big bench-real-install bench-fleet bench-inside \
	deploy-using-yaml remove-kubefledged update down test-vectors

ARCH := $(shell uname -m)
TARGET := $(ARCH)-unknown-linux-gnu
CARGO := cargo
# CLUSTER_NAME=x in the environment: all targets work on a local cluster of that name beside others.
CLUSTER := hack/cluster
PROFILE ?= release
NAMESPACE := kube-fledged
REGISTRY := registry.test:5000
# kubectl for deploy-using-yaml and remove-kubefledged: your own cluster's.
KUBECTL ?= kubectl
CLEANUP ?= yes
HELM := hack/tool helm
CHART := charts/kubefledged
CONTROLLER_CRD = $(CARGO) run --quiet --locked --target $(TARGET) --package kubefledged-controller -- crd
# Values without comments: the chart cannot read its own values.yaml.
DEFAULTS := sed -e '/^ *\#/d' -e '/^$$/d' $(CHART)/values.yaml
CHART_README = hack/tool helm-docs --log-level warning --sort-values-order file --chart-search-root $(CHART)

SEEDS ?= 2000
FIRST ?= 1
JOBS ?= 0
SIM_ARGS = $(if $(SEED),--seed $(SEED) $(if $(TRACE),--trace),--seeds $(SEEDS) --first $(FIRST) --jobs $(JOBS))

NODES ?= 5000
MINUTES ?= 60
# cold also measures a check round, one image more and a purge; sick has dead and slow nodes.
FLEET := cold bandwidth join killed sick wrong limited caches rewrites growth
CASES ?= 1000000
VECTORS ?= 200000
FUZZ_MINUTES ?= 30
FUZZ = $(CARGO) test --locked --target $(TARGET) --profile sim

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what building needs, and say what is missing
	@hack/setup

demo: setup cluster install ## A local cluster, the chart, and the sample ImageCache until it succeeds
	@hack/demo

test: setup lint unit sim chart generated cluster install e2e ## All that CI runs
	@echo "== make test passed"

lint: ## Formatting and clippy; each pure crate alone
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets --target $(TARGET) -- -D warnings
	for crate in image api-types engine queue; do \
	  $(CARGO) check --quiet --locked --package kubefledged-$$crate --target $(TARGET); done
	hack/pure

unit: ## Unit and whole-process tests
	$(CARGO) test --locked --target $(TARGET)

sim: ## Simulated bad days: SEEDS=2000, FIRST=1, JOBS=0 (each processor one); SEED=17 replays one, TRACE=1 tells all of it
	$(CARGO) run --quiet --locked --target $(TARGET) --profile sim --package kubefledged-sim -- $(SIM_ARGS)

fuzz: ## Hostile input for all that parses: CASES=1000000 of each property, FUZZ_MINUTES=30 at most for each half
	for half in "--package kubefledged-image --package kubefledged-api-types --package kubefledged-contract --package kubefledged-webhook --test hostile" \
	    "--package kubefledged-controller --package kubefledged-puller --lib hostile"; do \
	  $(FUZZ) $$half --no-run; PROPTEST_CASES=$(CASES) timeout $(FUZZ_MINUTES)m $(FUZZ) $$half; done

test-vectors: ## References, pull secrets and credential providers beside the kubelet's own code: its test texts and VECTORS=200000 made-up cases
	$(CARGO) build --locked --target $(TARGET) --package kubefledged-controller --example vectors
	$(CARGO) build --locked --target $(TARGET) --package kubefledged-puller --example plugins
	cd hack/tools/vectors && GOWORK=off GOFLAGS=-mod=readonly go run . -cases $(VECTORS) \
	  -ours ../../../target/$(TARGET)/debug/examples/vectors -plugins ../../../target/$(TARGET)/debug/examples/plugins

sim-mutations: ## Deliberate bugs, each of which a simulated day must find
	hack/sim-mutations

chart: ## Lint the chart and test what it renders; no cluster is needed
	$(HELM) lint --strict $(CHART)
	$(CARGO) test --locked --target $(TARGET) --package kubefledged-chart

generate: ## Write what is generated: the CRD, the chart's README and defaults, deploy/
	$(CONTROLLER_CRD) >$(CHART)/files/crd.yaml
	$(DEFAULTS) >$(CHART)/files/defaults.yaml
	$(CHART_README)
	HELM="$(HELM)" deploy/generate

generated: ## Fail if a generated file is not what is committed
	diff <($(CONTROLLER_CRD)) $(CHART)/files/crd.yaml || { echo "$(CHART)/files/crd.yaml is old: make generate" >&2; exit 1; }
	diff <($(DEFAULTS)) $(CHART)/files/defaults.yaml || { echo "$(CHART)/files/defaults.yaml is old: make generate" >&2; exit 1; }
	diff <($(CHART_README) --dry-run) $(CHART)/README.md || { echo "$(CHART)/README.md is old: make generate" >&2; exit 1; }
	HELM="$(HELM)" deploy/generate --check

images: ## Static binaries and their images in dist/ (PROFILE=dev: quicker, larger)
	hack/images $(PROFILE)

cluster: ## Start the local cluster of two nodes, if it is not up
	$(CLUSTER) up

install: images ## Install the chart with these images into the local cluster
	hack/install

e2e: ## End-to-end tests on the local cluster
	$(CARGO) test --locked --target $(TARGET) --package kubefledged-e2e -- --test-threads=1

test-runtimes: setup images ## End-to-end tests on containerd 1.6, containerd 2.2 and CRI-O, in clusters of their own
	export CLUSTER_NAME=runtimes; trap '$(CLUSTER) down' EXIT; \
	$(CLUSTER) down; $(CLUSTER) up --runtime containerd,containerd2,crio --disk 2G; hack/install --set puller.diskWatermark=80 --set controller.checkInterval=1m; \
	$(CARGO) test --locked --no-fail-fast --target $(TARGET) --package kubefledged-e2e --test runtimes -- --test-threads=1 --include-ignored; \
	$(CLUSTER) down; $(CLUSTER) up --runtime containerd2,crio; hack/install; \
	$(CARGO) test --locked --target $(TARGET) --package kubefledged-e2e --test walkthrough --test node --test credentials -- --test-threads=1

test-dashboard: setup ## The dashboard's queries, asked of a Prometheus that scrapes the local cluster; docs/dashboard.svg shows the answers
	export KUBEFLEDGED_DASHBOARD=$$(mktemp); trap 'rm -f $$KUBEFLEDGED_DASHBOARD' EXIT; \
	$(CARGO) test --locked --target $(TARGET) --package kubefledged-e2e --test dashboard -- --ignored; \
	$(CARGO) run --quiet --locked --target $(TARGET) --package kubefledged-bench --bin dashboard -- $$KUBEFLEDGED_DASHBOARD docs/dashboard.svg

test-install: images ## Install, upgrade, move over and uninstall, on a local cluster of its own
	export CLUSTER_NAME=install; trap '$(CLUSTER) down' EXIT; \
	$(CLUSTER) down; $(CLUSTER) up --runtime containerd,containerd2; hack/default-images; \
	$(CARGO) test --locked --no-fail-fast --target $(TARGET) --package kubefledged-e2e --test install --test migrate -- --test-threads=1 --ignored --nocapture

test-faults: images ## What must hold whatever fails: FAULTS_SECONDS=600, FAULTS_SEED=...; three nodes in a cluster of their own
	export CLUSTER_NAME=faults; trap '$(CLUSTER) down' EXIT; \
	$(CLUSTER) down; $(CLUSTER) up --runtime containerd,containerd2,crio --disk 2G; hack/install --set puller.diskWatermark=80 --set controller.checkInterval=1m; \
	$(CARGO) test --locked --target $(TARGET) --package kubefledged-e2e --test faults --test hostile -- --test-threads=1 --include-ignored --nocapture

package: ## The chart and what it renders, as dist/kubefledged-VERSION.{tgz,yaml}; digests in dist/*.digest are written into it
	hack/package

sbom: ## What the binaries are made of: dist/kubefledged-*.cdx.json (CycloneDX)
	hack/sbom

# === measurements: tables and plots go to docs/performance.md; none of them is part of `make test`

bench-engine: ## The engine alone: 1,000 to 20,000 nodes x 20 caches x 100 images
	hack/bench-pure engine

bench-queue: ## The queue alone: requests of 100 to 8,000 images
	hack/bench-pure queue

bench-guard: ## Instructions of the hot paths of engine and queue beside the committed ones; fails above +10 %
	hack/bench-guard

bench-inside: ## What it costs to look inside a controller of 5,000 nodes x 100 images
	$(CARGO) bench --quiet --locked --target $(TARGET) --package kubefledged-controller --bench inside

bench-real: ## 2 nodes x 24 images of 4 MB beside crictl, on the local cluster with the chart installed
	hack/bench-real

bench-real-big: ## One image of 300 MB beside crictl, likewise
	hack/bench-real big

bench-real-install: ## The time of helm install, likewise
	hack/bench-real install

bench-fleet: ## All scenarios of thousands of simulated nodes (NODES=5000); bench-cold, bench-join, ... are one each
	hack/bench-fleet $(FLEET) --nodes $(NODES)

.PHONY: $(addprefix bench-,$(FLEET))
$(addprefix bench-,$(FLEET)): bench-%:
	hack/bench-fleet $* --nodes $(NODES)

soak: ## An hour (MINUTES=60) of churn on 1,000 simulated nodes: memory, sockets, API writes
	FLEET_LIMIT=$$(($(MINUTES) + 10))m hack/bench-fleet soak --nodes 1000 --minutes $(MINUTES)

deploy-using-yaml: ## Apply the plain manifests to your own cluster (KUBECTL=...)
	$(KUBECTL) apply -f deploy/kubefledged-namespace.yaml
	$(KUBECTL) apply --server-side -f deploy/kubefledged-crd.yaml
	for file in deploy/kubefledged-resourcequota-*.yaml deploy/kubefledged-clusterrole-*.yaml; do $(KUBECTL) apply -f $$file; done
	for part in controller puller webhook-server; do \
	  for kind in serviceaccount clusterrolebinding role rolebinding service; do \
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

# Nothing of ours may hold objects or images when nobody is left to let go of them.
remove-kubefledged: ## Remove what deploy-using-yaml applied; images stay on the nodes
	if [ "$(CLEANUP)" = yes ] && $(KUBECTL) get -n $(NAMESPACE) deployment kubefledged-controller >/dev/null; then \
	  $(KUBECTL) apply -f deploy/kubefledged-cleanup.yaml; \
	  $(KUBECTL) -n $(NAMESPACE) wait --for=condition=Complete --timeout=120s job/kubefledged-cleanup || { \
	    echo "see: kubectl logs -n $(NAMESPACE) job/kubefledged-cleanup; to go on without: make remove-kubefledged CLEANUP=no" >&2; exit 1; }; \
	  $(KUBECTL) delete -f deploy/kubefledged-cleanup.yaml; fi
	$(KUBECTL) delete --ignore-not-found -f deploy/kubefledged-validatingwebhook.yaml
	$(KUBECTL) delete --ignore-not-found --wait=true -f deploy/kubefledged-crd.yaml
	for file in deploy/kubefledged-*.yaml; do case $$file in \
	  *-imagecache.yaml|*-crd.yaml|*-namespace.yaml|*-validatingwebhook.yaml) ;; \
	  *) $(KUBECTL) delete --ignore-not-found -f $$file;; esac; done
	$(KUBECTL) delete --ignore-not-found -f deploy/kubefledged-namespace.yaml

update: deploy-using-yaml ## kube-fledged's name for deploy-using-yaml on an existing installation

down: ## End the local cluster and delete its state
	$(CLUSTER) down
