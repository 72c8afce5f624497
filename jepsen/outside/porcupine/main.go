// Porcupine as an independent judge of a history that `chaos` has written.
//
// Reads JSON lines in Jepsen's shape, takes the operations `read` and `write` apart by key, and asks Porcupine
// whether each key is a linearizable register. It shares no code with the judges in Rust and does not look at versions.
// Exit code 0: all keys are; 1: one is not; 2: the history could not be read, or a key was not decided.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"sort"
	"time"

	"github.com/anishathalye/porcupine"
)

// line is one line of a history.
type line struct {
	Time    int64  `json:"time"`
	Process string `json:"process"`
	Type    string `json:"type"`
	F       string `json:"f"`
	Key     string `json:"key"`
	Value   string `json:"value"`
}

// access is a read or a write of one key.
type access struct {
	write bool
	value string
}

func register() porcupine.Model {
	return porcupine.Model{
		Init: func() interface{} { return "" },
		Step: func(state, input, output interface{}) (bool, interface{}) {
			if in := input.(access); in.write {
				return true, in.value
			}
			return output.(string) == state.(string), state
		},
		DescribeOperation: func(input, output interface{}) string {
			if in := input.(access); in.write {
				return fmt.Sprintf("write %q", in.value)
			}
			return fmt.Sprintf("read %q", output)
		},
	}
}

// operations takes a history apart by key. A write without an answer may take effect at any later time; what failed,
// and a read without an answer, says nothing.
func operations(path string) (map[string][]porcupine.Operation, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	keys := map[string][]porcupine.Operation{}
	open := map[string]line{}
	clients := map[string]int{}
	add := func(begin line, output string, end int64) {
		client, known := clients[begin.Process]
		if !known {
			client = len(clients)
			clients[begin.Process] = client
		}
		keys[begin.Key] = append(keys[begin.Key], porcupine.Operation{
			ClientId: client,
			Input:    access{begin.F == "write", begin.Value},
			Call:     begin.Time,
			Output:   output,
			Return:   end,
		})
	}
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 1<<20)
	for number := 1; scanner.Scan(); number++ {
		var next line
		if err := json.Unmarshal(scanner.Bytes(), &next); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if next.F != "read" && next.F != "write" {
			continue
		}
		if next.Type == "invoke" {
			open[next.Process] = next
			continue
		}
		begin, known := open[next.Process]
		if !known {
			return nil, fmt.Errorf("line %d ends what never began", number)
		}
		delete(open, next.Process)
		switch {
		case next.Type == "ok":
			add(begin, next.Value, next.Time)
		case next.Type == "info" && begin.F == "write":
			add(begin, "", math.MaxInt64)
		}
	}
	for _, begin := range open {
		if begin.F == "write" {
			add(begin, "", math.MaxInt64)
		}
	}
	return keys, scanner.Err()
}

func main() {
	keysMax := flag.Int("keys", 60, "how many keys to judge, spread over all")
	timeout := flag.Duration("timeout", 10*time.Second, "how long one key may take")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "porcupine [-keys N] [-timeout T] history.jsonl")
		os.Exit(2)
	}
	keys, err := operations(flag.Arg(0))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	names := make([]string, 0, len(keys))
	for name := range keys {
		names = append(names, name)
	}
	sort.Strings(names)
	step := 1
	if *keysMax > 0 && len(names) > *keysMax {
		step = (len(names) + *keysMax - 1) / *keysMax
	}
	judged, total, code := 0, 0, 0
	for at := 0; at < len(names); at += step {
		name := names[at]
		judged++
		total += len(keys[name])
		switch porcupine.CheckOperationsTimeout(register(), keys[name], *timeout) {
		case porcupine.Illegal:
			fmt.Printf("%s: not linearizable (%d operations)\n", name, len(keys[name]))
			code = 1
		case porcupine.Unknown:
			fmt.Printf("%s: not decided within %s\n", name, *timeout)
			if code == 0 {
				code = 2
			}
		}
	}
	if code == 2 || judged == 0 {
		fmt.Printf("undecided: %d keys judged\n", judged)
		os.Exit(2)
	}
	if code == 0 {
		fmt.Printf("linearizable: %d operations on %d keys\n", total, judged)
	}
	os.Exit(code)
}
