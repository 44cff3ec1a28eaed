//go:build tools

// The conformance suite of CSI drivers, pinned by go.mod and go.sum.
package tools

import _ "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity"
