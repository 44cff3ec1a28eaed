"""The CSI driver: hands the agent's models to pods as read-only bind mounts.

    the kubelet calls            (server.py: gRPC on a unix socket; registration.py: how the kubelet finds it)
      is the request sound?      (validate.py)
      is it mounted already?     (mountinfo.py)
      ask the agent, wait        (publish.py, holds.py)
      mount, read-only at once   (mount.py, the only module that mounts)
    tell the agent what is mounted (leases.py)

It is the only privileged process. It has no credentials and no network (isolate.py), and its view of the cache is
read-only.
"""
