package windows

import "math/bits"

// unicastIF is the value of IP_UNICAST_IF: the interface index in network byte
// order on a little-endian machine, which every Windows is. IPV6_UNICAST_IF
// takes the plain index.
func unicastIF(index int) int { return int(int32(bits.ReverseBytes32(uint32(index)))) }
