// Vectors compares how kubefledged and the kubelet read references, pull secrets and credential providers: every text of the kubelet's own
// tests, and as many made-up ones as asked for.
//
//	vectors -ours PROGRAM -plugins PROGRAM [-cases N] [-seed N]
//
// PROGRAM are the examples vectors of crates/controller and plugins of crates/puller. It fails if anything differs that accepted.go does not
// explain.
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"

	"k8s.io/klog/v2"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "kubelet-plugins" {
		kubeletPlugins(os.Args[2:])
		return
	}
	ours := flag.String("ours", "", "the example vectors of crates/controller")
	plugins := flag.String("plugins", "", "the example plugins of crates/puller")
	count := flag.Int("cases", 200_000, "made-up cases")
	seed := flag.Uint64("seed", 1, "of the made-up cases")
	flag.Parse()
	// The kubelet logs every key that it ignores, as an error: those go to stderr unless the threshold is higher.
	logging := flag.NewFlagSet("klog", flag.PanicOnError)
	klog.InitFlags(logging)
	_ = logging.Set("logtostderr", "false")
	_ = logging.Set("stderrthreshold", "FATAL")
	klog.SetOutput(io.Discard)

	random := rand.New(rand.NewPCG(*seed, 0))
	cases := append(recorded(), madeUp(random, *count)...)
	found, err := compare(*ours, cases)
	if err != nil {
		log.Fatal(err)
	}
	found.print(len(cases))
	differ := found.unexplained
	differ += comparePlugins(*plugins)
	fmt.Printf("%d unexplained differences\n", differ)
	if differ > 0 {
		os.Exit(1)
	}
}
