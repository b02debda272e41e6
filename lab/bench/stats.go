package bench

import (
	"math"
	"slices"
	"time"
)

// quantile q (0 to 1) by nearest rank; 0 if there is nothing. all is sorted.
func quantile[T time.Duration | float64](all []T, q float64) T {
	if len(all) == 0 {
		return 0
	}
	rank := int(math.Ceil(q*float64(len(all)))) - 1
	return all[min(max(rank, 0), len(all)-1)]
}

// median of all, which may be in any order.
func median(all []float64) float64 {
	return quantile(slices.Sorted(slices.Values(all)), 0.5)
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// trend is the least-squares line through the points: its value at the first
// and at the last x.
func trend(xs, ys []float64) (first, last float64) {
	n := float64(len(xs))
	if len(xs) == 0 || len(xs) != len(ys) {
		return 0, 0
	}
	var sx, sy, sxx, sxy float64
	for i, x := range xs {
		sx, sy, sxx, sxy = sx+x, sy+ys[i], sxx+x*x, sxy+x*ys[i]
	}
	slope := 0.0
	if d := n*sxx - sx*sx; d != 0 {
		slope = (n*sxy - sx*sy) / d
	}
	at := func(x float64) float64 { return sy/n + slope*(x-sx/n) }
	return at(xs[0]), at(xs[len(xs)-1])
}
