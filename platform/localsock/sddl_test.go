package localsock

import (
	"regexp"
	"strconv"
	"testing"
)

// IA-06: who may do what with the pipe, read back from the descriptor.
func TestPipeDescriptor(t *testing.T) {
	const own = "S-1-5-21-1-2-3-1001"
	aces := map[string]string{}
	for _, m := range regexp.MustCompile(`\(A;;([^;]+);;;([^)]+)\)`).FindAllStringSubmatch(pipeSDDL(own), -1) {
		aces[m[2]] = m[1]
	}
	for _, sid := range []string{"SY", "BA", own} {
		if aces[sid] != "GA" {
			t.Errorf("%s is granted %q, want GA", sid, aces[sid])
		}
	}
	mask, err := strconv.ParseUint(aces["IU"], 0, 32)
	if err != nil {
		t.Fatalf("interactive users are granted %q: %v", aces["IU"], err)
	}
	const readData, writeData, createInstance, writeDAC, writeOwner = 1, 2, 4, 0x40000, 0x80000
	if mask&(readData|writeData) != readData|writeData {
		t.Errorf("interactive users cannot talk: %#x", mask)
	}
	if mask&(createInstance|writeDAC|writeOwner) != 0 {
		t.Errorf("interactive users could take the pipe over: %#x", mask)
	}
	if len(aces) != 4 {
		t.Errorf("ACEs beyond the four known: %v", aces)
	}
	for _, everybody := range []string{"WD", "AN", "AU", "BU", "NU"} {
		if _, ok := aces[everybody]; ok {
			t.Errorf("%s is granted something", everybody)
		}
	}
}
