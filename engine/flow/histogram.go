package flow

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

// Histogram counts durations in buckets whose width is a sixteenth of their
// power of two: quantiles are off by 3 % at most, adding is one atomic
// operation. The zero value is ready; its methods may be called at any time by
// any goroutine.
//
//	µs:  0 1 … 15 │ 16 … 31 by 1 │ 32 … 63 by 2 │ 64 … 127 by 4 │ … about 1 hour
type Histogram struct {
	buckets [(histogramPowers + 1) << histogramBits]atomic.Uint64
}

const (
	histogramBits   = 4 // buckets of one power of two: 16
	histogramPowers = 28
)

func bucketOf(us uint64) int {
	if us < 1<<histogramBits {
		return int(us)
	}
	power := bits.Len64(us) - 1 - histogramBits // 0 for 16 … 31
	i := (power+1)<<histogramBits + int(us>>power) - 1<<histogramBits
	return min(i, (histogramPowers+1)<<histogramBits-1)
}

// middleOf is the middle of a bucket in microseconds.
func middleOf(i int) float64 {
	if i < 1<<histogramBits {
		return float64(i)
	}
	power := i>>histogramBits - 1
	low := uint64(1<<histogramBits+i&(1<<histogramBits-1)) << power
	return float64(low) + float64(uint64(1)<<power-1)/2
}

// Add counts d; less than nothing counts as nothing.
func (h *Histogram) Add(d time.Duration) {
	h.buckets[bucketOf(uint64(max(d, 0)/time.Microsecond))].Add(1)
}

// Count is how many durations were added.
func (h *Histogram) Count() uint64 {
	var total uint64
	for i := range h.buckets {
		total += h.buckets[i].Load()
	}
	return total
}

// Percentiles gives p50, p95 and p99 in milliseconds, zero if nothing was added.
func (h *Histogram) Percentiles() [3]float64 {
	var out [3]float64
	h.quantiles([]float64{0.50, 0.95, 0.99}, out[:])
	return out
}

// Quantile is the duration that q of all (0 to 1) do not exceed, zero if
// nothing was added.
func (h *Histogram) Quantile(q float64) time.Duration {
	var out [1]float64
	h.quantiles([]float64{q}, out[:])
	return time.Duration(out[0] * float64(time.Millisecond))
}

// quantiles fills out with the values, in milliseconds, at qs, which ascend.
func (h *Histogram) quantiles(qs, out []float64) {
	var counts [len(h.buckets)]uint64
	var total uint64
	for i := range h.buckets {
		counts[i] = h.buckets[i].Load()
		total += counts[i]
	}
	if total == 0 {
		return
	}
	var seen uint64
	i := 0
	for k, q := range qs {
		rank := max(uint64(math.Ceil(float64(total)*q)), 1) // of the nearest, from 1
		for ; i < len(counts) && seen+counts[i] < rank; i++ {
			seen += counts[i]
		}
		out[k] = middleOf(min(i, len(counts)-1)) / 1000
	}
}
