//go:build !linux

package route

// jam does nothing: between sockets of these systems segments are no larger than
// the loopback's MTU, 16 KiB at most.
type jam struct{}

const jamTries = 0

func (p *pump) bulk(int) {}
func (j *jam) stop()     {}

func (*jam) repairing() bool { return false }
