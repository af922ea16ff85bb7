package main

import (
	"fmt"
	"regexp"
)

// programs are paths of static programs that images contain.
type programs struct{ busybox, pause string }

// images are those of a set by their names in the cluster.
func (p programs) images(set, samples string) (map[string]image, error) {
	const plain = "registry.test:5000"
	images := map[string]image{}
	switch set {
	case "test":
		images[plain+"/pause:3.10"] = p.pauses()
		names := append(sampleNames(samples), private+"/demo/secret:1.0")
		for _, name := range []string{"web", "api", "worker", "cache", "extra"} {
			names = append(names, plain+"/demo/"+name+":1.0")
		}
		for _, name := range names {
			images[name] = p.demo(name)
		}
		for _, name := range []string{plain + "/demo/model:1.0", plain + "/demo/prompt:1.0"} {
			images[name] = artifact(name)
		}
	case "bench":
		for i := range 24 {
			name := fmt.Sprintf("%s/bench/app%d:1.0", plain, i+1)
			images[name] = p.layers(name, 1, 4)
		}
		images[plain+"/bench/big:1.0"] = p.layers(plain+"/bench/big:1.0", 1, 300)
	case "big":
		images[plain+"/bench/big:1.0"] = p.layers(plain+"/bench/big:1.0", 1, 300)
	case "peers":
		images[plain+"/peers/large:1.0"] = p.layers(plain+"/peers/large:1.0", 3, 50)
		images[plain+"/peers/medium:1.0"] = p.layers(plain+"/peers/medium:1.0", 3, 10)
		images[private+"/peers/secret:1.0"] = p.layers(private+"/peers/secret:1.0", 3, 10)
	case "many":
		// 30 images of 5 to 80 MB.
		for i := range 30 {
			name := fmt.Sprintf("%s/many/app%d:1.0", plain, i+1)
			images[name] = p.layers(name, 1, 5+i*75/29)
		}
	default:
		return nil, fmt.Errorf("the set is test, bench, big, peers or many, not %q", set)
	}
	return images, nil
}

var listItem = regexp.MustCompile(`(?m)^ *- ([a-z.]+/\S+:\S+)$`)

// sampleNames are the images of an ImageCache, which are public ones. The content that they get here is ours.
func sampleNames(manifest string) []string {
	var names []string
	for _, found := range listItem.FindAllStringSubmatch(manifest, -1) {
		names = append(names, found[1])
	}
	return names
}

// pauses is an image that waits until it is told to end.
func (p programs) pauses() image {
	return image{layers: []layer{{program("pause", p.pause)}}, entrypoint: []string{"/pause"}}
}

// layers has layers of so many megabytes of incompressible data each, and a program in the last one so that a pod can run it.
func (p programs) layers(name string, count, megabytes int) image {
	made := image{entrypoint: []string{"/pause"}}
	for i := range count {
		data := noise(fmt.Sprintf("data%d", i+1), fmt.Sprintf("%s %d", name, i+1), int64(megabytes)<<20)
		made.layers = append(made.layers, layer{data})
	}
	made.layers[count-1] = append(made.layers[count-1], program("pause", p.pause))
	return made
}

// demo has busybox in a layer that all share, and a page of its own, which it serves on port 8080.
func (p programs) demo(name string) image {
	busybox := layer{directory("bin"), program("bin/busybox", p.busybox)}
	// Not wget or nslookup: in Debian's static busybox they crash where there is no libc beside it.
	for _, applet := range []string{"sh", "cat", "echo", "env", "false", "hostname", "httpd", "id", "ls", "nc", "ps", "sleep", "test", "true"} {
		busybox = append(busybox, link("bin/"+applet, "busybox"))
	}
	page := layer{directory("tmp"), directory("www"), text("www/index.html", name+"\n"), noise("www/data", name, 200<<10)}
	// The shell is process 1, which gets no signal that it does not trap, and a pod would take 30 s to end.
	serve := `trap "exit 0" TERM INT; httpd -p 8080 -h /www; while :; do sleep 3600 & wait $!; done`
	return image{
		layers:  []layer{busybox, page},
		env:     []string{"PATH=/bin"},
		ports:   map[string]struct{}{"8080/tcp": {}},
		command: []string{"/bin/sh", "-c", serve},
	}
}

// artifact is an OCI artifact: one file as it is, and the empty configuration.
func artifact(name string) image { return image{file: noise("data", name, 200<<10)} }
