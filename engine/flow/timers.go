package flow

import "time"

// SettleWithin is how long a connection that is to be reset may take to deliver
// what was written to it before: nginx's lingering_time.
const SettleWithin = 30 * time.Second
