package wanem

import "time"

// Link is what one direction does to frames. The zero value passes them on.
type Link struct {
	Delay  time.Duration // added to every frame
	Jitter time.Duration // uniform, plus or minus, on top of Delay; order is kept
	// Rate in bit/s of frames, Ethernet header included; 0 is unlimited.
	Rate float64
	// Queue is how long a frame may wait for its turn at Rate before it is
	// dropped instead; 0 means 100 ms.
	Queue time.Duration
	// Probabilities, 0 to 1.
	Loss      float64
	Duplicate float64
	// Reorder is the share of frames that skip the delay, and so overtake.
	Reorder float64
}

// defaultQueue is about what home routers hold.
const defaultQueue = 100 * time.Millisecond

// queueFrames bounds the frames that one direction holds; more are dropped. At
// 1500 bytes it is 96 MiB.
const queueFrames = 1 << 16

// Stats of one direction since the start.
type Stats struct {
	Frames  int64 // read
	Sent    int64
	Lost    int64 // by Loss
	Dropped int64 // by a full queue, or refused by the device
}
