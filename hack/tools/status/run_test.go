package main

import (
	"os"
	"path/filepath"
	"sort"
	"testing"

	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// run executes health.lua as Argo CD does: the object is the global obj, and only harmless libraries are open.
func run(t *testing.T, object *unstructured.Unstructured) health {
	t.Helper()
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable, lua.StringLibName: lua.OpenString,
	} {
		if err := state.CallByParam(lua.P{Fn: state.NewFunction(open), Protect: true}, lua.LString(name)); err != nil {
			t.Fatal(err)
		}
	}
	state.SetGlobal("obj", value(state, object.Object))
	if err := state.DoFile(filepath.Join(folder, "health.lua")); err != nil {
		t.Fatal(err)
	}
	result, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		t.Fatalf("health.lua returns %v, not a table", state.Get(-1))
	}
	return health{
		Status:  lua.LVAsString(result.RawGetString("status")),
		Message: lua.LVAsString(result.RawGetString("message")),
	}
}

// value converts JSON to Lua.
func value(state *lua.LState, json any) lua.LValue {
	switch json := json.(type) {
	case bool:
		return lua.LBool(json)
	case int64:
		return lua.LNumber(json)
	case float64:
		return lua.LNumber(json)
	case string:
		return lua.LString(json)
	case []any:
		table := state.NewTable()
		for _, item := range json {
			table.Append(value(state, item))
		}
		return table
	case map[string]any:
		table := state.NewTable()
		for key, item := range json {
			table.RawSetString(key, value(state, item))
		}
		return table
	}
	return lua.LNil
}

// write writes health_test.yaml, sorted by state.
func write(t *testing.T, tests []healthTest, suite any) {
	t.Helper()
	sort.Slice(tests, func(a, b int) bool { return tests[a].InputPath < tests[b].InputPath })
	text, err := yaml.Marshal(suite)
	if err != nil {
		t.Fatal(err)
	}
	header := "# Tests in the format of argo-cd's resource_customizations. `go test ./hack/tools/status -update` writes them.\n"
	if err := os.WriteFile(filepath.Join(folder, "health_test.yaml"), append([]byte(header), text...), 0o644); err != nil {
		t.Fatal(err)
	}
}
