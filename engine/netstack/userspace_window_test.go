package netstack

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun/tuntest"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// What was offered is taken (RFC 7323 section 2.4), however the window has been
// rounded since: an app fills it to the byte, and nobody reads.
func TestUserspaceTakesWhatItOffered(t *testing.T) {
	dev := tuntest.NewChannelTUN()
	u, err := newUserspace(Options{
		Device: dev.TUN(), MTU: rigMTU, Log: slog.New(slog.DiscardHandler),
		Handler: gvisorHandler{stream: func(ctx context.Context, _ flow.Flow, p flow.Pending) {
			if c, err := p.Accept(); err == nil {
				<-ctx.Done()
				c.Close()
			}
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- u.Run(ctx) }()
	defer func() {
		cancel()
		u.Close()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	}()

	receive := func() header.TCP {
		select {
		case p := <-dev.Inbound:
			return header.TCP(p[header.IPv4MinimumSize:])
		case <-time.After(20 * time.Second):
			t.Fatal("no answer")
			return nil
		}
	}
	dev.Outbound <- segmentOf(header.TCPFlagSyn, 0, 0, []byte{2, 4, 5, 0xb4, 3, 3, 7, 0}, nil)
	h := receive()
	ack := h.SequenceNumber() + 1
	if header.ParseSynOptions(h.Options(), true).WS != tcpWindowScale {
		t.Fatalf("the window's scale is not %d: %x", tcpWindowScale, h)
	}
	next, edge := uint32(1), 1+uint32(h.WindowSize())
	dev.Outbound <- segmentOf(header.TCPFlagAck, next, ack, nil, nil)
	for next < edge {
		n := min(edge-next, 601)
		if n < 601 && n > 7 {
			n -= 7 // the last bytes come alone
		}
		dev.Outbound <- segmentOf(header.TCPFlagAck, next, ack, nil, make([]byte, n))
		next += n
		for h = receive(); h.AckNumber() != next; h = receive() {
			if t.Failed() {
				return
			}
		}
		edge = max(edge, next+uint32(h.WindowSize())<<tcpWindowScale)
	}
}

// segmentOf is a TCP segment from app4 to target4; opts are of 4n bytes.
func segmentOf(flags header.TCPFlags, seq, ack uint32, opts, payload []byte) []byte {
	size := header.TCPMinimumSize + len(opts)
	p := make([]byte, header.IPv4MinimumSize+size+len(payload))
	src, dst := tcpip.AddrFromSlice(app4.AsSlice()), tcpip.AddrFromSlice(target4.Addr().AsSlice())
	ip, h := header.IPv4(p), header.TCP(p[header.IPv4MinimumSize:])
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(p)), TTL: 64, Protocol: 6, SrcAddr: src, DstAddr: dst})
	ip.SetChecksum(^ip.CalculateChecksum())
	h.Encode(&header.TCPFields{
		SrcPort: 40000, DstPort: target4.Port(), SeqNum: seq, AckNum: ack,
		DataOffset: uint8(size), Flags: flags, WindowSize: 1000,
	})
	copy(h[header.TCPMinimumSize:], opts)
	copy(h[size:], payload)
	sum := header.PseudoHeaderChecksum(6, src, dst, uint16(len(h)))
	h.SetChecksum(^checksum.Checksum(h, sum))
	return p
}
