//go:build !race

package resolve

const underRace = false
