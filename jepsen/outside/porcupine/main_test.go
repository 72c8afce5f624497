package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/anishathalye/porcupine"
)

const sound = `{"index":0,"time":1,"process":"0","type":"invoke","f":"write","key":"a","value":"x","node":1}
{"index":1,"time":2,"process":"0","type":"ok","f":"write","key":"a","value":"x","node":1}
{"index":2,"time":3,"process":"1","type":"invoke","f":"write","key":"a","value":"y","node":1}
{"index":3,"time":4,"process":"1","type":"info","f":"write","key":"a","value":"y","node":1}
{"index":4,"time":5,"process":"2","type":"invoke","f":"read","key":"a","value":"","node":1}
{"index":5,"time":6,"process":"2","type":"ok","f":"read","key":"a","value":"%","node":1}
`

func judge(t *testing.T, read string) bool {
	t.Helper()
	text := ""
	for _, c := range sound {
		if c == '%' {
			text += read
		} else {
			text += string(c)
		}
	}
	path := filepath.Join(t.TempDir(), "history.jsonl")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	keys, err := operations(path)
	if err != nil {
		t.Fatal(err)
	}
	return porcupine.CheckOperations(register(), keys["a"])
}

func TestUnknownWriteMayOrMayNotHappen(t *testing.T) {
	if !judge(t, "x") || !judge(t, "y") {
		t.Fatal("both values may be read")
	}
}

func TestStaleReadIsFound(t *testing.T) {
	if judge(t, "z") || judge(t, "") {
		t.Fatal("nobody wrote that, or it was overwritten")
	}
}
