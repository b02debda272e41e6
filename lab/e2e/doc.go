// Package e2e holds the end-to-end tests: the real service and CLI in the lab's
// client namespace, real apps, our own and Debian's proxies, and a capture on
// the router that shows what left the client.
//
//	carry    what every upstream must carry, and that nothing goes past it
//	steer    upstreams, rules, live flows; the local proxy without a TUN
//	lost     an upstream that goes and comes back
//	ssh      connections from outside keep their interface
//	restore  the machine after down, SIGTERM and kill -9
//	wrong    wrong input: message, exit code, and nothing changed
//	figures  start-up, idle memory and processor time
//
// They need root and Linux and are skipped loudly otherwise.
package e2e
