package flow

import (
	"testing"
	"time"
)

func TestHistogram(t *testing.T) {
	var h Histogram
	if h.Percentiles() != [3]float64{} {
		t.Error("not zero at first")
	}
	if h.Count() != 0 || h.Quantile(0.5) != 0 {
		t.Error("something counted at first")
	}
	for i := 1; i <= 1000; i++ {
		h.Add(time.Duration(i) * 10 * time.Microsecond)
	}
	if h.Count() != 1000 {
		t.Errorf("%d counted", h.Count())
	}
	if q := h.Quantile(0.25); q < 2400*time.Microsecond || q > 2600*time.Microsecond {
		t.Errorf("a quarter takes no longer than %v", q)
	}
	got := h.Percentiles()
	for i, want := range []float64{5, 9.5, 9.9} {
		if got[i] < want*0.96 || got[i] > want*1.04 {
			t.Errorf("percentile %d is %v, want about %v", i, got[i], want)
		}
	}
	last := -1
	for us := uint64(0); us < 1<<40; us = us + us/7 + 1 {
		b := bucketOf(us)
		if b < last || b >= len(h.buckets) {
			t.Fatalf("%d µs in bucket %d after %d", us, b, last)
		}
		last = b
		if m := middleOf(b); us < 1<<31 && (m < float64(us)*0.95-1 || m > float64(us)*1.05+1) {
			t.Fatalf("%d µs in a bucket around %v", us, m)
		}
	}
	h.Add(-time.Second)
	h.Add(1 << 62)
}
