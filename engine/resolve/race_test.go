//go:build race

package resolve

const underRace = true
