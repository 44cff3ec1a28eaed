"""The agent's local API: HTTP/1.1 with JSON on a unix socket. `schema` is the contract; `client`, `server` its ends."""
