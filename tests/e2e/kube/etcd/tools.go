//go:build tools

// The API server's database, pinned by go.mod and go.sum.
package tools

import _ "go.etcd.io/etcd/server/v3"
