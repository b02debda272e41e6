// Package nstest runs a test once more as a child process in namespaces of its
// own, where it may change addresses, routes, DNS and mounts as it likes:
//
//	go test ── TestX ──► child: TestX in a new network and mount namespace
//	              ▲                │ passes, fails, skips; so do its subtests
//	              └────────────────┘ the parent does the same, with the reason
//
// For the tests of packages that are too low for the lab. Linux and root only;
// elsewhere the test is skipped.
package nstest
