//go:build tools

// What installs the chart, pinned by go.mod and go.sum.
package tools

import _ "helm.sh/helm/v4/cmd/helm"
