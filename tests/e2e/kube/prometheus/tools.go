//go:build tools

// Prometheus, pinned by go.mod and go.sum: the newest one that takes the versions that Kubernetes' own programs are built
// from, so that most of what discovery needs is compiled already.
package tools

import _ "github.com/prometheus/prometheus/cmd/prometheus"
