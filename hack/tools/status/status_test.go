// What tools that know no ImageCache make of one: kstatus (Flux, Helm 4, kpt) and Argo CD. A test of the engine records
// the objects of docs/argocd/testdata, one for each state.

package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
	"sigs.k8s.io/yaml"
)

const folder = "../../../docs/argocd"

var update = flag.Bool("update", false, "write health_test.yaml anew, with the statuses of the table")

// What each state means to kstatus and to Argo CD.
var expected = map[string]struct {
	kstatus status.Status
	argocd  string
}{
	"no-controller":                 {status.InProgressStatus, "Progressing"},
	"written-by-kube-fledged":       {status.InProgressStatus, "Progressing"},
	"pulling":                       {status.InProgressStatus, "Progressing"},
	"ready":                         {status.CurrentStatus, "Healthy"},
	"edited-without-a-leader":       {status.InProgressStatus, "Progressing"},
	"first-round-after-an-edit":     {status.InProgressStatus, "Progressing"},
	"tag-unknown":                   {status.FailedStatus, "Degraded"},
	"unauthorized-at-first":         {status.InProgressStatus, "Progressing"},
	"unauthorized":                  {status.FailedStatus, "Degraded"},
	"registry-down":                 {status.InProgressStatus, "Progressing"},
	"name-invalid":                  {status.FailedStatus, "Degraded"},
	"spec-invalid":                  {status.FailedStatus, "Degraded"},
	"status-too-large":              {status.FailedStatus, "Degraded"},
	"enough-nodes":                  {status.CurrentStatus, "Healthy"},
	"puller-silent":                 {status.InProgressStatus, "Progressing"},
	"purging":                       {status.InProgressStatus, "Progressing"},
	"purged":                        {status.CurrentStatus, "Healthy"},
	"suspended":                     {status.CurrentStatus, "Suspended"},
	"suspended-before-it-was-ready": {status.CurrentStatus, "Suspended"},
	"refreshing":                    {status.CurrentStatus, "Healthy"},
	"removing":                      {status.InProgressStatus, "Progressing"},
	"images-lost":                   {status.InProgressStatus, "Progressing"},
	"no-node-matches":               {status.FailedStatus, "Degraded"},
	"one-list-matches-nothing":      {status.CurrentStatus, "Healthy"},
	"pool-at-zero":                  {status.CurrentStatus, "Healthy"},
	"nodes-not-eligible":            {status.InProgressStatus, "Progressing"},
	"too-few-nodes":                 {status.InProgressStatus, "Progressing"},
	// Argo CD shows a resource that is being deleted as Progressing by itself and does not ask the script.
	"deleting": {status.TerminatingStatus, "Progressing"},
}

func read(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(folder, path))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func recorded(t *testing.T) map[string]*unstructured.Unstructured {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(folder, "testdata", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string]*unstructured.Unstructured{}
	for _, path := range paths {
		object := &unstructured.Unstructured{}
		read(t, filepath.Join("testdata", filepath.Base(path)), object)
		objects[strings.TrimSuffix(filepath.Base(path), ".yaml")] = object
	}
	if len(objects) != len(expected) {
		t.Fatalf("%d objects are recorded, and the table has %d", len(objects), len(expected))
	}
	return objects
}

func TestKstatusOfEveryRecordedState(t *testing.T) {
	for name, object := range recorded(t) {
		result, err := status.Compute(object)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if result.Status != expected[name].kstatus {
			t.Errorf("%s is %s (%s), not %q", name, result.Status, result.Message, expected[name].kstatus)
		}
		if result.Status == status.FailedStatus && result.Message == "" {
			t.Errorf("%s fails without a cause", name)
		}
	}
}

// One test in the format of argo-cd's resource_customizations.
type healthTest struct {
	HealthStatus health `json:"healthStatus"`
	InputPath    string `json:"inputPath"`
}

type health struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func TestHealthOfEveryRecordedStateInArgoCD(t *testing.T) {
	objects := recorded(t)
	var suite struct {
		Tests []healthTest `json:"tests"`
	}
	if *update {
		for name, object := range objects {
			computed := run(t, object)
			computed.Status = expected[name].argocd
			suite.Tests = append(suite.Tests, healthTest{computed, "testdata/" + name + ".yaml"})
		}
		write(t, suite.Tests, &suite)
		return
	}
	read(t, "health_test.yaml", &suite)
	seen := map[string]bool{}
	for _, test := range suite.Tests {
		name := strings.TrimSuffix(filepath.Base(test.InputPath), ".yaml")
		object, known := objects[name]
		if !known || seen[name] {
			t.Fatalf("health_test.yaml names %s, which is not recorded or named twice", test.InputPath)
		}
		seen[name] = true
		if computed := run(t, object); computed != test.HealthStatus {
			t.Errorf("%s: %+v, not %+v", name, computed, test.HealthStatus)
		}
		if test.HealthStatus.Status != expected[name].argocd {
			t.Errorf("%s: health_test.yaml says %s, the table %s", name, test.HealthStatus.Status, expected[name].argocd)
		}
	}
	if len(seen) != len(objects) {
		t.Errorf("health_test.yaml has %d of %d states", len(seen), len(objects))
	}
}

// TestTheDocumentHoldsTheScript compares docs/gitops.md with health.lua.
func TestTheDocumentHoldsTheScript(t *testing.T) {
	script, err := os.ReadFile(filepath.Join(folder, "health.lua"))
	if err != nil {
		t.Fatal(err)
	}
	document, err := os.ReadFile(filepath.Join(folder, "..", "gitops.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(document), "argocd/health.lua") {
		t.Error("docs/gitops.md does not name argocd/health.lua")
	}
	if strings.Contains(string(script), "\t") {
		t.Error("health.lua has a tab, which a YAML block must not have")
	}
}
